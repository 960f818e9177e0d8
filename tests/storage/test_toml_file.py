"""TOML files with the usual mistakes: each error names the line and what is usual."""

from __future__ import annotations

from pathlib import Path

import pytest
import system
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.config.agent import load_agent
from fedclip_edge.errors import ConfigError

NO_QUOTE = "a closing quote is missing"
ESCAPE = r"in double quotes, \ begins an escape; write a path with /, or in '...'"
TABLE = "write the name of a table in [ ], on a line of its own: [broker]"
LIST = "a list needs commas between its entries, and a ] at its end"


def refusal(folder: Path, text: str) -> str:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_agent(path)
    return str(refused.value).removeprefix(str(path))


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("fleet = lab", 1, 'text needs quotes: fleet = "lab"'),
        ("host = 192.168.1.5", 1, 'text needs quotes: host = "192.168.1.5"'),
        ("host = mqtt.example.org # ours", 1, 'text needs quotes: host = "mqtt.example.org"'),
        ("folder = C:\\pics", 1, "text needs quotes: folder = 'C:\\pics'"),
        ('folder = "C:\\pics"', 1, ESCAPE),
        ('folder = "C:\\Users\\me"', 1, ESCAPE),
        ("reports = True", 1, "write true instead of True"),
        ("reports = FALSE", 1, "write false instead of FALSE"),
        ("reports = yes", 1, "write true instead of yes"),
        ("reports = off", 1, "write false instead of off"),
        ("methods = None", 1, "TOML has no None; leave the line out"),
        ('id = "a"\nfleet "lab"', 2, "= is missing; write KEY = VALUE"),
        ('fleet: "lab"', 1, "write = instead of :"),
        ('fleet == "lab"', 1, "write one ="),
        ("my fleet = 1", 1, "a key has no spaces; write KEY = VALUE"),
        ("fleet =", 1, "a value is missing after fleet ="),
        ("id = 1\nfleet = 2\nid = 3\n", 3, "the key 'id' is already in line 1; keep one"),
        ("id = 1\nid = 3", 2, "the key 'id' is already in line 1; keep one"),
        ("id = 1\n[data]\nid = 2\nid = 3\n", 4, "the key 'id' is already in line 3; keep one"),
        (
            "[data]\ntrain = 1\n[broker]\n[data] # again\n",
            4,
            "the table [data] is already in line 1; put its keys together",
        ),
        ("data = {}\n[data]\n", 2, "[data] is already given above; write it once"),
        ("fleet = “lab”", 1, "write straight quotes, \" or ', instead of “"),
        ("fleet = ‘lab’", 1, "write straight quotes, \" or ', instead of ‘"),
        ('domain = "it’s" x', 1, "there is text after the value"),
        ("train = 0,6", 1, "write a dot instead of the comma: 0.6"),
        ("deadline_s = 1.000,5", 1, "write a dot instead of the comma: 1000.5"),
        ("train = .6", 1, "a number needs a digit before its dot, as in 0.5"),
        ("train = 1.", 1, "a number needs a digit after its dot; write 1.0"),
        ("port = 01883", 1, "a number must not begin with 0; write 1883"),
        ("deadline_s = 30s", 1, "write the number without a unit, or text in quotes"),
        ("deadline_s = 600 s", 1, "write the number without a unit, or text in quotes"),
        ('id = "a";', 1, "remove ; after the value"),
        ('id = "a",', 1, "remove , after the value"),
        ('id = "a", fleet = "b"', 1, "write each KEY = VALUE on a line of its own"),
        ('domain = "it"s"', 1, "there is text after the value; close the quotes at its end"),
        ('id = "a\nfleet = "b"', 1, NO_QUOTE),
        ("id = 'a", 1, NO_QUOTE),
        ('id = """a\nb\n\n', 1, NO_QUOTE),
        ("[data\ntrain = 1", 1, TABLE),
        ('[broker] host = "x"', 1, TABLE),
        ('roles = ["train" "evaluate"]', 1, LIST),
        ('roles = [\n  "train",\n\n[data]\n', 4, "the ] of a list is missing above"),
        ('roles = ["train",\ntrain = 0.6', 2, "the ] of a list is missing above"),
        ("roles = [train, evaluate]", 1, 'put each text of a list in quotes: ["train"]'),
        ('roles = ["train", a-b # x\n]', 1, 'put each text of a list in quotes: ["a-b"]'),
        ("x = [True]", 1, "write true instead of True"),
        ("x = [1,,2]", 1, LIST),
        ('roles = "train", "evaluate"', 1, "a list needs [ ] around it: roles = [...]"),
        ('roles = [\n  "train"\n\n', 2, LIST),
        ('roles = ["train",', 1, LIST),
        ("data = { train = 1\n", 1, "a table in { } must be on one line"),
        ("// mine\nid = 1", 1, "a comment begins with #"),
        ("id\u00a0= 1", 1, "delete the invisible character U+00A0 NO-BREAK SPACE at column 3"),
        ("\n\u200bid = 1", 2, "delete the invisible character U+200B ZERO WIDTH SPACE at column 1"),
        ('{"id": "a"}', 1, "write KEY = VALUE, or [TABLE]"),
    ],
)
def test_a_mistake_is_explained(tmp_path: Path, text: str, line: int, said: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f", line {line} (")
    assert f") is not valid TOML: {said}" in message
    shown = text.split("\n")[line - 1].strip()
    assert f"({shown})" in message or "<U+" in message


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    for text in (
        "password = hunter2",
        '[broker]\npassword = "hunter2',
        "x = {password = hunter2}",
        "passwd = hunter2",
        "pwd = 01hunter2",
        "password = [hunter2]",
        'password = "hunter2", "b"',
    ):
        message = refusal(tmp_path, text)
        assert "hunter2" not in message
        assert "..." in message
    assert refusal(tmp_path, "password = 12,34").endswith('text needs quotes: password = "..."')


@pytest.mark.parametrize(("written", "read"), [("temp", r"\t"), ("new", r"\n"), ("u0000", r"\x00")])
def test_a_path_that_toml_reads_otherwise_is_named(tmp_path: Path, written: str, read: str) -> None:
    message = refusal(
        tmp_path,
        f'id = "a"\nfleet = "b"\nstate_dir = "s"\nbundle = "C:\\{written}"\n[data]\nfolder = "d"',
    )
    assert f": bundle: the path 'C:{read}" in message
    assert "write a path with /, or in '...'" in message


@pytest.mark.parametrize(("text", "said"), [("x = " + "[" * 5000, "nested"), ("9" * 5000, "=")])
def test_too_much_is_no_traceback(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)
    assert "thousands of digits" in refusal(tmp_path, "x = " + "9" * 5000)


_SNIPPETS = st.sampled_from(
    [
        "a",
        "=",
        '"',
        "'",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        "\n",
        " ",
        "1",
        "#",
        "\\",
        "“",
        "\u200b",
        "\r",
    ]
)


@given(st.lists(_SNIPPETS, max_size=20).map("".join) | st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "agent.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as refused:  # at least: the key 'id' is missing
        load_agent(path)
    assert str(refused.value).startswith(str(path))


def test_the_command_says_it_in_one_line_and_ends_with_10(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_bytes('fleet = "lab"\r\nbundle = bundle\r\n'.encode("utf-16"))
    done = system.run("serve", tmp_path / "fleet.toml")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        f"fedclip-edge: {tmp_path}/fleet.toml, line 2 (bundle = bundle) is not valid TOML: text "
        'needs quotes: bundle = "bundle"\n'
    )
