"""The form of docstrings and comments, in the package and in the code next to it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkout import ROOT

from fedclip_edge import errors

pytestmark = pytest.mark.one_python
FOLDERS = ("fedclip_edge", "tests", "benchmarks", "examples")
FILES = sorted(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))
MARKDOWN = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "reference" not in path.parts
)
PACKAGE = [path for path in FILES if path.is_relative_to(ROOT / "fedclip_edge")]
QUESTION_WORDS = {
    "What", "Whatever", "When", "Where", "Whether", "Which", "Who", "Whoever", "Why", "How",
}  # fmt: skip
LINE_LENGTH = 100
NOT_PROSE = ("# noqa", "# type: ignore")
ERRORS = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"ValueError"}
# An argument or a result that is one array; a mapping of names to arrays follows a layout.
ARRAY = re.compile(r"(?<!str, )\b(?:F32|F64|I64|U8|NDArray|torch\.Tensor)\b")
# (N, D), (3, S, S), (k,); or words where the shape is free.
SHAPE = re.compile(r"\((?:[\w+*/ -]+|\.\.\.)(?:,[\w+*/ .,-]*)\)|\b(?:shape|scalar|layout|length)\b")
# "as `Transport.next_event` defines it", "the errors of `open_encoder`"
ELSEWHERE = re.compile(r"(?:as|errors of) `[\w.]+`")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, its classes and functions, with the lines of their owners."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, owners) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def contracts(path: Path) -> Iterator[tuple[ast.FunctionDef, str]]:
    """The public functions and methods of a module that have a docstring, and the docstring."""
    groups = [ast.parse(path.read_text(encoding="utf-8")).body]
    for group in groups:  # it grows: the bodies of public classes follow
        public = [
            node
            for node in group
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        ]
        groups += [node.body for node in public if isinstance(node, ast.ClassDef)]
        for node in public:
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield node, text


def passed(function: ast.FunctionDef) -> list[str]:
    """The annotations of a function's arguments and result, as source text."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return [ast.unparse(annotation) for annotation in annotations if annotation is not None]


def raised(function: ast.FunctionDef) -> set[str]:
    """The names of the errors that a function raises itself, except those that it handles."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(error).rpartition(".")[2])
    return found & ERRORS


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_docstring_opens_with_a_noun_or_a_verb(path: Path) -> None:
    for line, text in docstrings(path):
        first = text.split(maxsplit=1)[0].strip(",.:")
        assert first not in QUESTION_WORDS, f"{path}:{line}: {text[:60]}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_lines_of_prose_end_where_lines_of_code_do(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    prose = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.string.startswith(('"""', 'r"""')):
            prose |= set(range(token.start[0], token.end[0] + 1))
    long = {
        n
        for n in prose
        if len(lines[n - 1]) > LINE_LENGTH and not any(mark in lines[n - 1] for mark in NOT_PROSE)
    }
    assert not long, f"{path}: lines {sorted(long)}"


@pytest.mark.parametrize("path", MARKDOWN, ids=name_of)
def test_lines_of_documents_end_there_too(path: Path) -> None:
    """Tables, blocks of code and links have no line breaks."""
    prose = re.sub(
        r"(?ms)^ *```.*?^ *```", lambda code: "\n" * code[0].count("\n"), path.read_text()
    )
    long = [
        number
        for number, line in enumerate(prose.splitlines(), 1)
        if len(line) > LINE_LENGTH and not line.lstrip().startswith("|") and "](" not in line
    ]
    assert not long, f"{path}: lines {long}"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_public_function_gives_the_shapes_of_its_arrays(path: Path) -> None:
    for function, text in contracts(path):
        if any(ARRAY.search(annotation) for annotation in passed(function)):
            assert SHAPE.search(text), f"{path}:{function.lineno}: {function.name}"


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_a_public_function_names_the_errors_that_it_raises(path: Path) -> None:
    if path.parent.name == "cli":
        return  # these docstrings are the commands' help
    for function, text in contracts(path):
        missing = {error for error in raised(function) if error not in text}
        assert not missing or ELSEWHERE.search(text), (
            f"{path}:{function.lineno}: {function.name} raises {missing}"
        )
