"""The files in device/, broker/ and export/, compared with the code that they depend on."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from checkout import ROOT

from fedclip_edge.cli.main import cli
from fedclip_edge.config.agent import AgentConfig, EncoderConfig, load_agent
from fedclip_edge.config.fleet import FleetConfig, RunRules
from fedclip_edge.coordinator import process
from fedclip_edge.errors import (
    BundleError,
    ConfigError,
    DataError,
    DiskError,
    JournalError,
    LinkError,
    RefusedError,
    RunError,
)
from fedclip_edge.learning import methods, strategies
from fedclip_edge.pki import mosquitto
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.processes import stopping
from fedclip_edge.protocol.topics import Topics, matches
from fedclip_edge.records import Plan
from fedclip_edge.storage.toml_file import read_toml
from fedclip_edge.vision.bundle import Bundle


def test_the_sample_agent_configuration_loads_and_names_every_key() -> None:
    path = ROOT / "device" / "agent.example.toml"
    config = load_agent(path)
    assert isinstance(config, AgentConfig)
    table = read_toml(path)
    for name in AgentConfig.__dataclass_fields__:
        assert name in table, f"agent.example.toml does not show {name}"
    assert config.inbox is not None
    assert config.answers.broker is not None
    for part, shown in (
        (config.data, table["data"]),
        (config.inbox, table["inbox"]),
        (config.encoder, table["encoder"]),
        (config.limits, table["limits"]),
        (config.broker, table["broker"]),
        (config.answers, table["answers"]),
        (config.answers.broker, table["answers"]["broker"]),
    ):
        assert set(type(part).__dataclass_fields__) == set(shown)


def test_the_sample_fleet_configuration_loads_and_names_every_key() -> None:
    path = ROOT / "device" / "fleet.example.toml"
    config, table = process.load(path), read_toml(path)
    assert set(table) == set(FleetConfig.__dataclass_fields__)
    for name in ("broker", "rules", "plan", "metrics", "page", "trainer"):
        fields = type(getattr(config, name)).__dataclass_fields__
        assert set(fields) == set(table[name]), name
    plan = table["plan"]
    assert plan["options"] == vars(methods.get(plan["method"]).check_options({}))
    assert plan["strategy_options"] == vars(strategies.get(plan["strategy"]).options())
    defaults = {"rules": RunRules(), "plan": Plan()}
    for name, default in defaults.items():
        plain = {k: v for k, v in table[name].items() if not isinstance(v, dict)}
        assert plain == {key: getattr(default, key) for key in plain}
    assert "fleet.example.toml" in (ROOT / "device" / "README.md").read_text(encoding="utf-8")


AGENT_UNIT = ROOT / "device" / "fedclip-edge-agent.service"
COORDINATOR_UNIT = ROOT / "coordinator" / "fedclip-edge-coordinator.service"
UNITS = pytest.mark.parametrize("path", [AGENT_UNIT, COORDINATOR_UNIT], ids=lambda path: path.stem)
ANALYZE = shutil.which("systemd-analyze")


def service(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(path)
    return parser["Service"]


@UNITS
def test_the_unit_starts_a_real_command(path: Path) -> None:
    program, *arguments = shlex.split(service(path)["ExecStart"])
    assert Path(program).name == "fedclip-edge"
    name, *rest = arguments
    command = cli.commands[name]
    assert isinstance(command, click.Command)
    command.make_context(name, list(rest))  # raises for an unknown option


@UNITS
def test_the_unit_restarts_on_a_missing_broker_and_on_nothing_hopeless(path: Path) -> None:
    settings = service(path)
    assert settings["RestartForceExitStatus"] == str(LinkError.exit_code)
    errors = {ConfigError, BundleError, RefusedError}
    # A coordinator reads no pictures, and an agent never ends with RunError.
    errors |= {DataError} if path == AGENT_UNIT else {RunError}
    hopeless = {error.exit_code for error in errors} | {click.UsageError.exit_code}
    # It goes on when the disk is free.
    assert not {DiskError.exit_code, JournalError.exit_code} & hopeless
    assert {int(code) for code in settings["RestartPreventExitStatus"].split()} == hopeless
    assert settings["Restart"] == "on-failure"  # also after a hang
    assert "SuccessExitStatus" not in settings  # `systemctl stop` ends it with code 0
    assert int(settings["TimeoutStopSec"]) > stopping._GOODBYE_S


@UNITS
def test_the_unit_asks_for_what_the_program_tells(path: Path) -> None:
    settings = service(path)
    assert settings["Type"] == "notify"
    assert "NotifyAccess" not in settings  # by default only the main process, not its trainer
    assert settings["WatchdogSec"] == ("30min" if path == AGENT_UNIT else "5min")


@UNITS
def test_the_user_of_the_unit_is_the_one_that_the_instructions_create(path: Path) -> None:
    text = (path.parent / "README.md").read_text(encoding="utf-8")
    assert f"useradd --system --no-create-home {service(path)['User']}\n" in text
    assert f"install -m 644 {path.relative_to(ROOT)} /etc/systemd/system/" in text
    program = service(path)["ExecStart"].split()[0]
    assert f"python3 -m venv {Path(program).parents[1]}\n" in text


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@UNITS
def test_systemd_understands_the_unit(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    program = service(path)["ExecStart"].split()[0]
    copy = tmp_path / path.name  # verify wants a program that exists
    copy.write_text(text.replace(program, sys.executable))
    assert ANALYZE is not None
    done = subprocess.run([ANALYZE, "verify", copy], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@UNITS
def test_systemd_finds_the_unit_closed_enough(path: Path) -> None:
    assert ANALYZE is not None
    limit = "40" if path == AGENT_UNIT else "20"  # in tenths; an agent needs its GPU and its files
    command = [ANALYZE, "security", "--offline=true", f"--threshold={limit}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "nrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    assert done.returncode == 0, done.stdout[-200:]


def test_the_access_list_is_what_the_topics_print() -> None:
    assert (ROOT / "broker" / "fleet.acl").read_text(encoding="utf-8") == access_list("lab")


def test_the_brokers_settings_are_those_that_an_init_writes() -> None:
    shipped = (ROOT / "broker" / "mosquitto.conf").read_text(encoding="utf-8")
    assert shipped == mosquitto.settings("lab")
    for text in broker_guides():
        assert str(mosquitto.HOME) in text


def broker_guides() -> tuple[str, ...]:
    """Texts that name the broker's files: the table in broker/, and the page of the manual."""
    paths = (ROOT / "broker" / "README.md", ROOT / "docs" / "how-to" / "brokers.md")
    return tuple(path.read_text(encoding="utf-8") for path in paths)


RABBITMQ = ROOT / "broker" / "rabbitmq"


def rabbitmq_users(*ids: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(RABBITMQ / "users.sh"), *ids]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def allowed(user: str, way: str, topic: str, acl: str) -> bool:
    """True if mosquitto's access list lets that user read or write the topic."""
    mine, found = True, False
    for line in acl.splitlines():
        word, _, rest = line.partition(" ")
        if word == "user":
            mine = rest == user
        elif word == "pattern" or (word == "topic" and mine):
            ways, _, pattern = rest.partition(" ")
            found |= way in ways and matches(pattern.replace("%u", user), topic)
    return found


def test_rabbitmqs_users_may_do_what_the_access_list_says() -> None:
    ids = ("coordinator", "cam-01", "cam-02")
    definitions = json.loads(rabbitmq_users("lab", *ids).stdout)
    assert [(user["name"], user["password_hash"]) for user in definitions["users"]] == [
        (name, "") for name in ids
    ]
    assert [entry["user"] for entry in definitions["permissions"]] == list(ids)
    own, other = Topics("lab"), Topics("another-fleet")
    plain = [f"{word}/more" for word in ("fedclip/v2/lab/model", own.up("cam-01"))]
    for topics in (own, other):
        for each in (topics, topics.earlier):
            plain += [each.coordinator_state, each.manifest, each.model, each.blob("a" * 64)]
            plain += [f"{each.prefix}/round"]
            plain += [at(name) for name in ids for at in (each.state, each.up, each.down)]
    seen = set()
    for entry in definitions["topic_permissions"]:
        assert entry["exchange"] == "amq.topic"
        for way in ("read", "write"):
            for topic in plain:
                says = re.search(entry[way], topic.replace("/", ".")) is not None
                # Patterns apply to every mosquitto user, but the coordinator is not a device.
                if entry["user"] == "coordinator" and topic.split("/")[4:5] == ["coordinator"]:
                    continue
                assert says == allowed(entry["user"], way, topic, access_list("lab")), (
                    entry,
                    topic,
                )
                seen.add((entry["user"], way, says))
    assert len(seen) == 2 * 2 * len(ids)


def test_rabbitmqs_users_may_subscribe_to_what_they_need_and_to_no_more() -> None:
    for entry in json.loads(rabbitmq_users("lab", "coordinator", "cam-01").stdout)[
        "topic_permissions"
    ]:
        topics, user = Topics("lab"), entry["user"]
        needed = topics.for_device(user, "a" * 64)
        if user == "coordinator":
            needed = topics.for_coordinator()
        for topic in needed:  # in RabbitMQ's form of a subscription
            assert re.search(entry["read"], topic.replace("/", ".").replace("+", "*")), topic
        for pattern in ("#", "fedclip.v2.#", "fedclip.v2.lab.dev.*.down", "fedclip.v2.lab.dev.#"):
            assert not re.search(entry["read"], pattern), pattern


@pytest.mark.parametrize(
    "ids", [(), ("lab",), ("lab", ""), ("lab", "cam.01"), ("lab", "cam-01", 'a"b'), ("Lab", "cam")]
)
def test_rabbitmqs_users_are_ids(ids: tuple[str, ...]) -> None:
    said = rabbitmq_users(*ids)
    assert (said.returncode, said.stdout) == (2, "")
    assert "users.sh" in said.stderr


def test_rabbitmqs_settings_name_what_an_init_writes_and_let_nobody_in_without() -> None:
    text = (RABBITMQ / "rabbitmq.conf").read_text(encoding="utf-8")
    lines = (line.partition(" = ") for line in text.splitlines() if " = " in line)
    settings = {key: value for key, _, value in lines if not key.startswith("#")}
    theirs = {
        words[0]: words[1]
        for words in map(str.split, mosquitto.settings("lab").splitlines())
        if len(words) == 2
    }
    for ours, key in (("cacertfile", "cafile"), ("certfile", "certfile"), ("keyfile", "keyfile")):
        assert Path(settings[f"ssl_options.{ours}"]).name == Path(theirs[key]).name
    assert settings["mqtt.listeners.ssl.default"] == str(mosquitto.PORT)
    assert settings["listeners.tcp"] == settings["mqtt.listeners.tcp"] == "none"
    assert settings["mqtt.allow_anonymous"] == "false"
    assert settings["mqtt.ssl_cert_login"] == "true"
    assert settings["ssl_cert_login_from"] == "common_name"
    assert settings["ssl_options.verify"] == "verify_peer"
    assert settings["ssl_options.fail_if_no_peer_cert"] == "true"
    assert settings["ssl_options.versions.1"] == theirs["tls_version"]
    assert "rabbitmq_mqtt" in (RABBITMQ / "enabled_plugins").read_text(encoding="utf-8")
    folder = str(Path(settings["ssl_options.certfile"]).parent)
    for text in broker_guides():
        for name in ("rabbitmq.conf", "enabled_plugins", "users.sh", folder):
            assert name in text, name


def test_the_sample_preprocessing_loads() -> None:
    from fedclip_edge.exporting.inputs import read_encoder_file

    read_encoder_file(ROOT / "export" / "preprocess.example.toml").preprocessing()


BUILD_ENGINE = ROOT / "export" / "build-engine.sh"

# A stand-in for `fedclip-edge` on a box with TensorRT: it prints its arguments and builds an engine
# as encoder.py does.
STAND_IN = """#!/bin/sh
echo "asked: $*"
mkdir -p "$7/builder/sha"
[ -e "$7/builder/sha/kernel.engine" ] || echo built > "$7/builder/sha/kernel.engine"
"""


def build_engine(*arguments: str | Path, path: Path, home: Path) -> tuple[int, str]:
    """Run the script with `path` first in PATH; return the exit code and the output."""
    environment = {"PATH": f"{path}:{os.defpath}", "HOME": str(home)}
    done = subprocess.run(
        [shutil.which("sh") or "sh", BUILD_ENGINE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    program = tmp_path / "bin" / "fedclip-edge"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return program.parent


def test_an_engine_is_built_once_in_the_folder_that_the_agent_reads(
    tmp_path: Path, stand_in: Path
) -> None:
    engines = tmp_path / "kept engines"
    arguments = f"bundle verify a bundle --provider tensorrt --engine-dir {engines}"
    code, said = build_engine("a bundle", engines, path=stand_in, home=tmp_path)
    assert (code, f"asked: {arguments}\n" in said) == (0, True)
    assert re.search(r"built and checked in \d+ s", said)
    code, said = build_engine("a bundle", engines, path=stand_in, home=tmp_path)
    assert (code, f"asked: {arguments}\n" in said) == (0, True)
    assert re.search(r"existed already; checked in \d+ s", said)


def test_the_script_and_the_encoder_keep_engines_in_the_same_cache(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedclip_edge.vision.tensorrt import engines_folder

    code, _ = build_engine("bundle", path=stand_in, home=tmp_path)
    assert code == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert (engines_folder(None) / "builder" / "sha" / "kernel.engine").is_file()


def test_the_script_asks_for_what_the_command_offers() -> None:
    (line,) = (
        line
        for line in BUILD_ENGINE.read_text(encoding="utf-8").splitlines()
        if line.startswith("fedclip-edge ")
    )
    name, sub, *arguments = shlex.split(line.partition("||")[0])[1:]
    group = cli.commands[name]
    assert isinstance(group, click.Group)
    group.commands[sub].make_context(sub, list(arguments))  # raises for an unknown option


def test_without_tensorrt_the_script_says_so_and_leaves_nothing(
    tmp_path: Path, random_bundle: Bundle
) -> None:
    installed = Path(sys.executable).parent
    before = sorted(tmp_path.iterdir())
    code, said = build_engine(
        random_bundle.folder, tmp_path / "engines", path=installed, home=tmp_path
    )
    assert code == ConfigError.exit_code
    assert "provider 'tensorrt' is not part of this onnxruntime; available: cpu" in said
    assert f"failed after 0 s with exit code {code}" in re.sub(r"after \d+ s", "after 0 s", said)
    assert sorted(tmp_path.iterdir()) == before


def test_the_script_says_how_it_is_used_and_what_is_missing(tmp_path: Path) -> None:
    assert build_engine(path=tmp_path, home=tmp_path) == (
        2,
        "usage: build-engine.sh BUNDLE [ENGINE_DIR]\n",
    )
    code, said = build_engine("bundle", path=tmp_path, home=tmp_path)
    assert (code, "fedclip-edge is not on PATH" in said) == (127, True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    subprocess.run(["shellcheck", BUILD_ENGINE], check=True)


def test_the_script_can_be_run() -> None:
    assert os.access(BUILD_ENGINE, os.X_OK)


def jetson() -> str:
    return (ROOT / "docs" / "how-to" / "jetson.md").read_text(encoding="utf-8")


def test_the_jetson_notes_name_what_there_is() -> None:
    text = jetson()
    assert "docs/how-to/jetson.md" in (ROOT / "device" / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:export|device|fedclip_edge)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for key in re.findall(r"`\[encoder\] (\w+)`", text):
        assert key in EncoderConfig.__dataclass_fields__, key


def test_the_jetson_notes_and_the_encoder_agree_on_the_engine() -> None:
    from fedclip_edge.vision import tensorrt

    sizes = f"{tensorrt.MIN_BATCH}, {tensorrt.OPT_BATCH} and {tensorrt.MAX_BATCH} pictures"
    assert sizes in " ".join(jetson().split())


def test_the_jetson_notes_and_the_package_agree_on_versions() -> None:
    project = read_toml(ROOT / "pyproject.toml")["project"]
    (oldest,) = re.findall(r"onnxruntime>=(\S+?)\"", str(project).replace("'", '"'))[:1]
    assert f"onnxruntime {oldest} or newer" in jetson()
    assert project["requires-python"] == ">=3.10"
    assert "Python 3.10" in jetson()


def versions() -> list[str]:
    """The supported versions of Python, the oldest first."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.findall(r"Programming Language :: Python :: (3\.\d+)", text)


def test_the_documents_name_the_supported_versions_of_python() -> None:
    span = f"{versions()[0]} to {versions()[-1]}"
    assert f"Python {span} with `venv`" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"({span})" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_ci_runs_most_tests_on_the_oldest_python_and_unit_tests_on_the_newest(
    tmp_path: Path,
) -> None:
    if not (ROOT / ".ci" / "run").exists():
        pytest.skip(".ci/run is only in the checkout")
    oldest, (before, newest) = versions()[0], versions()[-2:]
    for version in (oldest, before, newest):  # an interpreter that says that it is the wanted one
        (tmp_path / f"python{version}").write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / f"python{version}").chmod(0o755)
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    choice, environments, tests = (
        text[text.index(begin) : text.index(end)]
        for begin, end in (
            ("supported=$(", 'step "the environment"'),
            ("make_environments()", "in_background environments"),
            ("target=test-short", 'step "the slow tests'),
        )
    )
    script = (
        "step() { :; }; rm() { :; }; pyenv() { echo none; }; make() { echo make $*; }\n"
        + re.sub(r"(?m)^default=.*$", "default=none", choice)
        + f"{environments}\nmake_environments\n{tests}"
    )
    for found in (newest, before):
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=ROOT,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        wheres = [f"PYTHON={tmp_path}/python{v} VENV=.venv-{v}" for v in (oldest, found)]
        made = [line for line in done.stdout.splitlines() if line.startswith("make ")]
        assert made == [
            f"make setup {wheres[0]}",
            f"make setup {wheres[1]}",
            f"make test-short {wheres[0]}",
            f"make test-unit {wheres[1]}",
        ]
        (tmp_path / f"python{found}").unlink()
    assert f"no Python {newest} on this machine: not tested" in done.stdout


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
    pages = [ROOT / "README.md", ROOT / "docs" / "tutorial.md", *ROOT.glob("docs/how-to/*.md")]
    written = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert re.search(rf"fedclip-edge {name}\b(?!-)", written), (
        "no page of the manual shows the option"
    )
    assert cli.commands[name].help
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option) and parameter.name != "help":
            assert parameter.help or parameter.show_default, f"{name} {parameter.opts}"
