"""The layers of the package, the homes of heavy libraries, and light imports."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedclip_edge

ROOT = Path(__file__).parents[1]
PACKAGE = Path(fedclip_edge.__file__).parent  # of the checkout, or of an installed wheel

# The lowest layer first. A part imports itself and lower layers, never a part of its own layer.
# ARCHITECTURE.md shows this list as its diagram and its reading order.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "log", "records"),
    ("decoding", "storage"),
    ("config", "processes"),
    ("vision", "learning", "protocol"),
    ("transport", "pki"),
    ("model_file", "prediction", "reporting", "monitoring"),
    ("web",),
    ("agent", "coordinator"),
    ("exporting",),
    ("simulating",),
    ("demo",),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

HOMES = {
    "onnxruntime": ("vision/encoder.py", "exporting/"),
    "openvino": ("vision/openvino_session.py",),
    "torch": ("learning/", "exporting/", "demo/train_tiny_clip.py"),
    "watchfiles": ("agent/file_events.py",),
    "paho": ("transport/mqtt.py", "transport/paho_client.py"),
    "open_clip": ("exporting/", "demo/train_tiny_clip.py"),
    "onnx": ("exporting/",),
    "PIL": ("vision/", "demo/"),
    "pillow_heif": ("vision/pictures.py",),
    "jinja2": ("reporting/", "web/app.py", "coordinator/page/fleet_pieces.py", "agent/page/"),
    "mlflow": ("reporting/tracking.py",),
    "tensorboard": ("reporting/tracking.py",),
    "prometheus_client": ("monitoring/exposition.py",),
    "ray": ("simulating/ray_cluster.py",),
    "starlette": ("web/", "coordinator/page/", "agent/page/"),
    "uvicorn": ("web/",),
    "rich": ("reporting/table.py", "cli/progress.py"),
    "sqlite3": ("storage/sqlite.py",),
}
MODULES_AT_THE_ROOT = 7


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported(path: Path) -> tuple[str, ...]:
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    mine = part_of(path)
    for name in imported(path):
        other = name.split(".")[1] if name.startswith("fedclip_edge.") else mine
        if other in (mine, "__version__"):
            continue
        assert mine != "__init__", f"the package itself imports {name}"
        assert RANK[other] < RANK[mine], f"{mine} imports {name}, which is not in a lower layer"


@pytest.mark.parametrize("library", HOMES)
def test_each_heavy_library_has_its_home(library: str) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users, f"nothing imports {library}: remove it from the list"
    strays = {user for user in users if not user.startswith(HOMES[library])}
    assert not strays, f"{library} is imported outside its home"


def test_every_part_has_a_layer() -> None:
    assert {part_of(path) for path in modules()} == {"__init__", *RANK}


def test_few_modules_lie_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MODULES_AT_THE_ROOT


def diagram() -> str:
    """The layers in the form of ARCHITECTURE.md, the lowest first."""
    rows = [" | ".join(parts) for parts in LAYERS]
    return "\n".join(("   " if i == 0 else "<- ") + row for i, row in enumerate(rows))


def test_the_architecture_page_shows_these_layers() -> None:
    if not (ROOT / "ARCHITECTURE.md").exists():
        pytest.skip("ARCHITECTURE.md is only in the checkout")
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert f"```\n{diagram()}\n```" in page, f"ARCHITECTURE.md should show\n{diagram()}"
    order = page.partition("## The reading order")[2].partition("\n## ")[0]
    heads = [line.partition("**")[2].partition("**")[0] for line in order.splitlines()]
    read = [name.strip(" /") for head in heads for name in head.split(",") if name]
    assert read == [part for parts in LAYERS for part in parts]


def test_the_reading_order_names_every_module() -> None:
    if not (ROOT / "ARCHITECTURE.md").exists():
        pytest.skip("ARCHITECTURE.md is only in the checkout")
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    order = page.partition("## The reading order")[2].partition("\n## ")[0]
    for path in modules():
        assert path.stem == "__init__" or f"`{path.stem}`" in order, f"{path} is not named"


def test_the_diagrams_of_data_name_modules_and_functions_that_are_used() -> None:
    if not (ROOT / "ARCHITECTURE.md").exists():
        pytest.skip("ARCHITECTURE.md is only in the checkout")
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```\n(.*?)^```", page)
    data = "\n".join(block for block in blocks if block != f"{diagram()}\n")
    parts = "|".join(part for parts in LAYERS for part in parts)
    named = re.findall(rf"\b((?:{parts})/\w+)(?:\.(?!py)(\w+))?", data)
    assert len(named) > 10
    for module, function in named:
        found = [PACKAGE / f"{module}.py", PACKAGE / module / "__init__.py"]
        assert any(path.exists() for path in found), module
        if function:
            assert is_used(Path(module).name, function), f"nothing uses {module}.{function}"


def is_used(module: str, function: str) -> bool:
    """True if code imports the function, or calls it as a module's or an object's."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).endswith(module):
                if function in {alias.name for alias in node.names}:
                    return True
            elif isinstance(node, ast.Attribute) and node.attr == function:
                owner = ast.unparse(node.value)
                if owner.rpartition(".")[2].lstrip("_").endswith(module):
                    return True
    return False


def test_every_module_says_what_it_is() -> None:
    for path in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_programs_are_started_where_they_are_also_waited_for() -> None:
    """In a test, a program that is not waited for fails a later test (see `running`)."""
    assert with_a_popen(PACKAGE) == {"processes/children.py"}
    assert with_a_popen(ROOT / "tests") == {"support/brokers.py", "support/system.py"}


def with_a_popen(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Popen")
    }


@pytest.mark.parametrize("place", ["device", "coordinator", "broker", "export"])
def test_places_hold_no_python(place: str) -> None:
    assert not list((ROOT / place).rglob("*.py"))
    assert (ROOT / place / "README.md").is_file()


HEAVY = (
    "torch",
    "onnxruntime",
    "openvino",
    "paho",
    "open_clip",
    "onnx",
    "rich",
    "jinja2",
    "prometheus_client",
    "starlette",
    "uvicorn",
)


def loaded_by(code: str) -> set[str]:
    """The names of all modules that a new interpreter has loaded after `code`."""
    report = f"{code}\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


def loads(code: str) -> set[str]:
    """The heavy libraries that a new interpreter has loaded after `code`."""
    return loaded_by(code) & set(HEAVY)


def test_the_package_and_its_help_load_nothing_heavy() -> None:
    assert loads("import fedclip_edge") == set()
    help_text = (
        "import sys; from fedclip_edge.cli.main import cli\n"
        "for argv in (['--help'], ['agent', '--help'], ['doctor', '--help'], ['serve', '--help'], ['demo', '--help'],\n"
        "             ['export', '--help'], ['broker', 'start', '--help'], ['predict', '--help'],\n"
        "             ['broker', 'init', '--help'], ['enroll', '--help'], ['revoke', '--help'],\n"
        "             ['bundle', 'verify', '--help'], ['run', 'start', '--help'], ['export-classifier', '--help'], ['simulate', '--help'],\n"
        "             ['status', '--help'], ['watch', '--help'], ['page', '--help'], ['devices', '--help'], ['runs', '--help'], ['run', 'show', '--help']):\n"
        "    cli.main(argv, standalone_mode=False)"
    )
    assert loads(help_text) == set()


@pytest.mark.parametrize(("role", "other"), [("agent", "coordinator"), ("coordinator", "agent")])
def test_a_role_loads_nothing_of_the_other(role: str, other: str) -> None:
    loaded = loaded_by(f"import fedclip_edge.{role}.process")
    assert f"fedclip_edge.{role}.process" in loaded
    assert not {name for name in loaded if name.startswith(f"fedclip_edge.{other}")}


def test_the_coordinator_needs_neither_torch_nor_onnxruntime() -> None:
    assert loads("import fedclip_edge.coordinator.process") == {"paho"}


def test_a_doctor_loads_neither_torch_nor_onnxruntime() -> None:
    """A child process runs the encoder: a library that crashes or hangs is a finding."""
    assert loads("import fedclip_edge.agent.doctor.checks") == {"paho"}


def test_the_status_of_a_fleet_needs_no_heavy_library() -> None:
    """Not even jinja2: the page of a report is an extra."""
    texts = "import fedclip_edge.cli.status_text, fedclip_edge.cli.run_text"
    assert loads(f"{texts}, fedclip_edge.coordinator.run_report") == set()


def test_vision_needs_no_torch() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is only in the extra [agent]")
    assert loads("import fedclip_edge.vision.embedding") <= {"onnxruntime"}


def test_an_agent_that_waits_has_neither_torch_nor_onnxruntime() -> None:
    assert loads("import fedclip_edge.agent.process") == {"paho"}
