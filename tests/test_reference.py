"""The reference of the manual is what the code says: its pages are generated, and complete."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import command_reference
import exit_code_reference
import log_event_reference
import log_scan
import pytest
from checkout import ROOT
from configuration_keys import Key, load, method_options, strategy_options, tables
from configuration_meanings import MEANINGS, TABLES
from configuration_ranges import RANGES
from configuration_reference import RULES, Rule, agent
from log_event_meanings import EVENTS, FIELDS
from reference_pages import FOLDER, PAGES

from fedclip_edge.errors import ConfigError
from fedclip_edge.learning import methods, strategies

WRITE = "run `python tests/support/reference_pages.py --write`"


@pytest.mark.parametrize("name", PAGES)
def test_each_page_is_what_the_code_makes(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), WRITE


# Commands.


def test_every_argument_of_every_command_has_a_meaning() -> None:
    assert command_reference.arguments() == set(command_reference.ARGUMENTS)


# Configuration.


def keys() -> Iterator[tuple[str, Key]]:
    """Every key, with the method or strategy of an option."""
    for table in tables():
        for key in table.entries():
            yield "", key
    for name in methods.names():
        for key in method_options(name).entries():
            yield name, key
    for name in strategies.names():
        for key in strategy_options(name).entries():
            yield name, key


EVERY_KEY = [(name, key) for name, key in keys() if not key.is_table]


def shown(value: object) -> str:
    if isinstance(value, Key):
        return ".".join((value.table.file, *value.table.path, value.name))
    return str(value)


def around(name: str, key: Key, value: Any) -> dict[str, Any]:
    """A whole file with the key at `value`, and all else so that it would load."""
    of_key: dict[str, Any] = {key.name: value}
    match key.table.path, key.name:
        case ("plan", "options"), _:
            return fleet(plan={"method": name, "options": of_key})
        case ("plan", "strategy_options"), _:
            return fleet(plan=strategy(name) | {"strategy_options": of_key})
        case ("plan",), "strategy":
            return fleet(plan=strategy(value))
        case ("plan",), ("vote" | "personal_epochs"):  # the default method refuses some values
            return fleet(plan={"method": "fedclip", **of_key})
        case ("data",), ("train" | "validation" | "test"):
            shares = {"train": 0.0, "validation": 0.0, "test": 0.0, key.name: value}
            other = "test" if key.name == "train" else "train"
            rest = 1 - value if isinstance(value, float | int) else 0.0
            return agent(data={"folder": "p", **shares, other: rest}, roles=["evaluate"])
        case (*_, "broker"), ("certificate" | "key"):
            of_key = {"ca": "c", "certificate": "d", "key": "k", **of_key}
        case ("page",), _:
            of_key = {"listen": "127.0.0.1:1", "certificate": "d", "key": "k", **of_key}
    whole = agent if key.table.file == "agent.toml" else fleet
    if not key.table.path:
        return whole(**of_key)
    table: dict[str, Any] = {"folder": "p", **of_key} if key.table.path == ("data",) else of_key
    for level in reversed(key.table.path):
        table = {level: table}
    return whole(**table)


def fleet(**tables: Any) -> dict[str, Any]:
    return {"fleet": "lab", "bundle": "b", **tables}


def strategy(name: str) -> dict[str, Any]:
    return {"method": "fedclip", "options": {"optimizer": "sgd"}, "strategy": name}


@pytest.mark.parametrize(("name", "key"), EVERY_KEY, ids=shown)
def test_each_range_is_the_one_that_holds(name: str, key: Key) -> None:
    taken = key.choices or key.range.taken
    refused = ("no such choice",) if key.choices else key.range.refused
    assert taken
    assert refused
    for value in taken:
        load(key.table.file, around(name, key, value))
    for value in (*refused, *wrong_types(key)):
        with pytest.raises(ConfigError) as error:
            load(key.table.file, around(name, key, value))
        named = key.name if key.name not in ("train", "validation", "test") else "train"
        assert named in str(error.value) or str(value) in str(error.value)


def wrong_types(key: Key) -> tuple[Any, ...]:
    values: dict[Any, tuple[Any, ...]] = {
        int: ("1", 1.5, True),
        float: ("1", True),
        bool: ("true", 1),
    }
    return (*values.get(key.kind, (1,)), [[1]])


def test_an_integer_is_accepted_where_a_number_is_expected() -> None:
    for name, key in EVERY_KEY:
        if key.kind is float and 1 in key.range.taken:
            load(key.table.file, around(name, key, 1))


def test_every_key_has_a_range_and_a_meaning_and_no_other_has() -> None:
    used: dict[type[Any], set[str]] = {}
    for _name, key in EVERY_KEY:
        assert key.meaning.endswith("."), key
        used.setdefault(key.owner, set()).add(key.name)
    assert {cls: set(names) for cls, names in RANGES.items()} == used
    assert {cls: set(names) for cls, names in MEANINGS.items()} == used
    of_tables = {".".join((*k.table.path, k.name)) for _, k in keys() if k.is_table}
    assert of_tables == set(TABLES)


def test_every_default_is_one_that_loads() -> None:
    for name, key in EVERY_KEY:
        default = key.field.default
        if isinstance(default, str | int | float) and key.name not in (
            "train",
            "validation",
            "test",
        ):
            load(key.table.file, around(name, key, default))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.text[:40])
def test_each_rule_for_several_keys_holds(rule: Rule) -> None:
    load(rule.file, rule.taken)
    with pytest.raises(ConfigError):
        load(rule.file, rule.refused)


def test_the_rules_name_the_methods_and_strategies_that_they_hold_for() -> None:
    for name in methods.names():
        traits = methods.get(name).traits
        tried: dict[str, dict[str, Any]] = {
            "rounds": {"rounds": 2},
            "strategy": {"strategy": "fedadam"},
            "personal_epochs": {"personal_epochs": 1},
        }
        refused = {what for what, plan in tried.items() if not loads({"method": name, **plan})}
        expected = {
            "rounds": traits.one_round,
            "strategy": not traits.is_averaged,
            "personal_epochs": name == "zeroshot"
            or methods.get(name).personal is not None
            or traits.learns_from_validation,
        }
        assert refused == {what for what, is_so in expected.items() if is_so}, name
    for name in strategies.names():
        weighted = {"strategy": name, "options": {"weighting": "pictures"}}
        assert loads(weighted) != strategies.get(name).is_uniform
        assert loads({"strategy": name})


def loads(plan: dict[str, Any]) -> bool:
    try:
        load("fleet.toml", fleet(plan=plan))
    except ConfigError:
        return False
    return True


# Log events.


def test_every_event_has_a_meaning_and_its_program() -> None:
    named = {(program, event) for program, events in EVENTS.items() for event in events}
    assert set(log_event_reference.found()) == named


def test_every_field_of_an_event_has_a_meaning() -> None:
    used = {
        log_event_reference.meaning_of(event, field)
        for (_, event), fields in log_event_reference.found().items()
        for field in fields
    }
    assert used == set(FIELDS)


def test_every_meaning_is_a_sentence() -> None:
    for events in EVENTS.values():
        for name, event in events.items():
            for text in filter(None, (event.meaning, event.action)):
                assert text.endswith("."), name


def test_the_examples_are_events_with_their_fields() -> None:
    found = log_event_reference.found()
    for program, event, fields in log_event_reference.EXAMPLES:
        assert list(fields) == list(found[program, event])


def scanned(tmp_path: Path, source: str, module: str = "agent/x.py") -> list[log_scan.Site]:
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return log_scan.sites(tmp_path)


def test_the_scan_finds_events_and_fields(tmp_path: Path) -> None:
    source = (
        "from fedclip_edge import log\ndef f():\n    log.event('a', x=1, **y)\n    log.mute()\n"
    )
    scanned(tmp_path, source)
    first, second = scanned(tmp_path, "box.note('c', why, topic)", "transport/x.py")
    assert (first.event, first.fields) == ("a", ("x", "**y"))
    assert (second.event, second.fields) == ("c", ("reason", "topic"))


@pytest.mark.parametrize(
    "source",
    [
        "from fedclip_edge import log\nlog.event(name)",
        "from fedclip_edge import log\nsay = log.event",
        "from fedclip_edge import log\nlog.write(stream, 'a', {})",
        "from fedclip_edge import log as l\nl.event('a')",
        "from fedclip_edge.log import event\nevent('a')",
        "import fedclip_edge.log\nfedclip_edge.log.event('a')",
    ],
)
def test_the_scan_refuses_what_it_would_miss(tmp_path: Path, source: str) -> None:
    with pytest.raises(log_scan.UnknownUseError):
        scanned(tmp_path, source)


def test_a_name_from_a_variable_is_refused_on_the_way_to_the_inbox_too(tmp_path: Path) -> None:
    with pytest.raises(log_scan.UnknownUseError):
        scanned(tmp_path, "box.note(name, why)", "transport/x.py")


# Exit codes.


def test_every_error_class_is_on_the_page_with_a_code_of_its_own() -> None:
    classes = exit_code_reference.classes()
    assert set(classes) == set(exit_code_reference.CODES)
    codes = [cls.exit_code for cls in classes]
    assert len(set(codes)) == len(codes)
    assert all(10 <= code < 30 for code in codes)


def test_the_codes_that_the_unit_does_not_restart_on_are_those_of_classes() -> None:
    hopeless = exit_code_reference.unit()["RestartPreventExitStatus"].split()
    known = {c.exit_code for c in exit_code_reference.classes()} | {click.UsageError.exit_code}
    assert {int(code) for code in hopeless} <= known


def texts_of_the_code() -> Iterator[str]:
    """Every string of the package; a value that is inserted at run time is an ellipsis."""
    for path in (ROOT / "fedclip_edge").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
                yield "".join(map(str, parts))


def test_the_messages_that_the_guides_quote_are_in_the_code() -> None:
    texts = list(texts_of_the_code())
    quoted = 0
    for page in ROOT.glob("docs/how-to/*.md"):
        text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
        for message in re.findall(r'\*\*"([^"]+)"\*\*', text):
            quoted += 1
            assert any(message in of_code for of_code in texts), f"{page.name}: {message}"
    assert quoted > 20
