"""Names of tensors without the prefixes that training programs add to them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.checkpoint import Checkpoint, State, choice_note, is_average

# Modules that wrap another one: those of DDP, torch.compile, FSDP and activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Tensors that are not weights: torch.optim.swa_utils.AveragedModel counts its steps, and older
# releases of transformers save the numbers 0, 1, 2, ...
_BUFFER = re.compile(r"(^|\.)(n_averaged|position_ids)$")
_TOWER = "visual."  # prefix of the image tower's names in open_clip
# The beginnings of the names in other programs' CLIPs: transformers' and Apple's MobileCLIP.
_OTHER_CLIPS = re.compile(
    r"(vision_model|text_model|image_encoder|text_encoder)\.|(visual|text)_projection\.weight$"
)
_FEW = 3  # tensors named in one note
_ENOUGH = 0.5  # part of the most frequent prefix's tensors that makes another prefix a rival


def without_wrappers(checkpoint: Checkpoint, expected: Collection[str], path: Path) -> Checkpoint:
    """Rename the tensors of `checkpoint`, so that a model's names begin without a prefix.

    `expected` are the names in open_clip's model. Tensors outside the prefix that most expected
    names have are left out, and a note says so. If several prefixes have a model each, the average
    over the training (EMA) is chosen, and a note says so; if there is none, raises ConfigError,
    naming the file.
    """
    state: State = {}
    for name, tensor in checkpoint.state.items():
        bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if bare in expected or not _BUFFER.search(bare):
            state[bare] = tensor
    tower = {name[len(_TOWER) :] for name in expected if name.startswith(_TOWER)}
    notes = checkpoint.notes
    others: list[str] = []  # prefixes of other models in the file
    prefix = _tower_prefix(state, tower)
    if prefix is not None:
        renamed = {f"{prefix}{name}": f"{_TOWER}{name}" for name in tower}
    else:
        prefix, others = _prefixes(state, expected, path)
        if others:
            key, *more = (one.removesuffix(".") for one in (prefix, *others))
            notes = (*notes, choice_note(path, key, more))
        renamed = {name: name[len(prefix) :] for name in state if name.startswith(prefix)}
    chosen = {new: state[name] for name, new in renamed.items()}
    if left := sorted(n for n in state if n not in renamed and not n.startswith(tuple(others))):
        tensors = "1 tensor" if len(left) == 1 else f"{len(left)} tensors"
        named = ", ".join(left[:_FEW]) + (", ..." if len(left) > _FEW else "")
        notes = (*notes, f"leaving out {tensors} of {path.name}, not part of CLIP ({named})")
    return Checkpoint(chosen, notes)


def _tower_prefix(state: State, tower: Collection[str]) -> str | None:
    """Prefix of an image tower that was saved without the rest; None if there is no such tower."""
    last = min(tower)
    for name in state:
        prefix = name.removesuffix(last)
        starts = prefix == "" or (prefix.endswith(".") and not prefix.endswith(_TOWER))
        if prefix != name and starts and all(f"{prefix}{one}" in state for one in tower):
            return prefix
    return None


def _prefixes(state: State, expected: Collection[str], path: Path) -> tuple[str, list[str]]:
    """The text before most names that belong to a CLIP, "" if no name does; and its rivals."""
    count: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for i in range(len(parts)):
            rest = ".".join(parts[i:])
            if rest in expected or f"text.{rest}" in expected or _OTHER_CLIPS.match(rest):
                count["".join(f"{part}." for part in parts[:i])] += 1
                break  # the shortest prefix of this name
    if not count:
        return "", []
    most = max(count.values())
    rivals = [prefix for prefix, number in count.items() if number >= _ENOUGH * most]
    averages = [prefix for prefix in rivals if is_average(prefix)]
    for some in (rivals, averages):
        if len(some) == 1:
            return some[0], [rival for rival in rivals if rival != some[0]]
    shown = ", ".join(repr(prefix.removesuffix(".")) for prefix in rivals)
    raise ConfigError(
        f"{path} has several models ({shown}); save the one to export in a file of its own"
    )
