"""Download of a bundle: resumed after a kill, checked before use, refused by name."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from system import DEADLINE_S

from fedclip_edge.agent import bundle_store
from fedclip_edge.agent.bundle_download import BundleDownload
from fedclip_edge.agent.bundle_store import BundleStore
from fedclip_edge.agent.bundle_trial import start_trial
from fedclip_edge.agent.part_file import PartFile
from fedclip_edge.config.agent import EncoderConfig
from fedclip_edge.errors import BundleError, ConfigError
from fedclip_edge.pki import bundle_description, bundle_signature
from fedclip_edge.pki.bundle_description import describe, read_description
from fedclip_edge.pki.bundle_signature import read_signature, sign_bundle
from fedclip_edge.processes.children import Children
from fedclip_edge.protocol import chunks, signing
from fedclip_edge.protocol.message_parts import Blob
from fedclip_edge.protocol.messages import Want
from fedclip_edge.records import ClassTexts
from fedclip_edge.vision.bundle import Bundle, Golden, read_bundle, replace_classes, write_bundle
from fedclip_edge.vision.manifest import CLASSES, ENCODER

EXPORTER = signing.create_identity()
CHUNK = 1024


@dataclass
class Box:
    """A box, and the coordinator that offers it the bundle in a folder."""

    folder: Path
    children: Children
    given: Path | None = None
    now: float = 0.0
    sent: int = 0  # chunks so far
    wants: list[Want] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process, after a kill."""
        self.store = BundleStore(self.folder / "bundles", self.given)
        self.download = BundleDownload(self.store, EXPORTER.key, self.try_out)

    def try_out(self, folder: Path) -> Any:
        return start_trial(self.children, folder, EncoderConfig())

    def offer(self, bundle: Path) -> Blob:
        self.payloads: dict[str, bytes] = {}
        payload = describe(bundle)
        blob = replace(chunks.blob_of(payload, "bundle"), chunk_bytes=CHUNK)
        self.blobs = {blob.sha256: blob}
        self.payloads[blob.sha256] = payload
        signed = read_signature(bundle)
        assert signed is not None
        for name, one in read_description(payload, signed.key).blobs(CHUNK).items():
            self.blobs[one.sha256] = one
            self.payloads[one.sha256] = (bundle / name).read_bytes()
        return blob

    def step(self, offered: Blob, most: int = 2**30) -> int:
        """Let the box do a step, and answer its want with at most so many chunks."""
        self.now += 20.0
        want = self.download.poll(offered, self.now)
        if want is None:
            return 0
        self.wants.append(want)
        sent = 0
        for chunk in chunks.split(
            self.payloads[want.sha256], self.blobs[want.sha256], want.missing
        ):
            if sent == most:
                break
            self.download.receive_chunk(chunk, self.now)
            sent += 1
        self.sent += sent
        return sent

    def fetch(self, offered: Blob) -> None:
        """Let the box go on until it has the bundle, or has refused it."""
        deadline = time.monotonic() + DEADLINE_S
        while self.download.is_busy(offered):
            assert time.monotonic() < deadline
            self.step(offered)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with Children() as children:
        yield Box(tmp_path, children)


@pytest.fixture
def bundle(tmp_path: Path, random_bundle: Bundle) -> Path:
    shutil.copytree(random_bundle.folder, tmp_path / "bundle")
    sign_bundle(tmp_path / "bundle", EXPORTER)
    return tmp_path / "bundle"


def newer(bundle: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """A copy with other classes and a larger serial number."""
    copy = bundle.with_name("-".join(names))
    shutil.copytree(bundle, copy)
    vectors = np.eye(len(names), 16, dtype=np.float32)
    before = bundle_signature.serial_in(copy)
    replace_classes(read_bundle(copy), ClassTexts(names, vectors, 100.0, "a {}"))
    sign_bundle(copy, EXPORTER, above=before)
    return copy


def test_a_box_without_a_bundle_fetches_all_files_and_tries_the_encoder(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box.fetch(box.offer(bundle))
    assert box.download.is_ready
    assert box.store.current is not None
    assert read_bundle(box.store.current).classes.names == read_bundle(bundle).classes.names
    assert read_signature(box.store.current) == read_signature(bundle)
    assert "bundle_tried" in capsys.readouterr().out
    assert not box.store.parts.exists()


def test_a_kill_after_any_chunk_costs_no_chunk_that_is_on_disk(box: Box, bundle: Path) -> None:
    offered = box.offer(bundle)
    description = box.blobs[offered.sha256].chunks
    files = sum(blob.chunks for blob in box.blobs.values()) - description
    received = 0
    while received < files:
        box.restart()
        sent = 0
        while not sent:
            sent = box.step(offered, description)
            if sent and box.wants[-1].sha256 == offered.sha256:
                sent = 0  # the description is small, and fetched again
        received += sent
    box.restart()
    before = box.sent
    box.fetch(offered)
    assert box.download.is_ready
    assert box.sent == before + description
    assert received == files


def test_new_classes_are_fetched_alone_and_the_encoder_is_not_tried_again(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box.fetch(box.offer(bundle))
    capsys.readouterr()
    box.restart()
    box.sent = 0
    box.fetch(box.offer(newer(bundle)))
    assert box.download.is_ready
    said = capsys.readouterr().out
    assert f"files={CLASSES}" in said
    assert "bundle_tried" not in said
    texts = next(blob for blob in box.blobs.values() if blob.kind == "classes")
    described = next(blob for blob in box.blobs.values() if blob.kind == "bundle")
    assert box.sent == texts.chunks + described.chunks
    assert box.store.current is not None
    assert read_bundle(box.store.current).classes.names == ("a", "b")


def test_the_bundle_of_agent_toml_is_used_until_a_newer_one_is_fetched(
    box: Box, bundle: Path
) -> None:
    box.given = bundle
    box.restart()
    assert box.store.current == bundle
    box.fetch(box.offer(newer(bundle)))
    fetched = box.store.current
    assert fetched not in (None, bundle)
    assert box.store.roll_back() == bundle
    assert box.store.roll_back() == fetched
    replace_classes(read_bundle(bundle), read_bundle(bundle).classes)
    sign_bundle(bundle, EXPORTER, above=2**40)  # the owner puts a newer one there
    assert box.store.current == bundle


def test_after_a_rollback_the_same_bundle_is_not_fetched_again(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="no earlier bundle to go back to"):
        box.store.roll_back()
    box.fetch(box.offer(bundle))
    box.restart()
    second = newer(bundle)
    box.fetch(box.offer(second))
    first = box.store.roll_back()
    assert read_bundle(first).classes.names == read_bundle(bundle).classes.names
    for again in (second, bundle):
        box.restart()
        box.fetch(box.offer(again))
        assert not box.download.is_ready
        assert "this device has had" in capsys.readouterr().out
        assert box.store.current == first
    box.restart()
    before = bundle_signature.serial_in(second)
    sign_bundle(bundle, EXPORTER, above=before)
    box.fetch(box.offer(bundle))
    assert box.download.is_ready


def test_one_bundle_before_the_one_in_use_is_kept(box: Box, bundle: Path) -> None:
    made = [bundle]
    for names in (("a", "b"), ("c", "d"), ("e", "f")):
        made.append(newer(made[-1], names))
    for one in made:
        box.restart()
        box.fetch(box.offer(one))
        assert box.download.is_ready
    left = [entry for entry in box.store.folder.iterdir() if entry.is_dir()]
    assert len(left) == 2


def refusal(box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    box.fetch(box.offer(bundle))
    assert not box.download.is_ready
    lines = [line for line in capsys.readouterr().out.splitlines() if "bundle_refused" in line]
    assert len(lines) == 1
    return lines[0]


def test_a_bundle_that_another_key_signed_is_refused(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign_bundle(bundle, signing.create_identity())
    assert "not with the fleet's export key" in refusal(box, bundle, capsys)
    assert len({want.sha256 for want in box.wants}) == 1  # no file was asked for


def test_a_file_larger_than_its_kind_allows_is_refused_before_any_of_it_is_fetched(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = box.offer(bundle)
    small = {**bundle_description.MAX_BYTES, "encoder": 1000}
    monkeypatch.setattr(bundle_description, "MAX_BYTES", small)
    box.fetch(offered)
    assert f"{ENCODER} has" in capsys.readouterr().out
    assert {want.sha256 for want in box.wants} == {offered.sha256}
    box.restart()
    large = Blob("a" * 64, 3 * 2**20, "bundle")
    assert box.download.poll(large, 1e6) is None
    assert "limit 2097152" in capsys.readouterr().out


def test_an_encoder_that_gives_other_features_than_at_export_is_refused(
    box: Box, bundle: Path, random_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = random_bundle.golden()
    other = Golden(golden.pixels, golden.features * 2)
    write_bundle(
        bundle,
        replace(random_bundle.manifest, files={}),
        random_bundle.encoder_path.read_bytes(),
        random_bundle.classes,
        other,
        replace_existing=True,
    )
    sign_bundle(bundle, EXPORTER)
    assert "gives other features than on the machine that exported it" in refusal(
        box, bundle, capsys
    )
    assert box.store.current is None


@pytest.mark.parametrize("field_", ["location", "data"])
def test_an_encoder_with_weights_in_another_file_is_refused(
    box: Box,
    bundle: Path,
    random_bundle: Bundle,
    capsys: pytest.CaptureFixture[str],
    field_: str,
) -> None:
    model = onnx.load_model_from_string(random_bundle.encoder_path.read_bytes())
    tensor = model.graph.initializer[0]
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    if field_ == "location":
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    write_bundle(
        bundle,
        replace(random_bundle.manifest, files={}),
        model.SerializeToString(),
        random_bundle.classes,
        random_bundle.golden(),
        replace_existing=True,
    )
    sign_bundle(bundle, EXPORTER)
    assert "keeps weights in another file" in refusal(box, bundle, capsys)


def test_a_tensor_in_an_inner_graph_is_found_and_other_bytes_are_refused(tmp_path: Path) -> None:
    from fedclip_edge.vision.onnx_external import check_self_contained

    inner = numpy_helper.from_array(np.ones(3, np.float32), "inner")
    path = tmp_path / "encoder.onnx"
    for is_outside in (False, True):
        if is_outside:
            inner.data_location = onnx.TensorProto.EXTERNAL
        branch = helper.make_graph([], "branch", [], [], [inner])
        node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
        model = helper.make_model(helper.make_graph([node], "outer", [], []))
        path.write_bytes(model.SerializeToString())
        if not is_outside:
            check_self_contained(path)
    with pytest.raises(BundleError, match="keeps weights in another file"):
        check_self_contained(path)
    for data in (b"\xff" * 40, b"\x3a\xff\x01\x00", b"\x0b", b"no protobuf at all"):
        path.write_bytes(data)
        with pytest.raises(BundleError, match="not a valid ONNX file"):
            check_self_contained(path)


def test_a_file_that_lost_bytes_with_the_power_is_fetched_again(
    box: Box, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = box.offer(bundle)
    encoder = next(blob for blob in box.blobs.values() if blob.kind == "encoder")
    box.store.parts.mkdir(parents=True)
    part = PartFile(box.store.parts, encoder)
    for index in range(encoder.chunks):
        part[index] = b"\0"  # marked as arrived, but not the bytes
    part.close()
    box.fetch(offered)
    assert box.download.is_ready
    assert "bundle_file_damaged" in capsys.readouterr().out


def test_a_full_disk_is_said_and_tried_again(
    box: Box,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    offered = box.offer(bundle)
    full = SimpleNamespace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: full)
        for _ in range(10):
            box.step(offered)
        said = capsys.readouterr().out
        assert "bundle_not_stored" in said
        assert "No space left on device" in said
        assert box.download.is_busy(offered)
    box.fetch(offered)
    assert box.download.is_ready


def test_a_fetched_bundle_that_is_damaged_later_is_fetched_again(box: Box, bundle: Path) -> None:
    offered = box.offer(bundle)
    box.fetch(offered)
    assert box.store.current is not None
    (box.store.current / CLASSES).write_bytes(b"damaged")
    with pytest.raises(BundleError):
        box.store.open()
    assert box.store.open() is None
    box.restart()
    box.fetch(offered)
    assert box.download.is_ready


def test_a_damaged_note_of_the_bundle_in_use_says_what_to_do(box: Box) -> None:
    box.store.folder.mkdir()
    for text in ("{", "[]", '{"current": 1}', json.dumps({"else": 1})):
        (box.store.folder / bundle_store._CHOSEN).write_text(text)
        with pytest.raises(ConfigError, match=r"delete .*bundles, and the bundle is fetched again"):
            _ = box.store.current


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b"\xff", b'{"manifest.json": 1, "signature.json": 2}', b"[" * 10**5],
    ids=lambda payload: payload[:12].decode(errors="replace") or "empty",
)
def test_a_description_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(BundleError):
        read_description(payload, EXPORTER.key)


def test_the_hash_of_each_file_is_in_what_is_signed(bundle: Path) -> None:
    found = read_description(describe(bundle), EXPORTER.key)
    for name, blob in found.blobs(CHUNK).items():
        assert blob.sha256 == hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        assert blob.size_bytes == (bundle / name).stat().st_size


def test_a_trial_on_the_cpu_is_limited(random_bundle: Bundle) -> None:
    """With the default settings too, which let the agent choose the provider later."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from fedclip_edge.agent.bundle_trial import _limit\n"
        "from fedclip_edge.config.agent import EncoderConfig\n"
        "_limit(Path(sys.argv[1]), EncoderConfig())\n"
        "print(resource.getrlimit(resource.RLIMIT_FSIZE)[0])\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] < 100 * 2**30)"
    )
    words = [sys.executable, "-c", code, str(random_bundle.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]
