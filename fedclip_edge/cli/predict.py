"""`fedclip-edge predict`: labels for pictures, from a bundle and a trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fedclip_edge.cli.encoder_options import cache_option, encoder_options

if TYPE_CHECKING:
    from fedclip_edge.prediction import Asked, Prediction
    from fedclip_edge.records import F32
    from fedclip_edge.vision.picture_files import LeftOut, Skipped

_PATH = click.Path(path_type=Path)
_SHARE_WIDTH = 7  # "100.0 %"


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=_PATH)
@click.option(
    "--bundle",
    required=True,
    type=_PATH,
    help="Bundle of the fleet: the folder that `export` wrote.",
)
@click.option(
    "--model",
    metavar="RUN_OR_FILE",
    help="Trained model: a .safetensors file, a journal of `serve` (its newest run is used), or "
    "the id of a run in --journal. Without it, labels are zero-shot: from CLIP without training.",
)
@click.option(
    "--journal",
    default="journal.sqlite",
    show_default=True,
    type=_PATH,
    help="Journal (SQLite file of `serve`) in which a run id given as --model is looked up.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="CSV file to write instead of printing a table; an existing file is overwritten.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per picture, for programs."
)
@click.option(
    "--top",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="K",
    help="Number of labels to show per picture, most likely first; at most the number of classes.",
)
@cache_option
@encoder_options
def predict(
    pictures: tuple[Path, ...],
    bundle: Path,
    model: str | None,
    journal: Path,
    out: Path | None,
    as_json: bool,
    top: int,
    cache: Path | None,
    provider: Any,
    threads: int,
    engine_dir: Path | None,
) -> None:
    """Label pictures with the classes of a bundle.

    PICTURES are files or folders. Folders are searched recursively. If the pictures are in folders
    that are named after the classes, the accuracy is printed at the end.

    RUN_OR_FILE is a file models/RUN.safetensors that `serve` wrote, a device's
    personal.safetensors, a journal, or the id of a run.
    """
    from fedclip_edge.processes.blas import limit_blas_threads

    limit_blas_threads()  # before numpy is imported
    from fedclip_edge.cli.progress import note, progress_bar
    from fedclip_edge.config import EncoderConfig
    from fedclip_edge.coordinator.model_lookup import find_model
    from fedclip_edge.errors import DataError
    from fedclip_edge.learning.schedule import exchanges
    from fedclip_edge.prediction import Prediction, find_pictures, predict_pictures
    from fedclip_edge.storage import atomic
    from fedclip_edge.vision.bundle import read_bundle
    from fedclip_edge.vision.bundle_warnings import bundle_warnings
    from fedclip_edge.vision.lazy_encoder import LazyEncoder
    from fedclip_edge.vision.picture_files import LeftOut
    from fedclip_edge.vision.shared_cache import SharedCache, default_path

    opened = read_bundle(bundle)
    trained = None if model is None else find_model(model, journal, opened)
    asked, left_out = find_pictures(pictures, opened.classes.names)
    encoder = LazyEncoder(opened, EncoderConfig(provider, threads, engine_dir=engine_dir))
    for caution in bundle_warnings(opened.manifest):
        note(caution)

    tally = _Tally()
    rows = _Rows(opened.classes.names, min(top, len(opened.classes.names)), trained is not None)
    table: _Table | None = None
    written: list[list[str]] = []
    with (
        SharedCache(cache or default_path(), note) as known,
        progress_bar("predicting") as bar,
    ):
        if out is None and not as_json:
            table = _Table(asked, rows)
        results = predict_pictures(
            asked,
            encoder,
            opened.manifest.preprocessing,
            opened.classes,
            None if trained is None else trained.model,
            cache=known,
        )
        for done, result in enumerate(results, start=1):
            tally.add(result)
            if isinstance(result, Prediction):
                if as_json:
                    click.echo(rows.as_json(result))
                if out is not None:
                    written.append(rows.as_csv(result))
                if table is not None:
                    table.show(result)
            if table is None and not as_json:  # otherwise the output shows progress
                bar(done, len(asked))
    left_out += LeftOut(skipped=tuple(tally.skipped))
    for line in left_out.lines():
        click.echo(line, err=True)
    if not tally.read:
        raise DataError("none of the pictures could be read (the reasons are above); give others")
    if out is not None:
        atomic.write_file(out, _csv([rows.csv_head(), *written]))
    by = "zero-shot (no --model given)"
    if trained is not None:
        by = f"{trained.run}, round {trained.model.round} of {exchanges(trained.plan)}"
        by += f" ({trained.model.method})"
    lines = [
        f"{tally.summary(left_out, known.found)}; {by}",
        *tally.accuracy(adapted=trained is not None),
    ]
    if out is not None:
        lines.insert(0, f"Wrote {out}")
    if table is not None:
        lines.insert(0, "")
    click.echo("\n".join(lines), err=as_json)


class _Tally:
    """Counts of the pictures read, skipped and, in class folders, predicted correctly."""

    def __init__(self) -> None:
        self.read = 0
        self.skipped: list[Skipped] = []
        self._known = 0
        self._right = {"adapted": 0, "zero-shot": 0}

    def add(self, result: Prediction | Skipped) -> None:
        from fedclip_edge.vision.picture_files import Skipped

        if isinstance(result, Skipped):
            self.skipped.append(result)
            return
        self.read += 1
        if result.asked.truth is not None:
            self._known += 1
            self._right["zero-shot"] += int(result.zero_shot.argmax() == result.asked.truth)
            if result.adapted is not None:
                self._right["adapted"] += int(result.adapted.argmax() == result.asked.truth)

    def summary(self, left_out: LeftOut, cached: int) -> str:
        """Format the numbers of pictures read, of those in the cache, and of what is skipped."""
        text = f"{self.read} picture{'s' if self.read != 1 else ''}"
        if cached:
            text += f", {cached} of them not encoded again"
        skipped = len(left_out.skipped) + len(left_out.unused)
        return text if not skipped else f"{text}, {skipped} skipped"

    def accuracy(self, *, adapted: bool) -> list[str]:
        """Format the accuracy as lines; returns no lines if no picture is in a class folder."""
        if not self._known:
            return []
        shown = ["adapted", "zero-shot"] if adapted else ["zero-shot"]
        shares = (f"{name} {_percent(self._right[name] / self._known)}" for name in shown)
        lines = [f"accuracy on the {self._known} in class folders: {', '.join(shares)}"]
        if adapted:
            lines.append("(the adapted figure is too high if some of them were training pictures)")
        return lines


class _Rows:
    """A formatter of predictions as rows of the CSV file and as JSON lines."""

    def __init__(self, names: Sequence[str], top: int, has_model: bool) -> None:
        self.names = names
        self.top = top
        self.has_model = has_model

    def best(self, probabilities: F32) -> list[tuple[str, float]]:
        """Return the `top` likeliest classes and their values in `probabilities`, float32 (C,)."""
        order = (-probabilities).argsort(kind="stable")[: self.top]
        return [(self.names[i], float(probabilities[i])) for i in order]

    def answers(self, made: Prediction) -> tuple[list[tuple[str, float]], tuple[str, float]]:
        """Return the model's best labels (zero-shot's without a model) and the zero-shot label."""
        main = made.zero_shot if made.adapted is None else made.adapted
        return self.best(main), self.best(made.zero_shot)[0]

    def csv_head(self) -> list[str]:
        """The column names of `as_csv`."""
        head = ["picture", "label", "probability"]
        for place in range(2, self.top + 1):
            head += [f"label_{place}", f"probability_{place}"]
        return [*head, *(["zero_shot", "zero_shot_probability"] * self.has_model), "truth"]

    def as_csv(self, made: Prediction) -> list[str]:
        """A row of the CSV file."""
        best, (zero_shot, share) = self.answers(made)
        cells = [str(made.asked.path)]
        for label, probability in best:
            cells += [label, f"{probability:.6f}"]
        if self.has_model:
            cells += [zero_shot, f"{share:.6f}"]
        return [*cells, "" if made.asked.truth is None else self.names[made.asked.truth]]

    def as_json(self, made: Prediction) -> str:
        """A JSON object in one line."""
        import json

        best, (zero_shot, share) = self.answers(made)
        fields: dict[str, Any] = {
            "picture": str(made.asked.path),
            "label": best[0][0],
            "probability": round(best[0][1], 6),
        }
        if self.has_model:
            fields |= {"zero_shot": zero_shot, "zero_shot_probability": round(share, 6)}
        if made.asked.truth is not None:
            fields["truth"] = self.names[made.asked.truth]
        if self.top > 1:
            fields["top"] = {label: round(probability, 6) for label, probability in best}
        return json.dumps(fields)


class _Table:
    """A table at most as wide as the terminal, printed line by line with the predictions."""

    def __init__(self, asked: Sequence[Asked], rows: _Rows) -> None:
        import shutil

        from fedclip_edge.vision.picture_files import printable

        self._rows = rows
        self._label_width = min(20, max(9, *(len(name) for name in rows.names)))
        columns = 2 if rows.has_model else 1
        taken = columns * (self._label_width + _SHARE_WIDTH + 3)
        self._path_width = max(7, *(len(printable(one.path)) for one in asked))
        self._columns: int | None = None
        if sys.stdout.isatty():
            self._columns = shutil.get_terminal_size().columns
            self._path_width = max(12, min(self._path_width, self._columns - taken))
        heads = ("adapted", "zero-shot") if rows.has_model else ("zero-shot",)
        cells = "".join(f"  {head:<{self._label_width + _SHARE_WIDTH + 1}}" for head in heads)
        click.echo(f"{'picture':<{self._path_width}}{cells}".rstrip())

    def show(self, made: Prediction) -> None:
        """Print a picture's line, and one more line for each label after the first."""
        from fedclip_edge.vision.picture_files import printable

        best, zero_shot = self._rows.answers(made)
        shown = [best[0], zero_shot] if self._rows.has_model else [best[0]]
        path = printable(made.asked.path)
        if len(path) > self._path_width:
            path = "..." + path[3 - self._path_width :]
        click.echo(f"{path:<{self._path_width}}{''.join(map(self._cell, shown))}".rstrip())
        for label, probability in best[1:]:
            click.echo(f"{'':<{self._path_width}}{self._cell((label, probability))}".rstrip())

    def _cell(self, answer: tuple[str, float]) -> str:
        label, probability = answer
        if len(label) > self._label_width:
            label = label[: self._label_width - 3] + "..."
        return f"  {label:<{self._label_width}} {_percent(probability):>{_SHARE_WIDTH}}"


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")  # keeps the bytes of file names


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
