"""What ends the process in which files are looked at: damage only where a page can do that."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardengine import ConfigError, Engine, KeyValue, StoreError
from shardengine.engine.cli import main
from shardengine.engine.verify import verify_directory
from tests.directories import applies_ten, opened

ENVIRONMENT = "VERIFY_ENDS"
ENDS: dict[str, Callable[[], object]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGRTMIN+1": lambda: os.kill(os.getpid(), signal.SIGRTMIN + 1),
    "an error": lambda: 1 // 0,
    "an exit": lambda: os._exit(0),
    "an engine": lambda: Engine("never"),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
}


class Ends(KeyValue):
    """Ends the process that makes it, as the environment says."""

    def __init__(self) -> None:
        ENDS[os.environ[ENVIRONMENT]]()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    opened(tmp_path / "data", applies_ten, shards=2)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("SIGKILL", r"signal 9 \(Killed\)"),
        ("SIGTERM", r"signal 15 \(Terminated\)"),
        ("SIGRTMIN+1", rf"signal {signal.SIGRTMIN + 1} "),
        ("an error", "exit status 1: .*ZeroDivisionError"),
        ("an exit", "exit status 0: "),
        ("an engine", "this is a worker process"),
    ],
)
def test_an_end_that_no_page_can_cause_is_no_damage(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str, said: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, end)
    with pytest.raises(StoreError, match=r"(?s)shard-000 was not judged: .*" + said):
        verify_directory(data, Ends)
    assert main(["verify", "--data", str(data), "--machine", "tests.test_verify:Ends"]) == 3
    assert "no damage" not in capsys.readouterr().out


def test_an_end_that_a_page_can_cause_is_a_finding_for_each_shard(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "SIGSEGV")
    findings = verify_directory(data, Ends)
    assert [finding.shard for finding in findings] == [0, 1] and all("SIGSEGV" in found.problem for found in findings)


def test_a_program_that_is_no_python_is_not_started_to_look(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "frozen", True, raising=False)
        with pytest.raises(ConfigError, match="frozen"):
            verify_directory(data)
        patch.setenv("SHARDENGINE_INTERPRETER", sys.executable)
        assert verify_directory(data) == []
