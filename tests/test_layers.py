"""The layer rule, read from the sources: what a file may import, what a package lists, who owns an outside library."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANKS = {"ipc": 0, "shards": 1, "engine": 2}
CLI = "engine/cli/"
OWNERS = {
    "lmdb": ("shards/store/",),
    "xxhash": ("shards/digest.py",),
    "asyncio": ("engine/shell.py", CLI),
    "uvloop": ("engine/shell.py", CLI),
    "click": (CLI,),
    "rich": (CLI,),
}
_LISTED = re.compile(r"^ {4}(\w+\.py|\w+/) ", re.MULTILINE)


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in RANKS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def listed(text: str) -> list[str]:
    """The files that a package's docstring lists, lowest first."""
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    return _LISTED.findall(docstring.partition("Files, lowest first:")[2])


def imported(path: str, text: str, files: Mapping[str, str]) -> set[str]:
    """What a file imports anywhere in it: files of the house by their path, outside libraries by their name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            assert node.level == 0, f"{path}: a relative import"
            inside = [f"{base}.{name.name}" for name in node.names]
            names = [name if _file(name, files) else base for name in inside]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        found |= {_file(name, files) or name.partition(".")[0] for name in names}
    return found


def _file(module: str, files: Mapping[str, str]) -> str | None:
    stem = module.replace(".", "/")
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files), None)


def places(files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Where each file stands: a file may import those that stand lower. `__init__.py` stands on top of its package,
    but below the command line, which uses the engine as anybody does; `__main__.py` above everything."""
    found: dict[str, tuple[int, ...]] = {}
    for package, rank in RANKS.items():
        order = listed(files[f"{package}/__init__.py"])
        for at, name in enumerate(order):
            found |= _folder(f"{package}/{name}", files, (rank, 0, at))
        found[f"{package}/__init__.py"] = (rank, 1)
    for at, name in enumerate(listed(files.get(f"{CLI}__init__.py", ""))):
        found[CLI + name] = (2, 2, at)
    found[f"{CLI}__init__.py"] = (2, 3)
    found["engine/__main__.py"] = (2, 4)
    return found


def _folder(path: str, files: Mapping[str, str], place: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A file at its place, or all files of a folder there, in the order that its own `__init__.py` lists."""
    if not path.endswith("/") or path == CLI:
        return {path: place}
    order = listed(files[f"{path}__init__.py"])
    return {path + name: (*place, at) for at, name in enumerate([*order, "__init__.py"])}


def violations(files: Mapping[str, str]) -> list[str]:
    """Every breach of the layer rule, in words."""
    found, standing = [], places(files)
    for path, text in files.items():
        if path not in standing:
            found.append(f"{path} is not listed by its package")
            continue
        for name in imported(path, text, files):
            if name in files:
                if standing.get(name, ()) >= standing[path] and name in standing:
                    found.append(f"{path} imports {name}, which is not below it")
            elif name in OWNERS and not any(_owns(owner, path) for owner in OWNERS[name]):
                found.append(f"{path} imports {name}, which belongs to {', '.join(OWNERS[name])}")
    found += [f"{path} is listed and not there" for path in standing if path not in files and not path.endswith("/")]
    return found


def _owns(owner: str, path: str) -> bool:
    return path.startswith(owner) if owner.endswith("/") else path == owner


def test_an_import_goes_down_and_a_library_has_one_owner() -> None:
    assert violations(sources()) == []


def test_every_package_is_of_the_house() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "perf"} == set(RANKS)


HOUSE = {
    "ipc/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    errors.py  e\n    link.py    l\n"""',
    "ipc/errors.py": "",
    "ipc/link.py": "from ipc.errors import E",
    "shards/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    digest.py  d\n    store/     s\n"""',
    "shards/digest.py": "import xxhash",
    "shards/store/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    env.py     e\n    writer.py  w\n"""\n'
    "from shards.store.writer import Store",
    "shards/store/env.py": "import lmdb\nfrom shards.digest import checksum\nfrom ipc import link",
    "shards/store/writer.py": "import lmdb\nfrom shards.store.env import open_environment",
    "engine/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    commit.py  c\n    shell.py   e\n    cli/       l\n"""\n'
    "from engine.shell import Engine",
    "engine/__main__.py": "from engine.cli import main",
    "engine/commit.py": "import msgspec",
    "engine/shell.py": "import asyncio\ndef run(): import uvloop\nfrom engine import commit\nfrom shards import store",
    "engine/cli/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    common.py  c\n    app.py     a\n"""\n'
    "from engine.cli.app import main",
    "engine/cli/common.py": "import asyncio\nimport rich.console\nfrom engine import Engine",
    "engine/cli/app.py": "import click\nfrom engine.cli.common import say\nfrom engine.commit import Commit",
}


def test_a_house_in_order_has_no_violation() -> None:
    assert violations(HOUSE) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("ipc/errors.py", "from ipc.link import Link", "ipc/errors.py imports ipc/link.py, which is not below it"),
        ("ipc/errors.py", "def f():\n    import ipc.link", "ipc/errors.py imports ipc/link.py, which is not below it"),
        ("ipc/link.py", "from shards import digest", "ipc/link.py imports shards/digest.py, which is not below it"),
        ("ipc/link.py", "import engine", "ipc/link.py imports engine/__init__.py, which is not below it"),
        ("ipc/link.py", "from ipc import anything", "ipc/link.py imports ipc/__init__.py, which is not below it"),
        ("engine/commit.py", "from engine import Engine", "engine/commit.py imports engine/__init__.py"),
        ("engine/shell.py", "from engine.cli import main", "engine/shell.py imports engine/cli/__init__.py"),
        ("engine/cli/common.py", "from engine.cli.app import main", "engine/cli/common.py imports engine/cli/app.py"),
        ("shards/digest.py", "import lmdb.verify", "shards/digest.py imports lmdb, which belongs to shards/store/"),
        ("engine/commit.py", "from xxhash import xxh64", "engine/commit.py imports xxhash, which belongs to"),
        ("engine/commit.py", "import asyncio", "engine/commit.py imports asyncio, which belongs to engine/shell.py"),
        ("engine/shell.py", "import rich", "engine/shell.py imports rich, which belongs to engine/cli/"),
        ("engine/cli/app.py", "import lmdb", "engine/cli/app.py imports lmdb, which belongs to shards/store/"),
        (
            "shards/store/env.py",
            "from shards.store.writer import Store",
            "shards/store/env.py imports shards/store/writer",
        ),
        (
            "shards/digest.py",
            "from shards.store import Store",
            "shards/digest.py imports shards/store/__init__.py, which",
        ),
        ("shards/store/new.py", "", "shards/store/new.py is not listed by its package"),
        ("engine/new.py", "", "engine/new.py is not listed by its package"),
        ("engine/cli/new.py", "", "engine/cli/new.py is not listed by its package"),
        ("ipc/__init__.py", HOUSE["ipc/__init__.py"].replace("link.py ", "lost.py "), "ipc/lost.py is listed and not"),
    ],
)
def test_a_breach_of_the_layer_rule_is_named(path: str, text: str, said: str) -> None:
    assert [line for line in violations({**HOUSE, path: text}) if line.startswith(said)]
