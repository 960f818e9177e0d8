"""The lines of the trainer in the log of `serve`."""

from __future__ import annotations

import io
import json

import pytest

from fedclip_edge import log
from fedclip_edge.coordinator.trainer import _copy

LINES = """\
{"time": "2030-01-01T00:00:00.000+00:00", "event": "features_ready", "train": 12}
fedclip-edge: the picture folder is empty
{"no": "event"}
{"event": 7}
[1]
{"event": "trained", "round": 1, "device": "cam-1", "trainer": "x"}
the last line, without an end"""


@pytest.mark.parametrize("as_json", [False, True])
def test_each_line_names_the_trainer(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    log.use_json(as_json)
    try:
        _copy(io.StringIO(LINES), "judge")
    finally:
        log.use_json(enabled=False)
    lines = capsys.readouterr().out.splitlines()
    if not as_json:
        assert [line.partition(" ")[2] for line in lines] == [
            "features_ready trainer=judge train=12",
            'trainer_output trainer=judge line="fedclip-edge: the picture folder is empty"',
            'trainer_output trainer=judge line="{\\"no\\": \\"event\\"}"',
            'trainer_output trainer=judge line="{\\"event\\": 7}"',
            "trainer_output trainer=judge line=[1]",
            "trained trainer=judge round=1 device=cam-1",
            'trainer_output trainer=judge line="the last line, without an end"',
        ]
        return
    first, second, *_ = map(json.loads, lines)
    assert (first["event"], first["trainer"], first["train"]) == ("features_ready", "judge", 12)
    assert first["time"] > "2026"
    assert first["time"] != "2030-01-01T00:00:00.000+00:00"
    assert second["line"] == "fedclip-edge: the picture folder is empty"


def test_a_pipe_that_is_closed_under_it_is_no_error() -> None:
    output = io.StringIO(LINES)
    output.close()
    _copy(output, "judge")
