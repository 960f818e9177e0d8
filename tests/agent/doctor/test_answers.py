"""The check of the places where answers go."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import free_port

from fedclip_edge.agent.doctor.answers import check_answers
from fedclip_edge.config.agent import AgentConfig, DataConfig
from fedclip_edge.config.answers import AnswersBroker, AnswersConfig
from fedclip_edge.config.broker import BrokerAddress


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig("cam-07", "lab", DataConfig(tmp_path), tmp_path / "state", bundle=tmp_path)


def test_a_file_that_can_be_written_is_named_and_not_made(config: AgentConfig) -> None:
    (found,) = check_answers(config)
    assert (found.state, found.said.startswith("none yet")) == ("ok", True)
    assert not config.state_dir.exists()
    config.state_dir.mkdir()
    (config.state_dir / "answers.jsonl").write_bytes(b"\n" * 1_500_000)
    (found,) = check_answers(config)
    assert (found.state, found.said.endswith("answers.jsonl, 1.5 MB")) == ("ok", True)


def test_a_folder_and_a_closed_folder_in_its_place_are_named(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.state_dir / "answers.jsonl").mkdir(parents=True)
    (found,) = check_answers(config)
    assert (found.state, found.said.endswith("is not a file")) == ("todo", True)
    assert "another `file` under [answers]" in found.todo
    elsewhere = replace(config, answers=AnswersConfig(file=config.state_dir / "new" / "a"))
    monkeypatch.setattr(os, "access", lambda path, _mode: path != config.state_dir)
    (found,) = check_answers(elsewhere)
    assert found.said == f"{config.state_dir} cannot be written to"
    assert f"uid {os.geteuid()}" in found.todo


def test_the_broker_of_the_answers_is_tried(config: AgentConfig, mosquitto: BrokerAddress) -> None:
    def of_broker(port: int) -> tuple[str, str, str]:
        broker = AnswersBroker(port=port)
        _, found = check_answers(replace(config, answers=AnswersConfig(broker=broker)))
        return found.state, found.said, found.todo

    state, said, _ = of_broker(mosquitto.port)
    assert state == "ok"
    assert said.startswith(f"127.0.0.1:{mosquitto.port} accepts this device")
    assert "fedclip-edge/cam-07" in said
    state, said, what = of_broker(free_port())
    assert (state, "no MQTT broker answers" in said) == ("todo", True)
    assert "under [answers.broker]" in what
