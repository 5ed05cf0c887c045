"""`SyncEngine` from 16 threads at once, beside a model: what they read was committed, as a whole, and time goes on."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardengine import ApplyResult, Entry, Put, SyncEngine, encode
from tests.killing import seeded
from tests.model import Model

KEYS = [b"key %d" % number for number in range(700)]
"""Every chunk puts all of them to the index of its first entry. More than one slice."""
CHUNKS = 60
WRITERS, READERS = 4, 12
KILLS = 2


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns a thousand times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


class Writers:
    """They take turns; each sends the chunk that the log goes on with."""

    def __init__(self, db: SyncEngine) -> None:
        self.model = Model()
        self._db = db
        self._turn = threading.Lock()

    def write(self, rng: random.Random) -> None:
        while True:
            with self._turn:
                at = self.model.index + 1
                if at > CHUNKS * len(KEYS):
                    return
                chunk = [Entry(at + number, 1, encode(Put(key, b"%d" % at))) for number, key in enumerate(KEYS)]
                assert list(self._db.apply_chunk(chunk)) == self.model.apply(chunk)


class Reader:
    """`newest` is what it has seen: nothing older may come after it."""

    def __init__(self, db: SyncEngine, ending: threading.Event) -> None:
        self._db = db
        self._ending = ending
        self.newest = 0
        self.reads = 0

    def read(self, rng: random.Random) -> None:
        ways = [self._get, self._get_multi, self._scan, self._page, self._view, self._last_applied, self._count]
        while not self._ending.is_set():
            rng.choice(ways)()
            self.reads += 1

    def _saw(self, *stamps: bytes | None) -> None:
        """All at once, hence of one chunk."""
        assert len(set(stamps)) == 1, set(stamps)
        stamp = int(stamps[0] or 0)
        assert stamp >= self.newest, f"{stamp} after {self.newest}"
        self.newest = stamp

    def _get(self) -> None:
        self._saw(self._db.get(KEYS[3]))

    def _get_multi(self) -> None:
        self._saw(*self._db.get_multi(KEYS[:20]))
        self._saw(*self._db.get_multi(KEYS))

    def _scan(self) -> None:
        found = self._db.scan_prefix(b"key ")
        assert len(found.entries) == (len(KEYS) if found.revision else 0)
        self._saw(*([value for _, value in found.entries] or [b"0"]))

    def _page(self) -> None:
        found = self._db.scan_prefix(b"key ", limit=20, reverse=True)
        self._saw(*([value for _, value in found.entries] or [b"0"]))

    def _view(self) -> None:
        with self._db.view() as view:
            stamp = view.get(KEYS[0])
            assert int(stamp or 0) == max(view.revision - len(KEYS) + 1, 0)
            assert set(view.get_multi(KEYS)) == {stamp}
            self._saw(stamp, *[value for _, value in view.scan_prefix(b"").entries])

    def _last_applied(self) -> None:
        self._saw(b"%d" % max(self._db.last_applied().index - len(KEYS) + 1, 0))

    def _count(self) -> None:
        assert len(self._db) in (0, len(KEYS)) and len(self._db.digest()) == 16


@pytest.mark.usefixtures("hurried")
def test_16_threads_read_what_is_committed_while_workers_die(tmp_path: Path) -> None:
    rng = seeded()
    failures: list[BaseException] = []
    ending = threading.Event()
    with SyncEngine(tmp_path / "db", shards=3) as db:
        writers, readers = Writers(db), [Reader(db, ending) for _ in range(READERS)]
        works: list[Callable[[random.Random], None]] = [writers.write] * WRITERS
        works += [reader.read for reader in readers]

        def work(does: Callable[[random.Random], None], own: random.Random) -> None:
            try:
                does(own)
            except BaseException as error:
                failures.append(error)
                ending.set()

        threads = [threading.Thread(target=work, args=(does, random.Random(rng.random()))) for does in works]
        for thread in threads:
            thread.start()
        for kill in range(KILLS):
            db.wait_applied((kill + 1) * len(KEYS) * CHUNKS // (KILLS + 1), timeout=100)
            os.kill(db.stats()["workers"][rng.randrange(3)]["pid"], signal.SIGKILL)
        for thread in threads[:WRITERS]:
            thread.join()
        ending.set()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        assert all(reader.reads for reader in readers)
        assert (db.last_applied().index, db.digest()) == (CHUNKS * len(KEYS), writers.model.digest())
        assert (db.stats()["views"], db.stats()["pinned_cuts"]) == (0, 0)
        assert sum(worker["restarts"] for worker in db.stats()["workers"]) == KILLS


def test_results_go_to_the_thread_that_asked(tmp_path: Path) -> None:
    """Each thread sends what another one has sent already, too: all are answered the same."""
    log = [Entry(index, 1, encode(Put(b"%d" % index, b"v"))) for index in range(1, 201)]
    answers: list[list[ApplyResult]] = []
    with SyncEngine(tmp_path / "db", shards=2) as db:

        def send() -> None:
            answers.append([result for entry in log for result in db.apply_chunk([entry])])

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == len(threads)
        for answered in answers:
            assert [(result.index, result.succeeded) for result in answered] == [(entry.index, True) for entry in log]
        assert db.last_applied().index == len(db) == 200


class Interrupting:
    """A lock in whose end a thread is interrupted."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        raise KeyboardInterrupt


def test_a_read_that_is_interrupted_leaves_no_state_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SyncEngine(tmp_path / "db", shards=2) as db:
        db.apply_chunk([Entry(1, 1, encode(Put(b"k", b"1")))])
        with monkeypatch.context() as patch:
            patch.setattr(db, "_lock", Interrupting(db._lock))
            for read in (lambda: db.scan_prefix(b"k"), db.last_applied):
                with pytest.raises(KeyboardInterrupt):
                    read()
        db.apply_chunk([Entry(2, 1, encode(Put(b"k", b"2")))])
        assert db.stats()["pinned_cuts"] == 0
