"""The data directory as machines really have it: modes, owners, links, cleaners, moves, names, damaged small files."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardengine import (
    ConfigError,
    DamagedError,
    DirectoryChangedError,
    Engine,
    EngineError,
    EngineStateError,
    Entry,
    FileRefusedError,
    LogGapError,
    LogId,
    LogOrderError,
    Put,
    encode,
    load_config,
    run,
)
from shardengine.engine.run import resources
from shardengine.engine.run.durability import _TICKS_A_LOOK
from shardengine.engine.storage.files import Lock, filesystem_of
from shardengine.engine.storage.generations import LOCK_BYTES
from shardengine.engine.verify import verify_directory
from shardengine.ipc.files import allocate, check_owner
from tests.directories import (
    applies_ten,
    config,
    contents,
    holds_ten,
    in_another_process,
    mark_of,
    opened,
    puts,
)
from tests.killing import ROOT, environment

SMALL = config("process")
FILES = [
    "LOCK",
    "worker.log",
    "config",
    "CURRENT",
    "run-mark",
    "gen-000001/GENERATION",
    "gen-000001/decision",
    "gen-000001/shard-000/data.mdb",
    "gen-000001/shard-000/lock.mdb",
    "gen-000001/shard-001/owner",
    "gen-000001/shard-001/ring",
]
SEALED = ["config", "gen-000001/GENERATION", "run-mark"]


# ---- modes and owners ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", ["000", "022", "277"])
def test_everything_an_engine_makes_is_its_users_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    in_another_process(
        """
        os.umask(int(sys.argv[2], 8))
        async def main():
            path = Path(sys.argv[1])
            async with Engine(path / "data", shards=2, config=config("process")) as db:
                await db.apply_chunk(puts(1, 10))
                await db.create_snapshot()
                await db.generate_snapshot_data(path / "data" / "snapshots" / "other")
        run(main)
        """,
        tmp_path,
        umask,
    )
    found = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in found}
    assert len(modes) > 20
    assert {path: mode for path, mode in modes.items() if mode != (0o700 if path.is_dir() else 0o600)} == {}


def other_user(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Have `path` belong to another user, who is not root."""
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@pytest.mark.parametrize("name", ["", "LOCK", "config", "gen-000001", "gen-000001/shard-000/ring"])
def test_what_belongs_to_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened(tmp_path, applies_ten, shards=2, config=SMALL)
    other_user(monkeypatch, tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(FileRefusedError, match=r"belongs to user .*run this as user"):
        opened(tmp_path, config=SMALL)
    assert contents(tmp_path) == before


def test_roots_own_files_are_taken_from_any_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Path("/").stat()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    if found.st_uid == 0:
        check_owner("/", found)


# ---- what lies where a file should -----------------------------------------------------------------------------------


def put_link(path: Path) -> None:
    victim = path.with_name("victim")
    path.rename(victim) if path.exists() else victim.write_bytes(b"")
    path.symlink_to(victim)


def put_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("put", [put_link, put_fifo, put_folder])
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_plain_file_is_refused_and_not_followed(
    tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "data"
    opened(path, applies_ten, shards=2, config=SMALL)
    put(path / name)
    before = (path / name).lstat()
    victim = (path / name).with_name("victim")
    content = victim.read_bytes() if victim.exists() else b""
    with pytest.raises(FileRefusedError):
        opened(path, config=SMALL)
    assert os.path.samestat((path / name).lstat(), before)
    assert (path / "gen-000001").is_dir()
    assert not victim.exists() or victim.read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe{}", b"[" * 5000, b"{", b'{"a":' * 5000, None, 1 << 40])
@pytest.mark.parametrize("name", [*SEALED, "CURRENT"])
def test_a_damaged_small_file_is_a_named_error(tmp_path: Path, name: str, damage: bytes | int | None) -> None:
    opened(tmp_path, applies_ten, shards=2, config=SMALL)
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    if isinstance(damage, int):
        os.truncate(file, damage)
    elif damage is None:  # a digit in the middle of it: still JSON
        at = next(at for at in range(len(content) - 1, 0, -1) if content[at : at + 1].isdigit())
        content[at] = ord("7") if content[at] != ord("7") else ord("8")
        file.write_bytes(content)
    else:
        file.write_bytes(damage)
    with pytest.raises(EngineError):
        opened(tmp_path, config=SMALL)
    if name in ("config", "gen-000001/GENERATION"):
        assert verify_directory(tmp_path)[0].problem.startswith(str(file))


def test_settings_that_are_too_deep_too_long_or_no_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for content in (b"a = " + b"[" * 5000, b"a.b" * 5000, b"\xff", b"a = 1\0"):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="not TOML"):
            load_config(file)
    for endless in ("/dev/zero", tmp_path, "/nowhere", "a\0b"):
        with pytest.raises(ConfigError):
            load_config(endless)


# ---- moved, removed, replaced ----------------------------------------------------------------------------------------


def test_a_directory_that_is_renamed_under_a_running_engine_stops_it_before_anything_lands_at_the_old_name(
    tmp_path: Path,
) -> None:
    old, moved = tmp_path / "data", tmp_path / "moved"
    opened(tmp_path / "other", applies_ten, shards=2, config=SMALL)

    async def main() -> None:
        db = Engine(old, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        old.rename(moved)
        shutil.copytree(tmp_path / "other", old)
        before = contents(old)
        for attempt in (db.flush_async, db.create_snapshot, db.reset):
            with pytest.raises(DirectoryChangedError, match="was moved"):
                await attempt()
        await holds_ten(db)
        with pytest.raises(DirectoryChangedError):
            await db.aclose()
        assert contents(old) == before and not mark_of(moved).clean

    run(main)
    assert opened(moved, holds_ten, config=SMALL).outcome == "opened"


@pytest.mark.parametrize("name", ["LOCK", "gen-000001/shard-000/owner", "gen-000001/shard-001/lock.mdb"])
def test_an_engine_notices_that_what_keeps_others_out_is_gone(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / name).unlink()
        for _ in range(_TICKS_A_LOOK):
            db._running().tick()
        assert not db.is_running()
        with pytest.raises(DirectoryChangedError, match="clean"):
            await db.apply_chunk(puts(11, 1))
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_worker_is_not_started_again_beside_a_readers_table_that_was_replaced(tmp_path: Path) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / "gen-000001" / "shard-000" / "lock.mdb").unlink()
        os.kill(db.stats()["workers"][0]["pid"], 9)
        with pytest.raises(DirectoryChangedError):
            await db.apply_chunk(puts(11, 10))
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_second_engine_is_refused_though_the_lock_was_removed(tmp_path: Path) -> None:
    async def main() -> None:
        db = Engine(tmp_path, shards=2, config=SMALL)
        db.start()
        await db.apply_chunk(puts(1, 10))
        (tmp_path / "LOCK").unlink()
        told = in_another_process(
            """
            try:
                Engine(sys.argv[1], config=EngineConfig(start_timeout_ms=200)).start()
            except EngineError as error:
                print(type(error).__name__)
            """,
            tmp_path,
        )
        assert told.strip() == "EngineLockedError"
        with pytest.raises(DirectoryChangedError):
            await db.aclose()

    run(main)


def test_a_stopped_directory_that_was_cleaned_is_mended_or_refused_by_name(tmp_path: Path) -> None:
    opened(tmp_path, applies_ten, shards=2, config=SMALL)
    (tmp_path / "LOCK").unlink()
    table = tmp_path / "gen-000001" / "shard-000" / "lock.mdb"
    table.unlink()
    opened(tmp_path, holds_ten, config=SMALL)
    assert table.stat().st_blocks * 512 >= LOCK_BYTES, "what LMDB writes into unasked has its disk"
    owner = tmp_path / "gen-000001" / "shard-001" / "owner"
    owner.unlink()
    with pytest.raises(DamagedError, match=r"owner is missing.*make that file, empty"):
        opened(tmp_path, config=SMALL)
    owner.touch(0o600)
    opened(tmp_path, holds_ten, config=SMALL)


def test_a_lock_is_taken_on_the_file_that_has_the_name(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "LOCK")
    (tmp_path / "LOCK").unlink()
    lock.take()
    try:
        assert (tmp_path / "LOCK").read_text() == str(os.getpid())
    finally:
        lock.close()


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_relative_path_means_the_same_after_the_host_changed_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    opened(there / "data", applies_ten, shards=2, config=SMALL)
    monkeypatch.chdir(here)

    async def main() -> None:
        db = Engine("data", shards=2, config=SMALL)
        monkeypatch.chdir(there)
        before = contents(there)
        db.start()
        await db.apply_chunk(puts(1, 5))
        os.kill(db.stats()["workers"][0]["pid"], 9)
        await db.apply_chunk(puts(6, 5))
        await db.create_snapshot()
        await db.flush_async()
        await db.restore((await db.create_snapshot()).path, force=True)
        await db.aclose()
        assert contents(there) == before

    run(main)
    opened(here / "data", holds_ten, config=SMALL)


@pytest.mark.parametrize("name", [b"a b \xc3\xa4", b"\xff\xfe"], ids=["not ASCII", "not UTF-8"])
def test_directories_may_have_any_name(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name

    async def main() -> None:
        async with Engine(path, shards=2, config=SMALL) as db:
            await db.apply_chunk(puts(1, 10))
            info = await db.create_snapshot()
            await db.restore(info.path)
            await db.generate_snapshot_data(os.fsdecode(path + b"/snapshots/own"), None)
            await holds_ten(db)

    run(main)
    opened(Path(os.fsdecode(path)), holds_ten, config=SMALL)
    assert verify_directory(os.fsdecode(path)) == []


@pytest.mark.parametrize("path", ["a\0b", b"a\0b", None, 7, "\ud800"])
def test_what_is_no_path_is_refused_by_name(path: object) -> None:
    with pytest.raises(ConfigError, match="is no path"):
        Engine(path)  # type: ignore[arg-type]


def test_a_link_that_leads_in_a_circle_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(EngineError):
        Engine(tmp_path / "a").start()


def test_a_directory_may_be_named_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    opened(tmp_path / "link", applies_ten, shards=2, config=SMALL)
    opened(tmp_path / "real", holds_ten, config=SMALL)


def test_mount_points_may_have_any_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = (
        b"1 1 0:1 / / rw - ext4 /dev/sda rw\n"
        b"2 1 0:2 / /mnt/a\\040b\\134c rw shared:1 - nfs4 host:/ rw\n"
        b"3 1 0:3 / /mnt/\xc3\xa4\xff rw - cifs //host rw\n"
    )
    monkeypatch.setattr(Path, "read_bytes", lambda self: mounts)
    assert filesystem_of(Path("/mnt/a b\\c/data")) == "nfs4"
    assert filesystem_of(Path(os.fsdecode(b"/mnt/\xc3\xa4\xff/data"))) == "cifs"
    assert filesystem_of(Path("/mnt/ab")) == "ext4"
    monkeypatch.setattr(Path, "read_bytes", lambda self: mounts.partition(b"\n")[2])
    assert filesystem_of(Path("/mnt/ab")) == "unknown", "as in a chroot"


# ---- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_where_disk_cannot_be_reserved_zeroes_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unsupported(descriptor: int, start: int, length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    file = tmp_path / "file"
    file.write_bytes(b"kept")
    with file.open("r+b") as descriptor:
        os.truncate(file, 8192)
        allocate(descriptor.fileno(), 2, (3 << 20) + 1)
    assert file.read_bytes() == b"kept" + bytes((3 << 20) - 1)
    assert file.stat().st_blocks * 512 >= 3 << 20
    opened(tmp_path / "data", applies_ten, shards=2, config=SMALL)


def test_a_stopped_directory_on_a_read_only_medium_can_be_verified(tmp_path: Path) -> None:
    opened(tmp_path / "data", applies_ten, shards=2, config=SMALL)
    disk = tmp_path / "disk"
    disk.mkdir()
    steps = (
        f"mount -t tmpfs -o size=200m none '{disk}' && cp -r --sparse=always '{tmp_path}/data' '{disk}' && "
        f"rm '{disk}/data/LOCK' && mount -o remount,ro '{disk}' && exec \"$@\""
    )
    program = "import sys; from shardengine.engine.verify import verify_directory; print(verify_directory(sys.argv[1]))"
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, steps, "sh", "true"], capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("no file systems of its own for this user")
    done = subprocess.run(
        [*inside, steps, "sh", sys.executable, "-c", program, str(disk / "data")],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# ---- what the host allows --------------------------------------------------------------------------------------------


def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str]) -> int:
    """The cores that count on a machine of 64 with these cgroups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(own)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    return resources.usable_cores()


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "300000 100000\n"}, 3),
        ("0::/a.slice/b.service\n", {"a.slice/cpu.max": "250000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 3),
        ("0::/a/b\n", {"a/cpu.max": "800000 100000", "a/b/cpu.max": "50000 100000"}, 1),
        ("0::/../../a\n", {"a/cpu.max": "800000 100000"}, 8),
        (
            "4:cpu,cpuacct:/d/e\n",
            {"cpu,cpuacct/d/cpu.cfs_quota_us": "150000", "cpu,cpuacct/d/cpu.cfs_period_us": "1000"},
            64,
        ),
        ("4:cpu,cpuacct:/d/e\n", {"cpu/d/cpu.cfs_quota_us": "15000", "cpu/d/cpu.cfs_period_us": "10000"}, 2),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("0::/\xff\nnonsense\n\n:", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_cores_are_counted_by_the_tightest_quota_of_all_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], cores: int
) -> None:
    assert cgroups(tmp_path, monkeypatch, own, files) == cores


# ---- a log whose head is gone ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_log_may_begin_at_a_large_index(tmp_path: Path, durability: str) -> None:
    begun = LogId(1_000_000, 7)
    chosen = config(durability)  # type: ignore[arg-type]

    async def begin(db: Engine) -> None:
        entry = Entry(begun.index + 1, 7, encode(Put(b"k", b"v")))
        with pytest.raises(LogGapError, match=r"update_last_applied\(LogId\(1000000, term\)\)"):
            await db.apply_chunk([entry])
        db.update_last_applied(begun)
        db.update_last_applied(LogId(5, 1))
        assert (db.last_applied(), len(db), db.entry_term(begun.index)) == (begun, 0, 7)
        info = await db.create_snapshot()
        assert info.last_included == begun

    async def go_on(db: Engine) -> None:
        assert (db.last_applied(), db.entry_term(begun.index), db.entry_term(5)) == (begun, 7, None)
        with pytest.raises(LogOrderError):
            await db.apply_chunk([Entry(begun.index + 1, 6, encode(Put(b"k", b"v")))])
        await db.apply_chunk([Entry(begun.index + 1, 7, encode(Put(b"k", b"v")))])
        with pytest.raises(EngineStateError, match="feed the entries between"):
            db.update_last_applied(LogId(begun.index + 9, 7))
        assert db.get(b"k") == b"v"

    opened(tmp_path, begin, shards=2, config=chosen)
    opened(tmp_path, go_on, config=chosen)
    assert opened(tmp_path, config=chosen).last_applied == LogId(begun.index + 1, 7)


def test_where_a_log_begins_survives_the_death_of_every_process(tmp_path: Path) -> None:
    in_another_process(
        """
        db = Engine(sys.argv[1], shards=2, config=config("process"))
        db.start()
        db.update_last_applied(LogId(1000, 3))
        os._exit(0)
        """,
        tmp_path,
    )
    assert opened(tmp_path, config=SMALL).last_applied == LogId(1000, 3)


def test_no_log_begins_at_what_is_no_entry(tmp_path: Path) -> None:
    async def use(db: Engine) -> None:
        for wrong in (LogId(1 << 64, 1), LogId(5, -1), LogId(5, True)):
            with pytest.raises(LogOrderError):
                db.update_last_applied(wrong)
        db.persist_last_applied(LogId(5, 1))
        assert db.last_applied() == LogId(5, 1) and mark_of(tmp_path).clean

    opened(tmp_path, use, shards=2, config=SMALL)
