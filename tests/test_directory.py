"""The data directory as machines really have it: modes, owners, links, damaged small files, disks, quotas."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from shardengine import (
    ConfigError,
    Engine,
    EngineError,
    Entry,
    FileRefusedError,
    LogGapError,
    LogId,
    LogOrderError,
    Put,
    encode,
    load_config,
)
from shardengine.engine.run import resources
from shardengine.engine.verify import verify_directory
from shardengine.ipc.files import allocate, check_owner
from tests.directories import applies_ten, config, contents, in_another_process, mark_of, opened
from tests.disks import in_a_file_system, needs_file_systems

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


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What an engine of two shards left when it was stopped, with ten entries in it: to be copied."""
    path = tmp_path_factory.mktemp("ten")
    opened(path / "data", applies_ten, shards=2, config=SMALL)
    yield path / "data"
    rmtree(path)


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
def test_what_belongs_to_another_user_is_refused(
    ten: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    copytree(ten, tmp_path, dirs_exist_ok=True)
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
    ten: Path, tmp_path: Path, name: str, put: Callable[[Path], None]
) -> None:
    path = tmp_path / "data"
    copytree(ten, path)
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
def test_a_damaged_small_file_is_a_named_error(
    ten: Path, tmp_path: Path, name: str, damage: bytes | int | None
) -> None:
    copytree(ten, tmp_path, dirs_exist_ok=True)
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
    needs_file_systems(disk)
    prepare = (
        f"cp -r --sparse=always '{tmp_path}/data' '{disk}' && rm '{disk}/data/LOCK' && mount -o remount,ro '{disk}'"
    )
    program = "import sys; from shardengine.engine.verify import verify_directory; print(verify_directory(sys.argv[1]))"
    done = in_a_file_system(disk, sys.executable, "-c", program, str(disk / "data"), size="200m", prepare=prepare)
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
