"""The output of `fedclip-edge predict`: a table, CSV rows or JSON lines, and the totals."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from fedclip_edge.prediction import Asked, Prediction
    from fedclip_edge.records import F32
    from fedclip_edge.vision.picture_files import LeftOut, Skipped

UNKNOWN = "unknown"
_SHARE_WIDTH = 7  # "100.0 %"


class Tally:
    """Counts of the pictures read, skipped, unknown and, in class folders, predicted correctly."""

    def __init__(self, rows: Rows) -> None:
        self.read = 0
        self.skipped: list[Skipped] = []
        self._rows = rows
        self._unknown = 0
        self._known = 0
        self._right = {"adapted": 0, "zero-shot": 0}

    def add(self, result: Prediction | Skipped) -> None:
        from fedclip_edge.vision.picture_files import Skipped

        if isinstance(result, Skipped):
            self.skipped.append(result)
            return
        self.read += 1
        self._unknown += self._rows.is_unknown(result)
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

    def unknown(self) -> list[str]:
        """Format the number of unknown pictures as lines; no lines without a threshold."""
        if self._rows.threshold is None:
            return []
        return [f"{self._unknown} unknown: their scores are below {self._rows.threshold:.4g}"]

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


class Rows:
    """A formatter of predictions as rows of the CSV file and as JSON lines."""

    def __init__(
        self, names: Sequence[str], top: int, has_model: bool, threshold: float | None
    ) -> None:
        self.names = names
        self.top = top
        self.has_model = has_model
        self.threshold = threshold  # None says unknown of no picture, and shows no score

    def is_unknown(self, made: Prediction) -> bool:
        """Return whether the picture's score is below the threshold."""
        from fedclip_edge.learning.classification import is_unknown

        return is_unknown(made.score, self.threshold)

    def best(self, probabilities: F32) -> list[tuple[str, float]]:
        """Return the `top` likeliest classes and their values in `probabilities`, float32 (C,)."""
        from fedclip_edge.learning.classification import best

        return best(probabilities, self.names, self.top)

    def answers(self, made: Prediction) -> tuple[list[tuple[str, float]], tuple[str, float]]:
        """Return the model's best labels (zero-shot's without a model) and the zero-shot label."""
        main = made.zero_shot if made.adapted is None else made.adapted
        return self.best(main), self.best(made.zero_shot)[0]

    def csv_head(self) -> list[str]:
        """The column names of `as_csv`."""
        head = ["picture", "label", "probability"]
        for place in range(2, self.top + 1):
            head += [f"label_{place}", f"probability_{place}"]
        head += ["zero_shot", "zero_shot_probability"] * self.has_model
        head += [UNKNOWN, "score"] * (self.threshold is not None)
        return [*head, "truth"]

    def as_csv(self, made: Prediction) -> list[str]:
        """A row of the CSV file."""
        best, (zero_shot, share) = self.answers(made)
        cells = [str(made.asked.path)]
        for label, probability in best:
            cells += [label, f"{probability:.6f}"]
        if self.has_model:
            cells += [zero_shot, f"{share:.6f}"]
        if self.threshold is not None:
            cells += ["true" if self.is_unknown(made) else "false", f"{made.score:.6f}"]
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
        if self.threshold is not None:
            fields |= {UNKNOWN: self.is_unknown(made), "score": round(made.score, 6)}
        if made.asked.truth is not None:
            fields["truth"] = self.names[made.asked.truth]
        if self.top > 1:
            fields["top"] = {label: round(probability, 6) for label, probability in best}
        return json.dumps(fields)


class Table:
    """A table at most as wide as the terminal, printed line by line with the predictions.

    A line of an unknown picture ends with this word.
    """

    def __init__(self, asked: Sequence[Asked], rows: Rows) -> None:
        import shutil

        from fedclip_edge.vision.picture_files import printable

        self._rows = rows
        self._label_width = min(20, max(9, *(len(name) for name in rows.names)))
        columns = 2 if rows.has_model else 1
        taken = columns * (self._label_width + _SHARE_WIDTH + 3)
        if rows.threshold is not None:
            taken += 2 + len(UNKNOWN)
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
        mark = f"  {UNKNOWN}" if self._rows.is_unknown(made) else ""
        click.echo(f"{path:<{self._path_width}}{''.join(map(self._cell, shown))}{mark}".rstrip())
        for label, probability in best[1:]:
            click.echo(f"{'':<{self._path_width}}{self._cell((label, probability))}".rstrip())

    def _cell(self, answer: tuple[str, float]) -> str:
        label, probability = answer
        if len(label) > self._label_width:
            label = label[: self._label_width - 3] + "..."
        return f"  {label:<{self._label_width}} {_percent(probability):>{_SHARE_WIDTH}}"


def csv_bytes(rows: Sequence[Sequence[str]]) -> bytes:
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")  # keeps the bytes of file names


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
