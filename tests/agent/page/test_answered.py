from __future__ import annotations

from pathlib import Path

from answer_scene import zero_shot_answers

from fedclip_edge.agent.answer_file import AnswerFile
from fedclip_edge.agent.answers import line_of
from fedclip_edge.agent.page.answered import AnswersRead


def test_each_line_is_read_once_also_over_renamed_files(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    file, read = AnswerFile(path, 10_000, 3), AnswersRead(path, 3)
    assert not read.refresh()
    seen = 0
    for seed in range(4):
        for one in zero_shot_answers(17, seed):
            file.add(line_of(one.to_json()), 0.0)
        assert read.refresh()
        seen += 17
        assert len(read.newest) == seen
        assert not read.refresh()
    assert len(list(tmp_path.iterdir())) > 2
    assert AnswersRead(path, 3).refresh()


def test_the_newest_answer_counts_and_its_values_are_those_of_the_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    (one, *_) = zero_shot_answers(2)
    fields = one.to_json()
    newer = {**fields, "unknown": True, "time": "2026-11-30T08:15:02.113+00:00", "run": "run-9"}
    path.write_bytes(line_of(fields) + line_of(newer))
    read = AnswersRead(path, 0)
    read.refresh()
    (found,) = read.newest.values()
    assert (found.is_unknown, found.run, found.at) == (True, "run-9", 1796026502.113)
    assert found.likeliest == tuple(fields["top"].items())
    assert (found.label, found.probability) == (fields["label"], fields["probability"])
    assert read.hashes == {fields["picture"]: fields["hash"]}


def test_damaged_lines_and_events_are_left_out_and_a_part_of_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    line = line_of(zero_shot_answers(1)[0].to_json())
    event = b'{"time": "2026-11-30T08:15:02+00:00", "event": "a", "label": null, "unknown": true}\n'
    path.write_bytes(b"\xff{\n[1]\n" + event + b'{"top": 1}\n' + line[:50])
    read = AnswersRead(path, 0)
    assert not read.refresh()
    path.write_bytes(path.read_bytes() + line[50:])
    assert read.refresh()
    assert len(read.newest) == 1


def test_a_file_that_another_replaced_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    first, second = (
        b"".join(line_of(one.to_json()) for one in zero_shot_answers(count, seed))
        for count, seed in ((3, 1), (5, 2))
    )
    path.write_bytes(first)
    read = AnswersRead(path, 0)
    read.refresh()
    path.write_bytes(second)  # the same inode, and more bytes
    assert len(read.refresh()) == 5
    assert len(read.newest) == 8


def test_answers_for_pictures_that_are_gone_are_forgotten_if_they_are_many(tmp_path: Path) -> None:
    read = AnswersRead(tmp_path / "answers.jsonl", 0)
    lines = b"".join(line_of(one.to_json()) for one in zero_shot_answers(1200))
    (tmp_path / "answers.jsonl").write_bytes(lines)
    read.refresh()
    some = list(read.newest)[:5]
    read.forget_others(list(read.newest)[:100])
    assert len(read.newest) == 1200 or len(read.newest) == 100
    read.forget_others(some)
    assert list(read.newest) == some
    assert list(read.hashes.values()) == some
