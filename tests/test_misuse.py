"""What a stranger does to a directory, a machine or an entry: refused by name, with nothing lost and nobody waiting."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shardengine import (
    BadEntryError,
    ChunkFailedError,
    ConfigError,
    DamagedError,
    Engine,
    EngineConfig,
    EngineError,
    Entry,
    FormatError,
    KeyValue,
    LogGapError,
    LogId,
    LogOrderError,
    MachineImportError,
    Put,
    Rejected,
    StateUntrustedError,
    StoreDamagedError,
    StoreError,
    StoreFullError,
    encode,
    run,
)
from shardengine.engine.snapshot.build import build
from shardengine.engine.verify import verify_directory
from tests.directories import applies_ten, die_in_mid_run, holds_ten, opened, puts, reboot
from tests.inside import shell_of


class Splits(KeyValue):
    """Places keys by what stands before their colon, and fails where there is none."""

    name: ClassVar[str] = "test.splits"

    def partition_key(self, key: bytes) -> bytes:
        return key[: key.index(b":")]


class Generates(KeyValue):
    name: ClassVar[str] = "test.generates"

    def keys(self, command: Any) -> Any:
        return (key for key in (command.key, command.key))


class Odd(KeyValue):
    """Answers with what does not travel, by key."""

    name: ClassVar[str] = "test.odd"

    def apply(self, tx: Any, command: Any, context: Any) -> Any:
        match command.key:
            case b"number":
                raise Rejected(404)  # type: ignore[arg-type]
            case b"surrogate":
                raise ValueError("\udcff")
            case b"map":
                return {(1, 2): 3, b"k": {"a": object()}}
            case b"huge":
                raise StoreError("too much", number=1 << 80)
        tx.put(command.key, command.value)
        return None


def put(index: int, key: bytes = b"a:b") -> Entry:
    return Entry(index, 1, encode(Put(key, b"v")))


# ---- the directory ---------------------------------------------------------------------------------------------------


def test_a_lost_CURRENT_is_damage_and_deletes_nothing(tmp_path: Path) -> None:  # noqa: N802
    opened(tmp_path, applies_ten, shards=2)
    (tmp_path / "CURRENT").unlink()
    for _ in range(2):
        with pytest.raises(DamagedError, match="gen-000001"):
            Engine(tmp_path).start()
    assert verify_directory(tmp_path)
    (tmp_path / "CURRENT").write_text("gen-000001")
    assert opened(tmp_path, holds_ten).outcome == "opened"


@pytest.mark.parametrize("name", [b"", b"../other/gen-000001", b"\xff\xfe", b"gen-1"])
def test_a_CURRENT_that_names_no_generation_is_refused(tmp_path: Path, name: bytes) -> None:  # noqa: N802
    opened(tmp_path, applies_ten, shards=2)
    (tmp_path / "CURRENT").write_bytes(name)
    with pytest.raises(FormatError, match="CURRENT"):
        Engine(tmp_path).start()
    assert (tmp_path / "gen-000001").is_dir()


def test_a_copy_that_somebody_put_beside_a_generation_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    shutil.copytree(tmp_path / "gen-000001", tmp_path / "gen-000001.bak")

    async def use(db: Engine) -> None:
        await holds_ten(db)
        await db.reset()

    opened(tmp_path, use)
    assert (tmp_path / "gen-000001.bak").is_dir()


def test_a_data_file_that_is_cut_off_is_named_before_anything_reads_it(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2)
    file = tmp_path / "gen-000001" / "shard-001" / "data.mdb"
    whole = file.read_bytes()
    for length in (len(whole) - 1, 8192, 100, 0):
        file.write_bytes(whole[:length])
        with pytest.raises(StoreDamagedError, match="cut off"):
            Engine(tmp_path).start()
        assert any("cut off" in finding.problem for finding in verify_directory(tmp_path))
    file.write_bytes(whole)
    assert opened(tmp_path, holds_ten).outcome == "opened"


@pytest.mark.parametrize("name", ["decision", "GENERATION", "shard-000/ring", "shard-001/data.mdb"])
def test_a_missing_file_is_an_error_with_a_hint_and_a_finding(tmp_path: Path, name: str) -> None:
    opened(tmp_path, applies_ten, shards=2)
    (tmp_path / "gen-000001" / name).unlink()
    with pytest.raises(EngineError) as caught:
        Engine(tmp_path).start()
    assert caught.value.hint
    assert verify_directory(tmp_path)


def test_a_run_in_another_mode_marks_itself_before_its_first_write(tmp_path: Path) -> None:
    die_in_mid_run(tmp_path, durability="power")
    die_in_mid_run(tmp_path, entries=10, durability="process")
    reboot(tmp_path)
    with pytest.raises(StateUntrustedError):
        Engine(tmp_path).start()


# ---- the machine -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", [int, None, KeyValue(), type("Nameless", (KeyValue,), {"name": None})])
def test_what_is_no_machine_is_refused_by_name(tmp_path: Path, machine: Any) -> None:
    with pytest.raises(MachineImportError):
        Engine(tmp_path, machine=machine)


async def test_a_machine_that_fails_to_place_a_key_refuses_the_entry_each_time(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2, machine=Splits) as db:
        await db.apply_chunk([put(1)])
        for _ in range(2):
            with pytest.raises(BadEntryError, match="partition_key") as caught:
                await db.apply_chunk([put(2, b"no colon")])
            assert caught.value.index == 2
        await db.apply_chunk([put(2), put(3)])
        assert db.last_applied() == LogId(3, 1)


class Textual(KeyValue):
    """Places some keys by a str."""

    name: ClassVar[str] = "test.textual"

    def partition_key(self, key: bytes) -> bytes:
        found: Any = key.decode() if key.startswith(b"text") else key
        return found  # type: ignore[no-any-return]


async def test_a_partition_key_that_is_no_bytes_makes_a_bad_entry(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2, machine=Textual) as db:
        with pytest.raises(BadEntryError, match=r"partition_key\(\) returned str, not bytes") as caught:
            await db.apply_chunk([put(1), put(2, b"text")])
        assert caught.value.index == 2
        await db.apply_chunk([put(1)])


async def test_arguments_of_another_type_are_refused_by_name(tmp_path: Path) -> None:
    settings: list[Any] = [{"shards": 2}, {}]
    for wrong in settings:
        with pytest.raises(ConfigError, match="of type dict, not EngineConfig"):
            Engine(tmp_path, config=wrong)
    names: list[Any] = [5, (1, 1), None, LogId("1", 1), LogId(1, 1.5)]  # type: ignore[arg-type]
    async with Engine(tmp_path / "data", shards=1) as db:
        for name in names:
            with pytest.raises(LogOrderError, match="LogId of two plain ints"):
                db.update_last_applied(name)
            if name is not None:
                with pytest.raises(LogOrderError, match="LogId of two plain ints"):
                    await db.generate_snapshot_data(tmp_path / "snapshot", name)
        assert not (tmp_path / "snapshot").exists()
        for index, advice in ((0, False), (3, True)):
            with pytest.raises(LogGapError) as gap:
                await db.apply_chunk([put(index)])
            assert ("update_last_applied" in gap.value.hint) is advice


async def test_keys_may_come_from_a_generator(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2, machine=Generates) as db:
        assert (await db.apply_chunk([put(1), put(2)]))[1].succeeded
        assert db.get(b"a:b") == b"v"


@pytest.mark.parametrize("others", [0, 1])
async def test_answers_that_do_not_travel_fail_their_chunk_and_nothing_else(tmp_path: Path, others: int) -> None:
    async with Engine(tmp_path, shards=2, machine=Odd) as db:
        await db.apply_chunk([put(1)])
        for key in (b"surrogate", b"map", b"huge"):
            chunk = [put(2, key), *(put(3 + n, b"k%d" % n) for n in range(20 * others))]
            with pytest.raises((ChunkFailedError, StoreError)) as caught:
                await db.apply_chunk(chunk)
            assert caught.value.index == 2
        (result,) = await db.apply_chunk([put(2, b"number")])
        assert (result.succeeded, result.reason) == (False, "404")
        assert [worker["restarts"] for worker in db.stats()["workers"]] == [0, 0]


# ---- entries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [Entry(2, 1, b"", 1.5), Entry(2.0, 1, b""), Entry(2, True, b""), Entry(2, 1.0, b"")],  # type: ignore[arg-type]
)
async def test_numbers_that_are_no_ints_are_refused_and_do_no_harm(tmp_path: Path, entry: Entry) -> None:
    async with Engine(tmp_path, shards=2) as db:
        await db.apply_chunk([put(1)])
        for _ in range(2):
            with pytest.raises(LogOrderError):
                await db.apply_chunk([entry])
        await db.apply_chunk([put(2)])
        assert db.last_applied() == LogId(2, 1)


# ---- waiting ---------------------------------------------------------------------------------------------------------


async def test_a_run_mark_that_cannot_be_written_fails_the_flush_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(tmp_path, shards=2) as db:
        await db.apply_chunk([put(1)])
        rename = Path.rename

        def full(self: Path, target: Path) -> Path:
            if self.name == "run-mark.new":
                raise OSError(28, "No space left on device")
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", full)
            with pytest.raises(StoreFullError, match="run mark"):
                await asyncio.wait_for(db.flush_async(), 30)
        await db.flush_async()
        await db.apply_chunk([put(2)])
        assert db.is_running()


async def test_every_flush_hears_of_a_failure(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=2) as db:
        await db.apply_chunk([put(1)])
        flushes = [asyncio.ensure_future(db.flush_async()) for _ in range(3)]
        await asyncio.sleep(0)
        db._running().coordinator.fail(StoreError("the end"))
        answers = await asyncio.wait_for(asyncio.gather(*flushes, return_exceptions=True), 30)
        assert [str(answer) for answer in answers] == ["the end"] * 3
        with pytest.raises(StoreError, match="the end"):
            await db.aclose()


class Clumsy(KeyValue):
    """Can be made once; workers, and a second start, fare no better than its class says."""

    name: ClassVar[str] = "tests.clumsy"
    makes: ClassVar[bool] = True

    def __init__(self) -> None:
        if not Clumsy.makes:
            raise ValueError("not today")


def test_a_machine_that_cannot_be_made_leaves_the_directory_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Engine(tmp_path, shards=1, machine=Clumsy)
    monkeypatch.setattr(Clumsy, "makes", False)
    for _ in range(2):
        with pytest.raises(MachineImportError, match="not today"):
            db.start()
    monkeypatch.setattr(Clumsy, "makes", True)
    db.start()
    db.stop()
    db.close_storage()


async def test_a_wait_that_gives_up_is_forgotten(tmp_path: Path) -> None:
    async with Engine(tmp_path, shards=1) as db:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await db.wait_applied(99, timeout=0)
        assert len(shell_of(db).waiting.for_index) == 0


def test_a_stop_waits_for_an_install_that_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may write into a directory whose lock is free."""
    locked: list[bool] = []

    async def main() -> None:
        db = Engine(tmp_path / "db", shards=2)
        db.start()
        await db.apply_chunk(puts(1, 10))
        await db.generate_snapshot_data(tmp_path / "snapshot")
        begun, lock = asyncio.Event(), db._running().opened.lock
        loop = asyncio.get_running_loop()

        def slow(*what: Any) -> Any:
            loop.call_soon_threadsafe(begun.set)
            built = build(*what)
            locked.append(lock._key in type(lock)._held)
            return built

        monkeypatch.setattr("shardengine.engine.run.replacing.build", slow)
        restoring = asyncio.ensure_future(db.restore(tmp_path / "snapshot"))
        await begun.wait()
        db.stop()
        with pytest.raises(EngineError):
            await restoring
        db.close_storage()

    run(main())
    assert locked == [True]
    assert opened(tmp_path / "db", holds_ten).outcome == "opened"


def test_the_readers_of_dead_workers_are_cleared(tmp_path: Path) -> None:
    async def main() -> None:
        config = EngineConfig(views_max=1)
        async with Engine(tmp_path, shards=1, config=config) as db:
            await db.apply_chunk([put(1)])
            runtime = db._running()
            for round_ in range(30):  # more than there are reader slots
                barrier = runtime.coordinator.pinning
                taking = asyncio.ensure_future(db.create_snapshot())
                await asyncio.sleep(0)
                assert barrier.busy
                os.kill(runtime.workers.pid(0) or 0, 9)
                await asyncio.gather(taking, return_exceptions=True)
                await db.apply_chunk([put(2 + round_)])
            assert runtime.reads._stores[0].clear_dead_readers() == 0

    run(main())
