"""Programs that end with a `SyncEngine` at work: no hang, no word, nothing left behind, and the state is clean."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardengine import SyncEngine
from shardengine.engine.storage.runmark import read_mark
from tests.killing import ROOT, environment

WATCHDOG_S = 100
OPENED = """
import atexit, os, signal, sys, threading, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from shardengine import EngineError, ForkedError, EngineStoppedError, SyncEngine
from tests.test_leaving import CHUNK

db = SyncEngine(sys.argv[1], shards=2)
"""
STARTED = f"""{OPENED}
db.start()
db.apply_chunk(CHUNK)
"""
NODE = """
import os, sys, threading, warnings
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from shardengine import ForkedError, Put
from shardengine.node import SyncNode

node = SyncNode(sys.argv[1], shards=2)
node.start()
for number in range(100):
    assert node.propose(Put(b"k%d" % number, b"v")).succeeded
"""
HELD = """
def follow(work):
    busy = threading.Semaphore(0)
    def on():
        while True:
            work()
            busy.release()
    threads = [threading.Thread(target=on, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        busy.acquire()
"""
QUIET = {
    "it was never stopped": STARTED,
    "it was never started": OPENED + "sys.stdout.write(str(db.is_running()))",
    "it was dropped": STARTED + "del db",
    "threads use it to the end": STARTED
    + """
def use(number):
    for _ in range(200):
        assert db.get(b"k1") == b"v" and len(db.apply_chunk(CHUNK)) == 100

for number in range(8):
    threading.Thread(target=use, args=(number,)).start()
""",
    "by sys.exit in the block": OPENED + "with db:\n    db.apply_chunk(CHUNK)\n    sys.exit()",
    "by sys.exit": STARTED + "sys.exit()",
    "daemon threads read": STARTED + HELD + "follow(lambda: db.get(b'k1'))",
    "daemon threads scan": STARTED + HELD + "follow(lambda: db.scan_prefix(b'k'))",
    "daemon threads read views": STARTED + HELD + "view = db.view()\nfollow(lambda: view.get(b'k1'))",
    "daemon threads apply": STARTED + HELD + "follow(lambda: db.apply_chunk(CHUNK))",
    "daemon threads ask": STARTED + HELD + "follow(db.stats)",
    "a daemon thread is within its end": STARTED
    + """
from shardengine.engine.sync import portal
thread, within = next(iter(portal._open))._thread, threading.Event()
join = thread.join

def never():
    if threading.current_thread() is not threading.main_thread():
        within.set()
        threading.Event().wait()
    join()

thread.join = never
threading.Thread(target=db.close, daemon=True).start()
within.wait()
""",
    "daemon threads wait": STARTED
    + "for _ in range(4):\n    threading.Thread(target=db.wait_applied, args=(1_000,), daemon=True).start()",
    "a daemon thread is joined at exit": HELD.replace(
        "    for thread in threads:\n        busy.acquire()", "    return threads"
    )
    + "import atexit\natexit.register(lambda: [thread.join() for thread in threads])"
    + STARTED
    + "threads = follow(lambda: db.get(b'k1'))",
    "a handler at exit uses it": "import atexit\natexit.register(lambda: told())"
    + STARTED
    + """
def told():
    for use in (lambda: db.get(b"k1"), lambda: db.apply_chunk(CHUNK), db.stats, db.digest):
        try:
            use()
        except EngineStoppedError:
            pass
        else:
            sys.stderr.write("an answer")
    db.close()
""",
    "a handler at exit that comes first uses it": STARTED
    + "atexit.register(lambda: (db.apply_chunk(CHUNK), db.get(b'k1'), db.digest()))",
    "a handler at exit stops it": STARTED + "atexit.register(db.close)",
    "it was made in a thread that ended": OPENED.replace("db = ", "made = lambda: ")
    + """
def work():
    global db
    db = made()
    db.start()
    db.apply_chunk(CHUNK)

thread = threading.Thread(target=work)
thread.start()
thread.join()
assert db.get(b"k1") == b"v"
""",
    "in a loop that runs": STARTED
    + """
import asyncio

async def cell():
    assert db.get(b"k1") == b"v" and len(db.digest()) == 16 and len(db.apply_chunk(CHUNK)) == 100
    asyncio.get_running_loop().run_in_executor(None, db.stats)
    await asyncio.get_running_loop().run_in_executor(None, db.flush)

asyncio.run(cell())
""",
    "a child of a fork ends": STARTED
    + """
def children(*ends):
    for end in ends:
        pid = os.fork()
        if pid == 0:
            end()
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (0, 3)
        assert db.get(b"k1") == b"v" and len(db.apply_chunk(CHUNK)) == 100

def refused():
    view_uses = [lambda: view.get(b"k1"), lambda: view.scan_prefix(b"k"), lambda: len(view)]
    uses = [lambda: db.get(b"k1"), lambda: db.scan_prefix(b"k"), lambda: db.apply_chunk(CHUNK), db.stats, db.start]
    for use in [*view_uses, *uses, db.stop, db.close, db.view, lambda: len(db), db.is_running, db.last_applied]:
        try:
            use()
        except ForkedError as error:
            assert "one per process" in str(error), error
        else:
            sys.stderr.write("an answer")
    view.close()

def leaves_the_block():
    with_db.__exit__(None, None, None)

def makes_its_own():
    with SyncEngine(sys.argv[1] + "-child", shards=2) as own:
        own.apply_chunk(CHUNK)

view, with_db = db.view(), db
children(lambda: None, refused, leaves_the_block, makes_its_own, lambda: os._exit(0))
assert view.get(b"k1") == b"v"
""",
    "a child of a fork ends, that other threads were at work": STARTED
    + HELD
    + """
follow(lambda: (db.get(b"k1"), db.scan_prefix(b"k")))
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            db.get(b"k1")
        except ForkedError:
            sys.exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
    "a node was never closed": NODE,
    "daemon threads propose to a node": NODE + HELD + "follow(lambda: node.propose(Put(b'k1', b'v')))",
    "daemon threads read a node": NODE + HELD + "follow(lambda: node.get(b'k1'))",
    "a child of a node's fork ends": NODE
    + """
def leave():
    node.__exit__(None, None, None)
    raise ForkedError("")

for use in (lambda: node.get(b"k1"), lambda: node.engine.get(b"k1"), node.close, leave):
    pid = os.fork()
    if pid == 0:
        try:
            use()
        except ForkedError:
            sys.exit(3)
        sys.exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
assert node.get(b"k1") == b"v" and node.propose(b"").succeeded
""",
}


def ran(program: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(place)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )


def is_clean(place: Path) -> bool:
    mark = read_mark(place)
    assert mark is not None
    return mark.clean


def is_whole(place: Path, *, clean: bool = True) -> None:
    assert is_clean(place) is clean
    with SyncEngine(place) as db:
        assert (db.last_applied().index, len(db)) == (100, 100)


@pytest.mark.parametrize("how", QUIET)
def test_a_program_ends_without_a_word_and_leaves_a_clean_state(tmp_path: Path, how: str) -> None:
    done = ran(QUIET[how], tmp_path / "db")
    started = "never started" not in how
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "" if started else "False")
    assert not started or is_clean(tmp_path / "db")


@pytest.mark.parametrize(
    ("program", "code", "tracebacks"),
    [
        (STARTED + "raise LookupError('mine')", 1, 1),
        (OPENED + "with db:\n    db.apply_chunk(CHUNK)\n    raise LookupError('mine')", 1, 1),
        (STARTED + "def fail(): raise LookupError('mine')\nthreading.Thread(target=fail).start()", 0, 1),
        (STARTED + "os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, 1),
        (STARTED + "sys.exit('mine')", 1, 0),
    ],
)
def test_a_program_that_fails_says_what_failed_once_and_leaves_a_clean_state(
    tmp_path: Path, program: str, code: int, tracebacks: int
) -> None:
    done = ran(program, tmp_path / "db")
    assert (done.returncode, done.stderr.count("Traceback")) == (code, tracebacks), done.stderr
    assert "mine" in done.stderr or "KeyboardInterrupt" in done.stderr
    is_whole(tmp_path / "db")


def test_a_program_that_is_cut_short_leaves_a_whole_state_and_no_worker(tmp_path: Path) -> None:
    done = ran(STARTED + HELD + "follow(lambda: db.get(b'k1'))\nos._exit(7)", tmp_path / "db")
    assert (done.returncode, done.stderr) == (7, "")
    is_whole(tmp_path / "db", clean=False)


def test_an_engine_that_cannot_be_stopped_in_time_is_told_of_and_left(tmp_path: Path) -> None:
    """Its loop is kept busy by somebody else's code: the interpreter ends all the same."""
    program = STARTED.replace("shards=2", "shards=2, config=EngineConfig(stop_timeout_ms=200, flush_timeout_ms=200)")
    program = program.replace("import EngineError", "import EngineConfig, EngineError")
    busy = "from tests.inside import in_the_loop\nin_the_loop(db, threading.Event().wait)"
    done = ran(program + busy, tmp_path / "db")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "still at work as the interpreter ended" in done.stderr and "its workers are killed" in done.stderr
    is_whole(tmp_path / "db", clean=False)
