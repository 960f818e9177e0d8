"""The files fleet.toml and agent.toml: every error is named, with a correction."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_edge.config.agent import AgentConfig, DataConfig, EncoderConfig, load_agent
from fedclip_edge.config.broker import BrokerAddress
from fedclip_edge.config.fleet import FleetConfig, RunRules, load_fleet
from fedclip_edge.config.reading import read_table
from fedclip_edge.errors import ConfigError
from fedclip_edge.records import Plan, Scalar
from fedclip_edge.storage.toml_file import read_toml

FLEET = """
fleet = "lab"
bundle = "bundle"

[broker]
host = "broker.local"
port = 8883

[rules]
devices = 3
quorum = 1
deadline_s = 90

[plan]
method = "fedclip"
rounds = 5

[plan.options]
lr = 0.001
epochs = 2
loss = "contrastive"

[trainer]
config = "../trainer/agent.toml"
"""
AGENT = """
id = "cam-01"
fleet = "lab"
bundle = "/srv/bundle"
state_dir = "state"
domain = "photo"
roles = ["evaluate"]

[data]
folder = "pictures"
train = 0.5
validation = 0.25
test = 0.25

[encoder]
provider = "cuda"
"""
TABLES: list[type[Any]] = [
    FleetConfig,
    AgentConfig,
    BrokerAddress,
    RunRules,
    DataConfig,
    EncoderConfig,
    Plan,
]


def written(folder: Path, text: str, name: str = "fleet.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, text: str) -> str:
    """The message with which `load_fleet` or `load_agent` refuses this text."""
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        (load_agent if path.name == "agent.toml" else load_fleet)(path)
    assert str(path) in str(refused.value)
    return str(refused.value).removeprefix(str(path))


def test_reads_a_fleet(tmp_path: Path) -> None:
    config = load_fleet(written(tmp_path, FLEET))
    assert config.fleet == "lab"
    assert config.broker == BrokerAddress("broker.local", 8883)
    assert config.rules == RunRules(devices=3, quorum=1.0, deadline_s=90.0)
    assert type(config.rules.quorum) is float
    options: dict[str, Scalar] = {"lr": 0.001, "epochs": 2, "loss": "contrastive"}
    assert config.plan == Plan("fedclip", rounds=5, options=options)
    assert type(config.plan.options["epochs"]) is int
    assert config.trainer is not None


def test_reads_an_agent(tmp_path: Path) -> None:
    config = load_agent(written(tmp_path, AGENT, "agent.toml"))
    assert (config.id, config.domain, config.roles) == ("cam-01", "photo", ("evaluate",))
    assert config.data == DataConfig(tmp_path / "pictures", 0.5, 0.25, 0.25)
    assert config.encoder == EncoderConfig(provider="cuda")
    assert config.broker == BrokerAddress()


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    config = load_fleet(written(tmp_path, 'fleet = "lab"\nbundle = "b"'))
    assert (config.rules, config.plan, config.trainer) == (RunRules(), Plan(), None)
    assert config.journal == tmp_path / "journal.sqlite"


def test_paths_are_relative_to_the_file_wherever_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    written(tmp_path / "site", FLEET)
    monkeypatch.chdir(tmp_path)
    config = load_fleet(Path("site/fleet.toml"))
    assert config.bundle == tmp_path / "site" / "bundle"
    assert config.journal == tmp_path / "site" / "journal.sqlite"
    assert config.trainer is not None
    assert config.trainer.config == tmp_path / "site" / "../trainer/agent.toml"
    agent = load_agent(written(tmp_path, AGENT, "agent.toml"))
    assert agent.bundle == Path("/srv/bundle")
    assert agent.data.folder == tmp_path / "pictures"


def test_engines_are_kept_where_the_file_says_or_nowhere_yet(tmp_path: Path) -> None:
    assert EncoderConfig().engine_dir is None
    named = AGENT.replace('"cuda"', '"tensorrt"\nengine_dir = "engines"')
    agent = load_agent(written(tmp_path, named, "agent.toml"))
    assert agent.encoder.engine_dir == tmp_path / "engines"


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    config = load_fleet(written(tmp_path, FLEET.replace('"bundle"', '"~/bundle"')))
    assert config.bundle == Path("/home/ada/bundle")
    no_such_user = FLEET.replace('"bundle"', '"~nobody-by-this-name/bundle"')
    assert "bundle" in refusal(tmp_path / "fleet.toml", no_such_user)


@settings(max_examples=50)
@given(st.data())
def test_an_unknown_key_is_an_error_that_names_the_nearest_one(data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(TABLES))
    names = [f.name for f in dataclasses.fields(table)]
    name = data.draw(st.sampled_from([n for n in names if len(n) > 3]))
    at = data.draw(st.integers(0, len(name) - 1))
    typo = name[:at] + name[at + 1 :]
    if typo in names:
        return
    with pytest.raises(ConfigError, match=rf"there: unknown key '{typo}'; did you mean '"):
        read_table(table, {typo: 1}, "there")


def test_a_key_like_no_other_is_answered_with_all_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown key 'xyz'; known keys: provider, precision, threads, bat"
    ):
        read_table(EncoderConfig, {"xyz": 1}, "there")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('fleet = "lab"', "", ": the key 'fleet' is missing"),
        ('fleet = "lab"', "fleet = 5", ": fleet: expected str, got int 5"),
        ('fleet = "lab"', 'fleet = "Lab 1"', ": fleet 'Lab 1' is not an id"),
        ('bundle = "bundle"', "bundle = 1", ": bundle: expected Path, got int 1"),
        ('bundle = "bundle"', 'bundle = ""', ": bundle: expected Path, got str ''"),
        (
            'bundle = "bundle"',
            'bundle = "bundle"\nkeep_models = 0',
            ": keep_models: expected 1 or more, got 0",
        ),
        (
            'bundle = "bundle"',
            'bundle = "bundle"\nkeep_sums_mb = -1',
            ": keep_sums_mb: expected 0 to 1000000, got -1",
        ),
        (
            "deadline_s = 90",
            'absent = "last"\ncohort = 5',
            ' [rules]: cohort: absent = "last" counts every device',
        ),
        ("port = 8883", "port = 8883.0", " [broker]: port: expected int, got float 8883.0"),
        ("port = 8883", "port = true", " [broker]: port: expected int, got bool True"),
        ("port = 8883", "port = 0", " [broker]: port: expected 1 to 65535, got 0"),
        ("port = 8883", "prot = 1", " [broker]: unknown key 'prot'; did you mean 'port'?"),
        ("port = 8883", "keepalive_s = 4", " [broker]: keepalive_s: expected 5 to 3600 seconds"),
        ("port = 8883", "max_packet_bytes = 0", " [broker]: max_packet_bytes: expected 1 to 268"),
        ("port = 8883", "max_packet_bytes = 1.5", " [broker]: max_packet_bytes: expected "),
        ('"broker.local"', '""', " [broker]: host"),
        ("port = 8883", 'ca = "c"\nkey = "k"', " [broker]: certificate and key: expected both or"),
        (
            "port = 8883",
            'key = "k"\ncertificate = "c"',
            " [broker]: ca: missing; a certificate also needs ca",
        ),
        ("devices = 3", "devices = 0", " [rules]: devices: expected 1 or more, got 0"),
        ("quorum = 1", "quorum = 0", " [rules]: quorum: expected above 0 and at most 1, got 0.0"),
        ("quorum = 1", "quorum = 1.1", " [rules]: quorum: expected above 0 and at most 1, got 1.1"),
        ("quorum = 1", "quorum = nan", " [rules]: quorum: expected"),
        ("quorum = 1", "quorum = true", " [rules]: quorum: expected float, got bool True"),
        ("deadline_s = 90", "deadline_s = 0", " [rules]: deadline_s: expected above 0"),
        ("deadline_s = 90", "deadline_s = inf", " [rules]: deadline_s: expected above 0"),
        ("deadline_s = 90", "grace_s = -1", " [rules]: grace_s: expected 0 or more"),
        ("deadline_s = 90", "grace_s = inf", " [rules]: grace_s: expected 0 or more"),
        ("deadline_s = 90", "cohort = -1", " [rules]: cohort: expected 0 or more"),
        ("deadline_s = 90", "upload_slots = 0", " [rules]: upload_slots: expected 1 or more"),
        ("rounds = 5", "rounds = -1", " [plan]: rounds: expected 0 to 1000000, got -1"),
        (
            "rounds = 5",
            'codec_up = "int3"',
            " [plan]: codec_up: expected 'fp32' or 'fp16' or 'int8'",
        ),
        ("epochs = 2", "epochs = [2]", " [plan]: options.epochs: expected "),
        ("[plan]", "[[plan]]", ": plan: expected Plan, got list"),
        ("[rules]", "[rule]", ": unknown key 'rule'; did you mean 'rules'?"),
        ("[trainer]", "[trainer]\nrounds = 1", " [trainer]: unknown key 'rounds'"),
    ],
)
def test_names_what_is_wrong_with_a_fleet(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert FLEET.count(old) == 1
    message = refusal(tmp_path / "fleet.toml", FLEET.replace(old, new))
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('id = "cam-01"', 'id = "coordinator"', ": id: 'coordinator' is reserved"),
        ('id = "cam-01"', 'id = "cam/01"', ": id 'cam/01' is not an id"),
        ('"photo"', '"a\\nb"', ": domain: expected at most 64 printable characters"),
        (
            '"photo"',
            '""\ncoordinator_key = "ab"',
            ": coordinator_key 'ab' is not 64 lower-case hex",
        ),
        ('"photo"', f'"{"x" * 65}"', ": domain: expected at most 64 printable characters"),
        ('["evaluate"]', "[]", ": roles: expected 'train', 'evaluate' or both"),
        ('["evaluate"]', '["watch"]', ": roles: expected 'train' or 'evaluate', got 'watch'"),
        ('["evaluate"]', '"train"', ": roles: expected "),
        ("train = 0.5", "train = 0.6", " [data]: train, validation, test: expected shares"),
        ("train = 0.5", "train = nan", " [data]: train, validation, test: expected shares"),
        ("train = 0.5", "train = -0.5", " [data]: train, validation, test: expected shares"),
        ('"cuda"', '"gpu"', " [encoder]: provider: expected 'auto' or 'cpu' or 'cuda' or "),
        (
            '"cuda"',
            '"cuda"\nprecision = "fp16"',
            " [encoder]: precision: expected 'auto' or 'fp32'",
        ),
        ('"cuda"', '"cuda"\nprecision = "bf16"', " [encoder]: precision: 'bf16' needs provider "),
        ('"cuda"', '"cpu"\nthreads = -1', " [encoder]: threads: expected 0 (chosen here) or more"),
        ('"cuda"', '"cpu"\nbatch_size = -8', " [encoder]: batch_size: expected 0 (chosen here)"),
        ('"cuda"', '"cpu"\nfast = 1', " [encoder]: fast: expected "),
        ('"cuda"', '"cpu"\nengine_dir = ""', " [encoder]: engine_dir: expected "),
        ('"cuda"', '"cpu"\nengines_dir = "e"', " [encoder]: unknown key 'engines_dir'; did you "),
    ],
)
def test_names_what_is_wrong_with_an_agent(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert AGENT.count(old) == 1
    message = refusal(tmp_path / "agent.toml", AGENT.replace(old, new))
    assert message.startswith(said)


def test_a_device_that_trains_needs_pictures_to_train_on(tmp_path: Path) -> None:
    shares = "train = 0.5\nvalidation = 0.25\ntest = 0.25"
    alone = AGENT.replace(shares, "train = 0\nvalidation = 0\ntest = 1")
    assert load_agent(written(tmp_path, alone, "agent.toml")).data.test == 1.0
    both = alone.replace('["evaluate"]', '["train", "evaluate"]')
    assert "share `train` above 0" in refusal(tmp_path / "agent.toml", both)


@dataclass(frozen=True)
class Either:
    value: Union[int, str, None]  # noqa: UP007 - named "Union", as all unions of Python 3.14


def test_a_union_is_named_by_its_types() -> None:
    said = r"f: value: expected int or str or nothing, got float 0\.5"
    with pytest.raises(ConfigError, match=said):
        read_table(Either, {"value": 0.5}, "f")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml does not exist; create it"):
        read_toml(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    with pytest.raises(ConfigError, match="is not valid TOML"):
        read_toml(written(tmp_path, "fleet = "))
    (tmp_path / "latin.toml").write_bytes(b'fleet = "caf\xe9"')
    with pytest.raises(
        ConfigError, match=r"latin\.toml, line 1: the byte 0xe9 at offset 12 is not"
    ):
        read_toml(tmp_path / "latin.toml")


def test_a_folder_with_a_colon_does_not_confuse_the_message(tmp_path: Path) -> None:
    folder = tmp_path / "odd: name"
    folder.mkdir()
    message = refusal(folder / "fleet.toml", FLEET.replace("port = 8883", "port = 0"))
    assert message.startswith(" [broker]: port")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=100)
@given(st.data())
def test_any_value_is_read_or_refused(data: st.DataObject) -> None:
    """With any value, the result is a record or a ConfigError."""
    table = data.draw(st.sampled_from(TABLES))
    names = [f.name for f in dataclasses.fields(table)]
    values: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=4))
    try:
        record: object = read_table(table, values, "there")
    except ConfigError:
        return
    assert isinstance(record, table)
