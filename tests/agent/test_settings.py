"""Settings that are read again while the agent runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedclip_edge.agent.settings import Settings
from fedclip_edge.config.agent import AgentConfig, load_agent
from fedclip_edge.processes.reloading import RELOAD

TEXT = 'id = "cam-01"\nfleet = "lab"\nbundle = "b"\nstate_dir = "s"\n[data]\nfolder = "p"\n'


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr("sys.stdin", None)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    RELOAD.listen()
    file = tmp_path / "agent.toml"
    file.write_text(TEXT)
    yield Settings(load_agent(file), file)
    signal.signal(signal.SIGHUP, before)


def reload(settings: Settings, text: str) -> AgentConfig:
    assert settings.file is not None
    settings.file.write_text(text)
    os.kill(os.getpid(), signal.SIGHUP)
    settings.look()
    return settings.config


def test_without_the_signal_nothing_is_read(settings: Settings) -> None:
    assert settings.file is not None
    settings.file.unlink()
    settings.look()


def test_limits_count_at_once(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    made = reload(settings, f"{TEXT}[limits]\nmax_threads = 2\n")
    assert made.limits.max_threads == 2
    assert settings.limits().max_threads == 2
    assert not settings.is_new, "the agent need not serve again"
    assert "settings_read" in (said := capsys.readouterr().out)
    assert "changed=limits" in said


def test_other_pictures_are_used_when_the_agent_serves_again(settings: Settings) -> None:
    made = reload(settings, TEXT.replace('"p"', '"q"').replace("[data]", 'domain = "x"\n[data]'))
    assert made.data.folder.name == "q"
    assert made.domain == "x"
    assert settings.is_new
    settings.begin()
    assert not settings.is_new


def test_what_needs_a_restart_is_named_and_stays(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    text = TEXT.replace("cam-01", "cam-02").replace('"s"', '"t"') + "[broker]\nport = 1\n"
    made = reload(settings, text + "[limits]\nnice = 7\n")
    assert (made.id, made.state_dir.name, made.broker.port) == ("cam-01", "s", 1883)
    assert made.limits.nice == 7
    assert not settings.is_new
    said = capsys.readouterr().out
    assert "restart_needed" in said
    assert 'changed="id, state_dir, broker"' in said


@pytest.mark.parametrize(
    "text",
    [
        "broken",
        TEXT.replace("folder", "folders"),
        f"{TEXT}[limits]\nmax_threads = 0\n",
        f'reports = false\nroles = ["evaluate"]\n{TEXT}',
    ],
)
def test_a_file_with_a_mistake_changes_nothing(
    settings: Settings, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = settings.config
    assert reload(settings, text) is before
    assert not settings.is_new
    assert "settings_not_used" in capsys.readouterr().out
    assert reload(settings, f"{TEXT}[limits]\nnice = 1\n").limits.nice == 1


def test_a_missing_file_and_a_missing_library_change_nothing(settings: Settings) -> None:
    before = settings.config
    assert settings.file is not None
    settings.file.unlink()
    os.kill(os.getpid(), signal.SIGHUP)
    settings.look()
    assert settings.config is before

    def check(_config: AgentConfig) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    settings.check = check
    assert reload(settings, f'domain = "x"\n{TEXT}') is before


def test_settings_with_which_the_agent_cannot_serve_are_taken_back(settings: Settings) -> None:
    before = settings.config
    assert not settings.take_back("no pictures"), "the first ones cannot be"
    reload(settings, TEXT.replace('"p"', '"q"'))
    reload(settings, TEXT.replace('"p"', '"r"'))
    assert settings.take_back("no pictures")
    assert settings.config is before
    reload(settings, TEXT.replace('"p"', '"q"'))
    settings.confirm()
    assert not settings.take_back("the disk is full"), "the agent served with them"
