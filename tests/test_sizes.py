"""Files, functions and classes are short enough to see."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE_LINES = 400
FUNCTION_LINES = 40
USUAL_LINES = 20  # of nine functions in ten
ATTRIBUTES = 12
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    ranks = ("shardengine", "engine", "shards", "ipc", "tests", "perf")
    return [
        path for rank in ranks for path in (ROOT / rank).rglob("*") if path.suffix in (".py", ".c") and path.is_file()
    ]


def nodes(kind: type[ast.AST] | tuple[type[ast.AST], ...]) -> Iterator[tuple[Path, ast.AST]]:
    for path in sources():
        if path.suffix == ".py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, kind):
                    yield path.relative_to(ROOT), node


def lines_of(node: Function) -> int:
    """Of a function, without its docstring."""
    told = node.body[0] if ast.get_docstring(node) is not None else None
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if told is not None:
        assert told.end_lineno is not None
        lines -= told.end_lineno - told.lineno + 1
    return lines


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in long.items() if lines > FILE_LINES} == {}


def test_no_function_is_longer_than_40_lines_and_nine_in_ten_are_of_20_at_most() -> None:
    found: dict[str, int] = {}
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef)):
        assert isinstance(node, Function)
        found[f"{path}:{node.lineno} {node.name}"] = lines_of(node)
    assert {name: lines for name, lines in found.items() if lines > FUNCTION_LINES} == {}
    assert sum(lines <= USUAL_LINES for lines in found.values()) >= 0.9 * len(found)


def assigned(kind: ast.ClassDef) -> set[str]:
    """The attributes that the constructor of a class assigns."""
    for part in kind.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return {
                node.attr
                for node in ast.walk(part)
                if isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and isinstance(node.value, ast.Name)
                and node.value.id == "self"
            }
    return set()


def test_a_class_with_more_than_12_attributes_says_why() -> None:
    many: dict[str, int] = {}
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        if len(assigned(node)) > ATTRIBUTES and "attributes" not in (ast.get_docstring(node) or ""):
            many[f"{path} {node.name}"] = len(assigned(node))
    assert many == {}
