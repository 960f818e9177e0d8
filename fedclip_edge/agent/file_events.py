"""Notice of changed files below some folders, from the operating system or by regular searches.

Laws:

- A thread collects the paths; `take` never waits.
- What cannot be watched is searched: then `take` returns no paths, and `is_watching` is False. The
  log says once which of the two it is, and why.
- A file whose name is not UTF-8 ends a watch of the library. A new watch begins RESTS_S later, and
  until then the folders are searched, so such files are found, too. The log says so once.
- A path that is reported may be a file or a folder, may exist or not, and may be reported more than
  once. A change may be missed, for example in a folder that is being created: search from time to
  time as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedclip_edge import log

# Inotify only reports what this machine changes; the other users of a share are not noticed.
_SHARED = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "lustre", "vboxsf", "virtiofs")
_STEP_MS = 50  # the thread looks for changes, and for its end, this often
_DEBOUNCE_MS = 100
_WAITS_MS = 1000  # without a change; then the generator yields nothing, so that one knows it works
_STOP_S = 5.0
RESTS_S = 5.0
_NOT_TEXT = "Unable to decode path"  # the library's error for a name that is not UTF-8

Changes = Iterator[Collection[tuple[object, str]]]
Watch = Callable[[Sequence[Path], threading.Event], Changes]


def watch_files(folders: Sequence[Path], stop: threading.Event) -> Changes:
    """Yield sets of changed paths, maybe empty ones, until `stop` is set.

    Raises OSError if that is impossible, and the library's error for a name that is not UTF-8.
    """
    from watchfiles import watch

    return watch(
        *folders,
        watch_filter=None,
        debounce=_DEBOUNCE_MS,
        step=_STEP_MS,
        stop_event=stop,
        rust_timeout=_WAITS_MS,
        yield_on_timeout=True,
        raise_interrupt=False,
        force_polling=False,
        ignore_permission_denied=True,
    )


@dataclass(eq=False)
class FileEvents:
    """The changes below `folders` since `start`; call `stop` at the end."""

    folders: tuple[Path, ...]
    watch: Watch = watch_files
    _changed: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failure: str = ""  # why the thread has ended
    _said: str | None = None  # the last reason that was logged; "" for watching
    _rests: bool = False  # between two watches
    _odd_name: str = ""  # the first one that was not UTF-8
    _has_said_name: bool = False

    @property
    def is_watching(self) -> bool:
        """False if changes have to be searched for."""
        return self._thread is not None and not self._failure and not self._rests

    def start(self) -> None:
        """Begin to watch, if possible; otherwise log the reason. Also begins again after `stop`."""
        self.stop()
        self._failure = share_of(self.folders)
        if not self._failure:
            self._end, self._rests = threading.Event(), False
            self._thread = threading.Thread(
                target=self._run, args=(self._end,), name="file events", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        if self._thread is not None:
            self._end.set()
            self._thread.join(_STOP_S)
        self._thread = None

    def take(self) -> set[str]:
        """Return the paths that were reported since the last call."""
        if self._failure != (self._said or "") or self._said is None:
            self._say()
        if self._odd_name and not self._has_said_name:
            self._has_said_name = True
            log.event("file_name_not_text", file=self._odd_name, searched_s=RESTS_S)
        with self._lock:
            taken, self._changed = self._changed, set()
        return taken

    def _say(self) -> None:
        self._said = self._failure
        if self._failure:
            log.event("folder_searched", reason=self._failure)

    def _run(self, end: threading.Event) -> None:
        while not end.is_set():
            try:
                for changes in self.watch(self.folders, end):
                    with self._lock:
                        self._changed.update(path for _, path in changes)
                        if self._rests:  # a watch begins again: search for what came before it
                            self._changed.update(map(str, self.folders))
                    self._rests = False
            except ModuleNotFoundError:
                self._failure = "the package watchfiles is not installed"
                return
            except OSError as error:
                self._failure = reason_of(error)
                return
            # The Rust part has an error class of its own, which is no OSError.
            except Exception as error:  # noqa: BLE001 - regular searches do the same work
                if _NOT_TEXT not in str(error):
                    self._failure = f"watching has ended: {error}"
                    return
                self._odd_name = _named_in(str(error))
            self._rests = True
            end.wait(RESTS_S)


def _named_in(error: str) -> str:
    """The file that the library's error names in quotes."""
    return error.partition(_NOT_TEXT)[2].strip().removesuffix("to string").strip(' "')


def reason_of(error: OSError) -> str:
    """Format the reason why the operating system does not watch the folders, and the remedy."""
    text = str(error)
    if "watch limit" in text or error.errno == 28:
        return (
            "the limit of watched folders is reached; raise fs.inotify.max_user_watches "
            "with sysctl, then restart the agent"
        )
    if "open files" in text or error.errno == 24:
        return (
            "the limit of inotify instances is reached; raise fs.inotify.max_user_instances "
            "with sysctl, then restart the agent"
        )
    return f"watching is impossible: {error.strerror or text}"


def share_of(folders: Iterable[Path], mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Format the reason if a folder is on a network share; empty if none is."""
    kinds = _mounts(mounts)
    for folder in folders:
        real = folder.resolve()
        place = next((parent for parent in (real, *real.parents) if str(parent) in kinds), None)
        kind = kinds.get(str(place), "")
        is_share = kind.startswith(_SHARED) or kind.startswith("fuse.")
        if is_share:
            return f"{folder} is on a network share ({kind}), which reports no changes"
    return ""


def _mounts(file: Path) -> dict[str, str]:
    """Return the kind of the file system by mount point."""
    try:
        lines = file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return {}
    kinds = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and after:
            point = fields[4].encode("latin-1", "replace").decode("unicode_escape")
            kinds[point] = after.split()[0]
    return kinds
