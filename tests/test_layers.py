"""The layer rule, read from the sources: what a file may import, what a package lists, who owns an outside library;
and the front door, through which everybody comes in.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

import shardengine
from tests.killing import WATCHDOG_S, environment

ROOT = Path(__file__).resolve().parent.parent
HOUSE = "shardengine"
RANKS = {"ipc": 0, "shards": 1, "engine": 2}
CLI = "engine/cli/"
GUESTS = (CLI, "engine/machines/", "engine/conformance/", "engine/cluster/")
"""Rooms whose files come in by the front door, as a program of somebody else does."""
OWNERS = {
    "lmdb": ("shards/store/",),
    "xxhash": ("shards/digest.py",),
    "asyncio": (
        "engine/run/waiting.py",
        "engine/run/tasks.py",
        "engine/run/shell.py",
        "engine/node/",
        "engine/sync/portal.py",
        "engine/conformance/",
        "engine/cluster/",
        CLI,
    ),
    "nats": ("engine/node/jetstream/",),
    "uvloop": ("engine/run/shell.py", "engine/sync/portal.py", CLI),
    "click": (CLI,),
    "rich": (CLI,),
    "pytest": ("engine/conformance/",),
    "sqlite3": ("engine/adaptors/sqlite.py",),
    "rocksdict": ("engine/adaptors/rocksdb.py",),
}
_LISTED = re.compile(r"^ {4}(\w+\.py|\w+/) ", re.MULTILINE)
_LIST = re.compile(r"^Files(?: and rooms)?, lowest first:$", re.MULTILINE)


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for package in RANKS
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def listed(text: str) -> list[str]:
    """The files that a package's docstring lists, lowest first."""
    docstring = ast.get_docstring(ast.parse(text), clean=False) or ""
    found = _LIST.split(docstring)
    return _LISTED.findall(found[1]) if len(found) > 1 else []


def imported(path: str, text: str, files: Mapping[str, str]) -> set[str]:
    """What a file imports anywhere in it: files of the house by their path, all else by its name."""
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
        found |= {_file(name, files) or name for name in names}
    return found


def _file(module: str, files: Mapping[str, str]) -> str | None:
    house, _, inside = module.partition(".")
    stem = inside.replace(".", "/") if house == HOUSE else ""
    return next((path for path in (f"{stem}.py", f"{stem}/__init__.py") if path in files), None)


def places(files: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Where each file stands: a file may import those that stand lower. A room stands where its package lists it, its
    files in the order that its own `__init__.py` lists, and that on top of them; the command line above all others."""
    found: dict[str, tuple[int, ...]] = {}
    for package, rank in RANKS.items():
        for at, name in enumerate([*listed(files[f"{package}/__init__.py"]), "__init__.py"]):
            found |= _folder(f"{package}/{name}", files, (rank, at))
    return found


def _folder(path: str, files: Mapping[str, str], place: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """A file at its place, or all files of a folder there, and of the folders in it."""
    if not path.endswith("/"):
        return {path: place}
    found: dict[str, tuple[int, ...]] = {}
    for at, name in enumerate([*listed(files[f"{path}__init__.py"]), "__init__.py"]):
        found |= _folder(path + name, files, (*place, at))
    return found


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
                continue
            outside = name.partition(".")[0]
            if outside in RANKS:
                found.append(f"{path} imports {outside}, which is {HOUSE}.{outside} to everybody")
            elif name == HOUSE and not path.startswith(GUESTS):
                found.append(f"{path} imports {HOUSE}, the front door, from inside")
            elif outside in OWNERS and not any(_owns(owner, path) for owner in OWNERS[outside]):
                found.append(f"{path} imports {outside}, which belongs to {', '.join(OWNERS[outside])}")
    found += [f"{path} is listed and not there" for path in standing if path not in files and not path.endswith("/")]
    return found


def _owns(owner: str, path: str) -> bool:
    return path.startswith(owner) if owner.endswith("/") else path == owner


def test_an_import_goes_down_and_a_library_has_one_owner() -> None:
    assert violations(sources()) == []


def test_every_package_is_of_the_house() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "perf", HOUSE} == set(RANKS)


def test_tests_and_perf_come_in_by_the_front_door() -> None:
    for folder in ("tests", "perf"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {name.partition(".")[0] for name in imported(path.name, path.read_text(), {})}
            assert not names & RANKS.keys(), path


# ---- the front door --------------------------------------------------------------------------------------------------


def test_the_front_door_holds_links_to_the_ranks_and_what_type_checkers_see_is_what_is_resolved() -> None:
    door = ROOT / HOUSE
    assert {path.name: str(path.readlink()) for path in door.iterdir() if path.is_symlink()} == {
        rank: f"../{rank}" for rank in RANKS
    }
    tree = ast.parse((door / "__init__.py").read_text())
    static = {
        alias.asname: node.module.removeprefix(f"{HOUSE}.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(HOUSE)
        for alias in node.names
    }
    assert static == shardengine._HOME_OF
    for name in shardengine.__all__:
        assert getattr(shardengine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shardengine.nothing


@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        ("import shardengine.shards.worker", ("asyncio", "uvloop", "shardengine.engine")),
        ("from shardengine import Machine, Put, Rejected, Entry, BadEntryError", ("asyncio", "shardengine.engine")),
        ("import shardengine", ("lmdb", "msgspec", "shardengine.shards")),
        ("import shardengine.ipc.link", ("lmdb", "shardengine.shards")),
        (
            "from shardengine.adaptors import MemoryStateMachine",
            ("click", "rich", "uvloop", "shardengine.engine.cli", "sqlite3", "rocksdict"),
        ),
        ("from shardengine.adaptors import FileStateMachine", ("sqlite3", "rocksdict")),
        (
            "from shardengine.conformance import History",
            ("pytest", "click", "rich", "uvloop", "shardengine.engine.cli"),
        ),
        (
            "import shardengine.machines.bank, shardengine.machines.queue",
            ("asyncio", "shardengine.engine.engine", "lmdb"),
        ),
        ("from shardengine.node import JetStreamLog, LocalLog, Node", ("nats", "click", "rich", "uvloop")),
        ("from shardengine import Engine", ("click", "rich", "uvloop", "shardengine.engine.cli")),
        (
            "from shardengine.conformance import StateMachineSuite",
            ("click", "rich", "uvloop", "shardengine.engine.engine"),
        ),
    ],
)
def test_an_import_loads_no_more_than_it_needs(program: str, unwanted: tuple[str, ...]) -> None:
    program = f"{program}\nimport sys\nprint(*(set({unwanted!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=WATCHDOG_S,
    )
    assert done.stdout.split() == []


def test_modules_of_a_program_that_are_called_like_our_ranks_are_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("engine.py", "ipc.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "__init__.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "program.py").write_text(
        "from shardengine import Engine, Entry, Put, encode, run\n"
        "async def main():\n"
        "    async with Engine('data', shards=2) as db:\n"
        "        await db.apply_chunk([Entry(1, 1, encode(Put(b'k', b'v')))])\n"
        "        print(db.get(b'k'))\n"
        "run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG_S,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("b'v'\n", "", 0)


# ---- the rule itself -------------------------------------------------------------------------------------------------


SMALL = {
    "ipc/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    errors.py  e\n    link.py    l\n"""',
    "ipc/errors.py": "",
    "ipc/link.py": "from shardengine.ipc.errors import E",
    "shards/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    digest.py  d\n    store/     s\n"""',
    "shards/digest.py": "import xxhash",
    "shards/store/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    env.py     e\n    writer.py  w\n"""\n'
    "from shardengine.shards.store.writer import Store",
    "shards/store/env.py": "import lmdb\nfrom shardengine.shards.digest import checksum",
    "shards/store/writer.py": "import lmdb\nfrom shardengine.shards.store.env import open_environment",
    "engine/__init__.py": '"""P.\n\nFiles and rooms, lowest first:\n\n    errors.py  e\n    commit/    c\n'
    '    run/       r\n    machines/  m\n    cli/       l\n"""',
    "engine/errors.py": "",
    "engine/commit/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    table.py  t\n"""',
    "engine/commit/table.py": "import msgspec\nfrom shardengine.engine.errors import E",
    "engine/run/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    opening.py  o\n    shell.py    s\n"""',
    "engine/run/opening.py": "",
    "engine/run/shell.py": "import asyncio\ndef run(): import uvloop\nfrom shardengine.engine.commit import table\n"
    "from shardengine.shards import store",
    "engine/machines/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    bank.py  b\n"""',
    "engine/machines/bank.py": "from shardengine import Machine, Tx",
    "engine/cli/__init__.py": '"""P.\n\nFiles, lowest first:\n\n    common.py  c\n    app.py     a\n"""\n'
    "from shardengine.engine.cli.app import main",
    "engine/cli/common.py": "import asyncio\nimport rich.console\nfrom shardengine import Engine",
    "engine/cli/app.py": "import click\nfrom shardengine.engine.cli.common import say",
}


def test_a_house_in_order_has_no_violation() -> None:
    assert violations(SMALL) == []


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        ("ipc/errors.py", "from shardengine.ipc.link import Link", "ipc/errors.py imports ipc/link.py, which is not"),
        (
            "ipc/errors.py",
            "def f():\n    import shardengine.ipc.link",
            "ipc/errors.py imports ipc/link.py, which is not",
        ),
        ("ipc/link.py", "from shardengine.shards import digest", "ipc/link.py imports shards/digest.py, which is not"),
        ("ipc/link.py", "import shardengine.engine", "ipc/link.py imports engine/__init__.py, which is not below it"),
        ("ipc/link.py", "import engine", "ipc/link.py imports engine, which is shardengine.engine to everybody"),
        ("ipc/link.py", "from shardengine import Engine", "ipc/link.py imports shardengine, the front door, from"),
        ("ipc/link.py", "from shardengine.ipc import anything", "ipc/link.py imports ipc/__init__.py, which is not"),
        ("engine/errors.py", "from shardengine.engine.commit import table", "engine/errors.py imports engine/commit/t"),
        (
            "engine/commit/table.py",
            "from shardengine.engine.run.shell import run",
            "engine/commit/table.py imports engine/run/shell.py, which is not below it",
        ),
        (
            "engine/run/opening.py",
            "from shardengine.engine.run import shell",
            "engine/run/opening.py imports engine/run/shell.py, which is not below it",
        ),
        ("engine/run/shell.py", "from shardengine.engine.cli import main", "engine/run/shell.py imports engine/cli/"),
        (
            "engine/cli/common.py",
            "from shardengine.engine.cli.app import main",
            "engine/cli/common.py imports engine/c",
        ),
        ("shards/digest.py", "import lmdb.verify", "shards/digest.py imports lmdb, which belongs to shards/store/"),
        ("engine/commit/table.py", "from xxhash import xxh64", "engine/commit/table.py imports xxhash, which belongs"),
        (
            "engine/commit/table.py",
            "import asyncio",
            "engine/commit/table.py imports asyncio, which belongs to engine/",
        ),
        ("engine/run/shell.py", "import rich", "engine/run/shell.py imports rich, which belongs to engine/cli/"),
        (
            "engine/machines/bank.py",
            "import lmdb",
            "engine/machines/bank.py imports lmdb, which belongs to shards/store/",
        ),
        ("engine/cli/app.py", "import lmdb", "engine/cli/app.py imports lmdb, which belongs to shards/store/"),
        (
            "shards/store/env.py",
            "from shardengine.shards.store.writer import Store",
            "shards/store/env.py imports shards/store/writer",
        ),
        (
            "shards/digest.py",
            "from shardengine.shards.store import Store",
            "shards/digest.py imports shards/store/__init__.py, which",
        ),
        ("shards/store/new.py", "", "shards/store/new.py is not listed by its package"),
        ("engine/new.py", "", "engine/new.py is not listed by its package"),
        ("engine/run/new.py", "", "engine/run/new.py is not listed by its package"),
        ("engine/new/file.py", "", "engine/new/file.py is not listed by its package"),
        ("ipc/__init__.py", SMALL["ipc/__init__.py"].replace("link.py ", "lost.py "), "ipc/lost.py is listed and not"),
    ],
)
def test_a_breach_of_the_layer_rule_is_named(path: str, text: str, said: str) -> None:
    assert [line for line in violations({**SMALL, path: text}) if line.startswith(said)]


def test_every_header_of_the_compiled_part_is_named_in_the_build() -> None:
    """Else a source distribution lacks it, and what is built of that is Python alone, without a word."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (module,) = build["tool"]["setuptools"]["ext-modules"]
    included = {
        name for source in module["sources"] for name in re.findall(r'#include "(.+)"', (ROOT / source).read_text())
    }
    assert included == {Path(name).name for name in module["depends"]}
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"shards/fast/{name}" in makefile for name in included)
