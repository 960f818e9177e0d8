"""TensorRT engines: their folders and options; TensorRT itself is not needed."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.errors import ConfigError, DiskError
from fedclip_edge.vision import tensorrt
from fedclip_edge.vision.tensorrt import (
    MAX_BATCH,
    MIN_BATCH,
    OPT_BATCH,
    Builder,
    check_precision,
    engine_folder,
    engines_folder,
    find_builder,
    new_engine,
    provider_options,
)

ORIN = Builder("1.23.0", "10.3.0", "Orin sm87 16")


def test_the_options_fix_one_profile_and_keep_engine_and_timings() -> None:
    assert provider_options(Path("/engines/x"), "pixel_values", 224, "fp32") == {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": "/engines/x",
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": "/engines/x",
        "trt_fp16_enable": "False",
        "trt_profile_min_shapes": "pixel_values:1x3x224x224",
        "trt_profile_opt_shapes": "pixel_values:8x3x224x224",
        "trt_profile_max_shapes": "pixel_values:32x3x224x224",
    }
    assert MIN_BATCH <= OPT_BATCH <= MAX_BATCH


def test_onnxruntime_wants_its_truth_values_in_words() -> None:
    options = provider_options(Path("x"), "pixels", 32, "fp16")
    switches = {value for name, value in options.items() if name.endswith("_enable")}
    assert switches == {"True"}
    unknown = provider_options(Path("x"), "pixels", 32, "unknown")
    assert unknown["trt_fp16_enable"] == "False"


@pytest.mark.parametrize("precision", ["int8", "int8-weights"])
def test_8_bit_is_refused_with_what_to_do(precision: str) -> None:
    with pytest.raises(ConfigError, match=f"b.onnx, which is {precision}: .* --precision fp16"):
        check_precision(precision, "b.onnx")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "unknown"])
def test_floats_are_taken(precision: str) -> None:
    check_precision(precision, "b.onnx")


TEXT = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=8)


@given(st.tuples(TEXT, TEXT, TEXT, TEXT), st.tuples(TEXT, TEXT, TEXT, TEXT))
def test_a_folder_is_of_one_encoder_and_one_builder(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    def folder(of: tuple[str, str, str, str]) -> Path:
        return engine_folder(Path("/engines"), Builder(*of[:3]), of[3])

    assert (folder(one) == folder(other)) == (one == other)


def test_a_folder_tells_a_person_what_it_is_of() -> None:
    folder = engine_folder(Path("/engines"), ORIN, "ab" * 32)
    assert folder == Path("/engines/ort-1.23.0_trt-10.3.0_Orin-sm87-16_b1-8-32") / ("ab" * 32)


@given(st.text(max_size=30))
def test_whatever_a_gpu_is_called_its_folder_is_one_part_of_a_path(gpu: str) -> None:
    key = Builder("1", "2", gpu).key
    assert re.fullmatch(r"[A-Za-z0-9._-]+", key)
    assert Path("/engines", key).parent == Path("/engines")


def test_engines_are_kept_where_configured_or_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert engines_folder(Path("/var/engines")) == Path("/var/engines")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert engines_folder(None) == Path("/cache/fedclip-edge/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert engines_folder(None) == Path("/home/ada/.cache/fedclip-edge/engines")


def test_a_new_engine_gets_its_name_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "builder" / "sha"
    with new_engine(folder) as new:
        (new / "kernel.engine").write_bytes(b"whole")
        (new / "sm87.timing").write_bytes(b"timings")
        assert not folder.exists()
    assert (folder / "kernel.engine").read_bytes() == b"whole"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["sha", "sm87.timing"]


def test_timings_of_one_encoder_serve_the_next(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with new_engine(tmp_path / name) as new:
            if name == "second":
                assert (new / "sm87.timing").read_bytes() == b"first"
            (new / "kernel.engine").touch()
            (new / "sm87.timing").write_bytes(name.encode())
    assert (tmp_path / "sm87.timing").read_bytes() == b"second"


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), ConfigError("no GPU")])
def test_a_build_that_fails_leaves_nothing(tmp_path: Path, fault: BaseException) -> None:
    def build() -> None:
        with new_engine(tmp_path / "builder" / "sha") as new:
            (new / "kernel.engine").write_bytes(b"half")
            raise fault

    with pytest.raises(type(fault)):
        build()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_build_left_goes_with_the_next(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from fedclip_edge.vision.tensorrt import new_engine\n"
        "with new_engine(pathlib.Path(sys.argv[1])) as new:\n"
        "    (new / 'kernel.engine').write_bytes(b'half')\n"
        "    os._exit(9)  # killed in the middle: no `finally` runs\n"
    )
    killed = [sys.executable, "-c", code, str(tmp_path / "sha")]
    assert subprocess.run(killed, timeout=60, check=False).returncode == 9
    assert [path.name != "sha" for path in tmp_path.iterdir()] == [True]
    with new_engine(tmp_path / "sha") as new:
        (new / "kernel.engine").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["sha"]


def test_no_engine_is_no_build(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="it supports no part of this encoder"),
        new_engine(tmp_path / "builder" / "sha") as new,
    ):
        (new / "sm87.timing").touch()
    assert list(tmp_path.iterdir()) == []


def test_of_two_builds_at_once_one_is_kept(tmp_path: Path) -> None:
    with new_engine(tmp_path / "sha") as late:
        (late / "kernel.engine").write_bytes(b"late")
        with new_engine(tmp_path / "sha") as early:
            (early / "kernel.engine").write_bytes(b"early")
    assert (tmp_path / "sha" / "kernel.engine").read_bytes() == b"early"
    assert [path.name for path in tmp_path.iterdir()] == ["sha"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(DiskError, match=r"file/sha cannot be written: .*set \[encoder\] engine_d"),
        new_engine(tmp_path / "file" / "sha"),
    ):
        pass


class Libraries:
    """Stand-ins for libnvinfer and libcuda."""

    def __init__(self, version: int = 100300, found: int = 0) -> None:
        self.version, self.found, self.loaded = version, found, list[str]()

    def __call__(self, name: str) -> Any:
        self.loaded.append(name)
        return self

    def getInferLibVersion(self) -> int:  # noqa: N802 - TensorRT's name
        return self.version

    def cuInit(self, _: int) -> int:  # noqa: N802 - CUDA's names
        return self.found

    def cuDeviceGet(self, *_: Any) -> int:  # noqa: N802
        return 0

    def cuDeviceGetName(self, name: Any, *_: Any) -> int:  # noqa: N802
        name.value = b"Orin"
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, *_: Any) -> int:  # noqa: N802
        value._obj.value = {16: 16, 75: 8, 76: 7}[which]
        return 0


@pytest.fixture
def capi(tmp_path: Path) -> Path:
    path = tmp_path / "libonnxruntime_providers_tensorrt.so"
    path.write_bytes(b"\x7fELF\0libnvinfer_plugin.so.10\0libnvinfer.so.10\0libc.so.6\0")
    return tmp_path


@pytest.mark.parametrize(("number", "version"), [(100300, "10.3.0"), (8601, "8.6.1")])
def test_the_builder_is_the_one_this_onnxruntime_loads(
    capi: Path, monkeypatch: pytest.MonkeyPatch, number: int, version: str
) -> None:
    libraries = Libraries(number)
    monkeypatch.setattr(ctypes, "CDLL", libraries)
    assert find_builder("1.23.0", capi) == Builder("1.23.0", version, "Orin sm87 16")
    assert libraries.loaded == ["libnvinfer.so.10", "libcuda.so.1"]


def test_a_missing_library_is_named(capi: Path) -> None:
    path = capi / tensorrt._LIBRARY
    path.write_bytes(b"libnvinfer.so.99\0")
    with pytest.raises(ConfigError, match=r"did not start on this box: libnvinfer\.so\.99: cannot"):
        find_builder("1.23.0", capi)
    path.unlink()
    with pytest.raises(ConfigError, match=r"did not start on this box: .*No such file"):
        find_builder("1.23.0", capi)


def test_a_box_without_a_gpu_says_so(capi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Libraries(found=100))
    with pytest.raises(ConfigError, match=r"finds no GPU \(error 100\)"):
        find_builder("1.23.0", capi)
