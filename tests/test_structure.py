"""Which way imports point, where each heavy library lives, and what loads none of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedclip_edge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fedclip_edge.__file__).parent  # as installed: the checkout, or a wheel's

# From the ground up; a module imports from its own level or below, and the three columns of one
# level never import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__init__", "atomic", "durable", "errors", "log", "processes"),
    ("records",),
    ("config",),
    ("vision", "learning", "messaging"),
    ("store", "parked", "exporting", "model_file", "prediction", "reporting"),
    ("ledger", "learner", "believing", "contributing", "admission", "preparing"),
    (
        "announcing",
        "speaking",
        "greeting",
        "fetching",
        "evaluating",
        "receiving",
        "conducting",
        "local_learner",
    ),
    ("session", "coordinator", "agent", "serving"),
    ("demo", "simulating"),
    ("cli",),
)
COLUMNS = {"vision", "learning", "messaging"}
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

HOMES = {
    "onnxruntime": ("vision/encoder.py", "exporting/"),
    "torch": ("learning/", "exporting/", "demo/train_tiny_clip.py"),
    "paho": ("messaging/mqtt.py",),
    "open_clip": ("exporting/", "demo/train_tiny_clip.py"),
    "onnx": ("exporting/",),
    "PIL": ("vision/", "demo/"),
    "jinja2": ("reporting/",),
    "rich": ("reporting/table.py", "cli/progress.py"),
    "sqlite3": ("vision/cache.py", "durable.py", "store.py", "parked.py"),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    mine = part_of(path)
    for name in imported(path):
        if not name.startswith("fedclip_edge."):
            continue
        other = name.split(".")[1]
        other = other if other in RANK else "__init__"
        assert RANK[other] <= RANK[mine], f"{mine} imports {name} from a layer above"
        if {mine, other} <= COLUMNS:
            assert mine == other, f"{mine} imports {name} from the column beside it"


@pytest.mark.parametrize("library", HOMES)
def test_each_heavy_library_has_its_home(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users, f"nothing imports {library}: take it off the list"
    strays = {user for user in users if not user.startswith(HOMES[library])}
    assert not strays, f"{library} is imported outside its home"


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} == set(RANK)


def test_every_module_says_what_it_is() -> None:
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("place", ["device", "broker", "export"])
def test_places_hold_no_python(place: str) -> None:
    assert not list((ROOT / place).rglob("*.py"))
    assert (ROOT / place / "README.md").is_file()


HEAVY = ("torch", "onnxruntime", "paho", "open_clip", "onnx", "rich", "jinja2")


def loads(code: str) -> set[str]:
    """Which heavy libraries a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys; print(*(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_and_its_help_load_nothing_heavy() -> None:
    assert loads("import fedclip_edge") == set()
    help_text = (
        "import sys; from fedclip_edge.cli.main import cli\n"
        "for argv in (['--help'], ['agent', '--help'], ['serve', '--help'], ['demo', '--help'],\n"
        "             ['export', '--help'], ['broker', 'start', '--help'], ['predict', '--help'],\n"
        "             ['broker', 'init', '--help'], ['enroll', '--help'], ['revoke', '--help'],\n"
        "             ['bundle', 'verify', '--help'], ['export-classifier', '--help'], ['simulate', '--help']):\n"
        "    cli.main(argv, standalone_mode=False)"
    )
    assert loads(help_text) == set()


def test_the_coordinator_needs_neither_torch_nor_onnxruntime() -> None:
    assert loads("import fedclip_edge.serving") == {"paho"}


def test_vision_needs_no_torch() -> None:
    pytest.importorskip("onnxruntime", reason="only the extra [agent] brings it")
    assert loads("import fedclip_edge.vision.embedding") <= {"onnxruntime"}


def test_an_agent_that_waits_has_neither_torch_nor_onnxruntime() -> None:
    assert loads("import fedclip_edge.agent") == {"paho"}
