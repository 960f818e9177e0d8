"""device/, broker/ and export/ hold no code, so tests bind their files to the code."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import click
import pytest

from fedclip_edge.cli.main import cli
from fedclip_edge.config import AgentConfig, load_agent, read_toml
from fedclip_edge.errors import (
    BundleError,
    ConfigError,
    DataError,
    LinkError,
    RefusedError,
)
from fedclip_edge.messaging.topics import access_list

ROOT = Path(__file__).parents[1]


def test_the_sample_agent_configuration_loads_and_names_every_key() -> None:
    path = ROOT / "device" / "agent.example.toml"
    config = load_agent(path)
    assert isinstance(config, AgentConfig)
    table = read_toml(path)
    for name in AgentConfig.__dataclass_fields__:
        assert name in table, f"agent.example.toml does not show {name}"
    for name in ("data", "encoder", "broker"):
        fields = type(getattr(config, name)).__dataclass_fields__
        assert set(fields) == set(table[name])


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "device" / "fedclip-edge-agent.service")
    return parser


def test_the_unit_starts_a_real_command() -> None:
    program, *arguments = shlex.split(unit()["Service"]["ExecStart"])
    assert Path(program).name == "fedclip-edge"
    name, *rest = arguments
    command = cli.commands[name]
    assert isinstance(command, click.Command)
    command.make_context(name, list(rest))  # raises on an unknown option


def test_the_unit_restarts_on_a_missing_broker_and_on_nothing_hopeless() -> None:
    service = unit()["Service"]
    assert service["RestartForceExitStatus"] == str(LinkError.exit_code)
    hopeless = {e.exit_code for e in (ConfigError, DataError, BundleError, RefusedError)}
    assert {int(code) for code in service["RestartPreventExitStatus"].split()} == hopeless


def test_the_access_list_is_what_the_topics_print() -> None:
    assert (ROOT / "broker" / "fleet.acl").read_text(encoding="utf-8") == access_list()


def test_the_sample_preprocessing_loads() -> None:
    from fedclip_edge.exporting.inputs import read_encoder_file

    read_encoder_file(ROOT / "export" / "preprocess.example.toml").preprocessing()


def test_the_image_targets_copy_files_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)) == {
        "base",
        "agent",
        "coordinator",
        "export",
    }
    for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    for command in re.findall(r'^CMD \["([\w-]+)"', text, re.MULTILINE):
        assert command in cli.commands


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_documented_and_helps(name: str) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"fedclip-edge {name}" in readme
    assert cli.commands[name].help
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help or parameter.show_default, f"{name} {parameter.opts}"
