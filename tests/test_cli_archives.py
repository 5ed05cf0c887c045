"""Exported snapshots through streams: no more is read than can be one, and an end by a signal leaves nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.commands import cli, records, running


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    file = folder / "records"
    file.write_bytes(records(1, 5000))
    assert cli("load", file, "--data", folder / "data", "--shards", 2).code == 0
    return Path(cli("snapshot", "--data", folder / "data", "--json").facts["path"])


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "aside"
    folder.mkdir()
    return folder


TAKERS = [("import", "-", "--data"), ("restore", "-", "--shards", "1", "--data"), ("verify",)]


@pytest.mark.parametrize("taker", TAKERS, ids=[taker[0] for taker in TAKERS])
def test_an_endless_stream_of_something_else_ends_at_its_first_block(
    taker: tuple[str, ...], tmp_path: Path, aside: Path
) -> None:
    arguments = (*taker, tmp_path / "new") if "--data" in taker else (*taker, "-")
    with running(*arguments, TMPDIR=str(aside)) as run:
        run.write(bytes(4096))
        ran = run.end(close_stdin=False)
    assert ran.code == 3 and "standard input is no exported snapshot" in ran.err, ran
    assert list(aside.iterdir()) == []
    assert taker[0] == "restore" or not (tmp_path / "new").exists()


def test_an_import_that_fails_late_leaves_no_engine(snapshot: Path, tmp_path: Path, aside: Path) -> None:
    file = tmp_path / "file"
    assert cli("export", snapshot, file).code == 0
    file.write_bytes(file.read_bytes()[:-1])
    ran = cli("import", file, "--data", tmp_path / "in" / "new", TMPDIR=str(aside))
    assert ran.code == 3 and f"{file} ends after" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["aside", "file"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("taker", ["import", "verify"])
def test_a_signal_in_the_middle_of_a_stream_leaves_nothing(
    taker: str, number: signal.Signals, snapshot: Path, tmp_path: Path, aside: Path
) -> None:
    file = tmp_path / "file"
    assert cli("export", snapshot, file).code == 0
    content = file.read_bytes()
    assert len(content) > 1 << 17, "more than a pipe has room for"
    arguments = ("import", "-", "--data", tmp_path / "new") if taker == "import" else ("verify", "-")
    with running(*arguments, TMPDIR=str(aside)) as run:
        run.write(content[:-1])
        run.process.send_signal(number)
        ran = run.end(close_stdin=False)
    assert (ran.code, ran.err) == (128 + number, f"error: stopped by {number.name}\n")
    assert list(aside.iterdir()) == [] and not (tmp_path / "new").exists()


def test_a_signal_in_the_middle_of_an_export_leaves_nothing(snapshot: Path, aside: Path) -> None:
    with running("export", snapshot, "-", TMPDIR=str(aside)) as run:
        assert run.process.stdout
        assert run.process.stdout.read(1)
        run.process.send_signal(signal.SIGTERM)
        run.process.wait(60)
        assert run.process.returncode == 128 + signal.SIGTERM
    assert list(aside.iterdir()) == []
