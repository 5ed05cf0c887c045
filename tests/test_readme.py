"""Every command and snippet of the README runs as printed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardengine.shards.placement import shard_table, slot_of
from tests.killing import DEEP

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DATA = "/tmp/shardengine-readme"
TINY = {
    "sweep --quick": "sweep --quick --entries 500 --chunk 100 --rounds 1",
    "perf model": "perf model --entries 500 --chunk 100 --rounds 1",
    "report --quick": "report --tiny --only throughput,latency",
}
"""What takes minutes is run in a form that shows that it runs."""
DEMO = "shardengine cluster demo --limit 6000"
"""It waits for elections: tests/test_cluster.py runs it, and looks at what comes out; here it is run for "deep"."""


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)


def modules() -> dict[str, str]:
    """The blocks that begin with the name of their file: what the programs on the page import."""
    named = ((re.match(r"# (\w+\.py)\n", block), block) for block in blocks())
    return {name[1]: block for name, block in named if name is not None}


def snippets() -> list[str]:
    """The programs."""
    return [block for block in blocks() if block not in modules().values()]


def commands() -> list[str]:
    return re.findall(r"^    (\S.*)$", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S), re.M)


def shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of the README with this interpreter's commands first on the path."""
    scripts = directory / "bin"
    scripts.mkdir(exist_ok=True)
    for name, module in (("shardengine", "-m shardengine"), ("python", "")):
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["/bin/sh", "-c", command.replace(DATA, str(directory / "data"))],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def output(snippet: str, directory: Path) -> list[str]:
    """What a program of the README prints, beside the modules of the README."""
    for name, text in {**modules(), "snippet.py": snippet}.items():
        (directory / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}
    done = subprocess.run(
        [sys.executable, str(directory / "snippet.py")],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("snippet", snippets())
def test_every_snippet_of_the_readme_prints_what_its_comments_say(snippet: str, tmp_path: Path) -> None:
    promised = re.findall(r"print\(.*\)  # (.*)$", snippet, re.M)
    assert promised
    assert output(snippet, tmp_path) == promised


@pytest.mark.parametrize("shards", [1, 3])
def test_the_machine_of_the_readme_says_the_same_for_any_shard_count(shards: int, tmp_path: Path) -> None:
    (program,) = [snippet for snippet in snippets() if "from stock import" in snippet]
    assert "shards=2" in program
    promised = re.findall(r"print\(.*\)  # (.*)$", program, re.M)
    assert output(program.replace("shards=2", f"shards={shards}"), tmp_path) == promised


def test_a_command_of_that_machine_spans_shards_and_both_files_have_fewer_than_forty_lines() -> None:
    names = set(re.findall(r'b"(oslo|rome)/', "".join(blocks())))
    assert len(names) == 2
    for shards in (2, 3):
        assert len({shard_table(shards)[slot_of(name.encode())] for name in names}) == 2
    (program,) = [snippet for snippet in snippets() if "from stock import" in snippet]
    lines = [line for line in (modules()["stock.py"] + program).splitlines() if line.strip()]
    assert len(lines) < 40


def test_the_embedding_example_takes_fifteen_lines_or_fewer() -> None:
    lines = [line for line in snippets()[0].splitlines() if line.strip()]
    assert len(lines) <= 15


def test_the_predictions_are_those_of_the_report_beside_the_plot() -> None:
    told = re.findall(r"^\| (\d+) \| (\d+) \| ([\d,]+) \| (\w+) \|$", README, re.M)
    rows = json.loads((ROOT / "perf/reports/two-cores.json").read_bytes())["parts"]["model"]["rows"]
    hosts = [row for row in rows if row["kind"] == "host"]
    assert [row["cores"] for row in hosts] == [8, 16, 32, 64]
    assert told == [
        (f"{row['cores']}", f"{row['shards']}", f"{round(row['predicted_entries_per_s'], -4):,.0f}", row["bottleneck"])
        for row in hosts
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("readme")
    yield path
    shutil.rmtree(path)


def test_every_command_of_the_readme_works_in_the_order_it_is_printed(directory: Path) -> None:
    ran = [command for command in commands() if not command.startswith("make ") and (DEEP or command != DEMO)]
    assert DEMO in commands()
    assert any(command.startswith("shardengine") for command in ran)
    assert any("perf" in command for command in ran)
    assert all(any(long in command for command in ran) for long in TINY)
    for command in ran:
        for long, tiny in TINY.items():
            command = command.replace(long, tiny)
        done = shell(command, directory)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_make_targets_that_the_readme_names_exist() -> None:
    targets = {command.split()[1] for command in commands() if command.startswith("make ")}
    assert targets == {"demo", "test"}
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


SHOP = """
import sys
from shop import app
from starlette.testclient import TestClient

with TestClient(app) as client:
    client.put("/apple", content=b"red")
    print("open", flush=True)
    sys.stdin.readline()
"""
WINDOW = """
from starlette.testclient import TestClient
from window import app

client = TestClient(app)
print(client.get("/apple").content, client.get("/pear").status_code, app.state.reader.age())
"""


def test_two_processes_of_the_window_read_beside_the_shop(tmp_path: Path) -> None:
    for name, text in {**modules(), "open.py": SHOP, "look.py": WINDOW}.items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "open.py"], cwd=tmp_path, env=environment, stdin=piped, stdout=piped, text=True
    ) as shop:
        try:
            assert shop.stdout and shop.stdin
            assert shop.stdout.readline() == "open\n"
            looks = [
                subprocess.Popen([sys.executable, "look.py"], cwd=tmp_path, env=environment, stdout=piped, text=True)
                for _ in range(2)
            ]
            assert [look.communicate(timeout=60)[0] for look in looks] == ["b'red' 404 None\n"] * 2
            shop.communicate("\n", timeout=60)
            assert shop.returncode == 0
        finally:
            shop.kill()


def test_a_machine_of_somebody_else_is_tested_by_the_five_lines(tmp_path: Path) -> None:
    lines = [line for line in modules()["test_mine.py"].splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) == 5
    (tmp_path / "test_mine.py").write_text(modules()["test_mine.py"])
    done = shell("python -m pytest -q -p no:cacheprovider --basetemp=mine -k 'gap or reset' test_mine.py", tmp_path)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr
