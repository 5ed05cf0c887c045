"""What every test gets: a coroutine is run on uvloop, and nothing may be left behind.

After each test no process that it started may live on, no descriptor may be open that was not open before, and the
temporary directory must be empty (what `tmp_path` holds is the test's own). The servers that all tests share end with
the last one. Processes are found by a word in the
environment that they inherit, so grandchildren count. Engines that a failed test leaves running are killed; a test
that passes and leaves one running fails here.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import select
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from shardengine import run
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.run.shell import shells
from tests.forking import STANDING, source
from tests.killing import DEEP, environment
from tests.nursery import Nursery
from tests.servers import standing
from tests.syncs import Syncs

LEAVING_S = 20.0  # how long a process that is ending already may take; nothing waits that long when all is well
_MARK = "LEAK_CHECK_OF"
_FAILED = pytest.StashKey[bool]()
_strangers = set[int]()

settings.register_profile(
    "suite",
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("deep", settings.get_profile("suite"), max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

os.environ[_MARK] = str(os.getpid())

for _number, _handler in (
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
):
    if signal.getsignal(_number) is signal.SIG_IGN:  # of `nohup`, or of a script's background: programs inherit it
        signal.signal(_number, _handler)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine function on a new uvloop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    run(lambda: pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(scope="session")
def temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this process, and every one it starts, makes its temporary files."""
    path = tmp_path_factory.mktemp("temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(path))
        patch.setattr(tempfile, "tempdir", str(path))
        run(lambda: asyncio.sleep(0))  # the first loop of a process opens a pipe that libuv keeps
        gc.collect()
        gc.freeze()  # what is loaded by now stays: nobody need look at it again before every test
        yield path


@pytest.fixture(scope="session")
def forks(temporary_directory: Path) -> Iterator[None]:
    """What tests/forking.py forks from."""
    with source(environment()):
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest, temporary_directory: Path, forks: None) -> Iterator[None]:
    gc.collect(1)
    logger, descriptors, processes = logging.getLogger("shardengine"), open_descriptors(), descendants()
    level = logger.level
    yield
    logger.setLevel(level)  # a program that a test runs in this process may be a quiet one
    running, failed = kill_engines(), request.node.stash.get(_FAILED, False)
    if failed:
        for process in descendants() - processes - STANDING:
            end(process)
    left = wait_for_the_end_of(descendants() - processes - STANDING)
    files = clear(temporary_directory)
    if failed:
        return
    assert not running, f"engines still run: {running}"
    assert not left, f"processes live on: {left}"
    assert not files, f"files remain: {files}"
    if open_descriptors() != descriptors:
        gc.collect()
    new = open_descriptors().items() - descriptors.items()
    assert not new, f"descriptors remain open: {sorted(new)}"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three of a cluster, which tests must leave running as they were."""
    with standing(tmp_path_factory.mktemp("servers")) as started:
        yield started


@pytest.fixture(scope="session")
def nursery(temporary_directory: Path) -> Iterator[Nursery]:
    """What tests/nursery.py forks workers from."""
    nursery = Nursery.started(environment())
    STANDING.add(nursery.pid)
    yield nursery
    nursery.close()


@pytest.fixture
def forking(nursery: Nursery) -> Callable[[], AbstractContextManager[None]]:
    """Workers of this process are forked, not started, within a block of this; but for the profile "deep"."""
    return nullcontext if DEEP else nursery.serving


@pytest.fixture
def forked_workers(forking: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The whole test is such a block."""
    with forking():
        yield


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    return Syncs(monkeypatch)


def kill_engines() -> list[str]:
    """End every engine of this process, as hard as it takes. Returns the paths of those that ran."""
    running = []
    for shell in shells():
        runtime = shell.runtime
        if runtime is not None:
            running.append(str(shell.readside.path))
            runtime.abandon()
            shell.forget_run()
        if running or shell.readside.reads is not None:
            shell.owner.thread = threading.get_ident()
            shell.close_storage()
    return running


def clear(directory: Path) -> list[str]:
    """Empty a directory, so that what one test left is not held against the next. Returns what was there."""
    found = sorted(directory.iterdir())
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return [path.name for path in found]


def open_descriptors() -> dict[int, str]:
    """What each descriptor of this process is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115  # three times a test
    return {number: target for number, target in found.items() if target != f"/proc/{os.getpid()}/fd"}


def descendants() -> set[int]:
    """Every process that descends from this one: its children, dead or alive, and all that carry its mark.

    Who was seen to have an environment without the mark is nobody's descendant for as long as it lives, and not looked
    at again. That of a process that is in `execve`, or dead, is empty for a moment, or for good, and shows nothing.
    """
    there = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    _strangers.intersection_update(there)
    return {pid for pid in there - _strangers if _descends(pid)}


def _descends(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        parent = int(_content(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
        environment = _content(f"/proc/{pid}/environ")
    except (OSError, ValueError):
        return False
    if parent == os.getpid() or f"{_MARK}={os.getpid()}\0".encode() in environment:
        return True
    if environment:
        _strangers.add(pid)
    return False


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def wait_for_the_end_of(processes: set[int]) -> list[str]:
    """Give processes that are ending the time to. Returns what does not end; it is killed."""
    deadline, left = time.monotonic() + LEAVING_S, []
    for pid in processes:
        if not _ends(pid, deadline):
            with suppress(OSError):
                left.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            end(pid)
        elif pid in descendants():
            left.append(f"zombie {pid}")
            end(pid)
    return left


def _ends(pid: int, deadline: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)


def halt(pid: int) -> None:
    """Stop a child, and return when all its threads have stopped: one of them may be told later than another."""
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def end(pid: int) -> None:
    """Kill a process, and reap it if it is a child."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def pytest_report_header(config: Any) -> str:
    return f"hypothesis profile: {os.environ.get('HYPOTHESIS_PROFILE', 'suite')}"
