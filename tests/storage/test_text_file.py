"""Text files in the encodings that people's editors write, and JSON files with a mistake."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import system
from hypothesis import given
from hypothesis import strategies as st
from signing_request import request

from fedclip_edge.config.agent import load_agent
from fedclip_edge.errors import ConfigError
from fedclip_edge.exporting.inputs import read_class_names, read_encoder_file, read_prompts
from fedclip_edge.exporting.recipe import read_recipe
from fedclip_edge.exporting.sources import CONFIG, folder_config
from fedclip_edge.pki import registry
from fedclip_edge.storage.text_file import decode, parse_json

AGENT = """\
id = "cam-01"
fleet = "lab"
domain = "Küche"
bundle = "bundle"
state_dir = "state"
[data]
folder = "Bilder/Tür"
"""
REGISTRY = json.dumps({"fleet": "lab", "host": "küche", "port": 1, "coordinator": "0" * 64})
MARKED = ("utf-8", "utf-8-sig", "utf-16", "utf-32")


def encoded(text: str, encoding: str) -> bytes:
    return text.replace("\n", "\r\n").encode(encoding)


@pytest.mark.parametrize("encoding", MARKED)
def test_every_file_that_a_person_writes_is_read(tmp_path: Path, encoding: str) -> None:
    def written(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_bytes(encoded(text, encoding))
        return path

    agent = load_agent(written("agent.toml", AGENT))
    assert (agent.id, agent.domain, agent.data.folder.name) == ("cam-01", "Küche", "Tür")
    assert read_class_names(written("c.txt", "Tür\nTor\n")) == ("Tür", "Tor")
    assert read_class_names(written("c.json", '["Tür",\n"Tor"]')) == ("Tür", "Tor")
    assert read_prompts(written("p.txt", "die {}\nein Bild: {}")) == ("die {}", "ein Bild: {}")
    assert read_recipe(written("r.toml", 'model = "M"\nprompts = ["für {}"]')).prompts == (
        "für {}",
    )
    described = "image_size = 32\nmean = [0, 0, 0]\nstd = [1, 1, 1]\nprompt = 'ä'\n"
    described += "interpolation = 'bicubic'\nresize = 'shortest'\nresize_px = 32\n"
    assert read_encoder_file(written("e.toml", described)).prompt == "ä"
    assert registry.read(written("devices.json", REGISTRY)).host == "küche"
    written(CONFIG, '{"model_cfg": {"text_cfg": {"a": "ü"}}}')
    assert folder_config(tmp_path)["text_cfg"] == {"a": "ü"}


def test_a_signing_request_in_utf_16_is_read(tmp_path: Path) -> None:
    site, csr = tmp_path / "site", tmp_path / "cam-01.csr"
    assert system.run("broker", "init", site, "--host", "localhost").returncode == 0
    pem = request("cam-01")
    csr.write_bytes(pem.decode().encode("utf-16"))
    done = system.run("enroll", "--csr", csr, "--site", site, "--out", tmp_path / "a.tar")
    assert (done.returncode, done.stderr) == (0, "")


@given(st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"])))
def test_what_is_written_is_read(text: str) -> None:
    for encoding in MARKED:
        if not text.startswith("\ufeff"):
            assert decode(text.encode(encoding), "f") == text
    assert decode(text.replace("\n", "\r\n").encode(), "f") == decode(text.encode(), "f")


@given(st.binary())
def test_no_bytes_give_another_error(data: bytes) -> None:
    for bom in (b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0"):
        with contextlib.suppress(ConfigError):
            assert "\0" not in decode(bom + data, "f")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b'id = "a"\nfolder = "Caf\xe9"\n',
            (
                "f, line 2: the byte 0xe9 at offset 22 is not UTF-8. Read as Windows-1252, the line "
                'is: folder = "Café". Save the file as UTF-8'
            ),
        ),
        (b"\xef\xbb\xbf\xff", "f, line 1: the byte 0xff at offset 3 is not UTF-8"),
        (b'password = "\xe9"', 'the line is: password = "....'),
        (b"\xff\xfea", "f begins as UTF-16 text, but is incomplete or damaged; save it again"),
        ("a\nb".encode("utf-16-le"), "f, line 1: contains a NUL character"),
        (b"id\n\0", "f, line 2: contains a NUL character, so it is not a text file, or is UTF-16"),
    ],
)
def test_other_bytes_are_named_with_their_line(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        decode(data, "f")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "f, line 1 (empty) is not valid JSON: Expecting value at column 1; the file is empty"),
        ('["a",\n"b",\n]', "remove the comma after the last entry"),
        ('{"a": 1,}', "remove the comma after the last entry"),
        ('["a",\n"b"\n"c"]', "f, line 3 (\"c\"]) is not valid JSON: Expecting ',' delimiter"),
        ('["a"', "the file ends too early; is a bracket or a quote missing?"),
        ("['a']", "write \" instead of '"),
        ('["it’s" "b"]', "is a comma missing before it, or a quote?"),
        ("[“a”]", "write straight quotes, \" or ', instead of “"),
        (r'["C:\pics"]', r"write \\ for a backslash, or / in a path"),
        ('{"a": True}', "write true instead of True"),
        ('{"a": None}', "write null instead of None"),
        ("{a: 1}", "put the name in double quotes"),
        ("[cat]", "text needs quotes"),
        ('["a\n"]', "close the quotes in the same line"),
        ('// names\n["a"]', "remove the comment: JSON has none"),
        ('["a"]\u200b', "delete the invisible character U+200B ZERO WIDTH SPACE at column 6"),
        ('{"password": x}', '({"password": ...)'),
        ('{"a": 1, "a": 2}', "the name 'a' occurs twice in one object"),
        (r'["\ud800"]', "contains half of a character"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "a number with thousands of digits"),
    ],
)
def test_a_mistake_in_json_is_explained(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_json(text, "f")
    assert said in str(refused.value)
