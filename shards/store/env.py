"""Opening an environment: flags, descriptors, whose files they are, and what is wrong with them."""

from __future__ import annotations

import errno
import os
import struct
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import lmdb
import lmdb.verify
import msgspec

from shardengine.ipc.errors import FULL, LACKING, hint_for
from shardengine.ipc.files import FILE_MODE, NotPlainError, allocate, open_plain
from shardengine.shards.errors import StoreDamagedError, StoreError, StoreFullError, StoreMismatchError
from shardengine.shards.types import Position

FORMAT = 3
PAGE_BYTES = os.sysconf("SC_PAGESIZE")
BadKey = lmdb.BadValsizeError
POSITION = b"position"
IDENTITY = b"identity"
SOLO = b"solo"
SPARE_TXNS = 4
"""Closed read transactions whose slots in the readers' table are kept for those to come."""
DATA, META = b"data", b"meta"
DATABASES = (DATA, b"expiry", META)
"""Every database of an environment, by name."""
COMMIT_PAGES = 64  # for the free list, meta and root pages of a small commit
_READER_BYTES = 64  # of a slot in the readers' table, and of each of the two lines of its head
_META = struct.Struct("<I116xQQ")  # magic ... last page, transaction
_PAGE_HEADER, _MAGIC = 16, 0xBEEFC0DE


class Identity(msgspec.Struct, frozen=True):
    """Whose files an environment holds. An expected `generation` of "" is any."""

    generation: str
    shard: int
    shards: int
    slots: int
    machine: str
    format: int = FORMAT


class SoloRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a Solo, `group`, left beside its position: its results, and the `runs` that came with it. It is of no
    interest once another group is committed."""

    group: int
    results: bytes
    runs: bytes = b""


encode = msgspec.msgpack.encode
decode_position = msgspec.msgpack.Decoder(Position).decode
decode_solo = msgspec.msgpack.Decoder(SoloRecord).decode
_decode_identity = msgspec.msgpack.Decoder(Identity).decode


def check_library() -> None:
    """Raise StoreError unless this liblmdb copies a given read transaction: snapshots are made that way."""
    version = lmdb.version(subpatch=True)
    if not version[3]:
        raise StoreError(
            f"the liblmdb in use, {'.'.join(map(str, version[:3]))}, cannot copy a pinned transaction",
            hint="install lmdb with the library it brings along: pip install --force-reinstall lmdb, without "
            "LMDB_FORCE_SYSTEM or LMDB_PURE set",
        )


def refusal(what: str, error: lmdb.Error, hint: str = "", **facts: Any) -> StoreError:
    """What LMDB could not do, with the `hint` for that; where it passes on what the system said, with the one for it,
    and that as `errno`."""
    number = number_of(error)
    kind = StoreFullError if number in FULL else StoreError
    return kind(f"{what}: {error}", hint=hint_for(OSError(number, "")) if number else hint, errno=number, **facts)


def number_of(error: lmdb.Error) -> int:
    """The number of what the system said; 0 when LMDB speaks for itself. Its binding keeps the text alone."""
    return next((number for number in errno.errorcode if str(error).endswith(f": {os.strerror(number)}")), 0)


def open_environment(
    path: Path,
    map_bytes: int,
    readers_max: int,
    *,
    readonly: bool,
    sync: bool = False,
    part: bool = False,
    slots: bool = True,
) -> lmdb.Environment:
    """Open the environment at `path`; with `part`, a file of a snapshot, which nobody writes and which needs no lock.
    Without `slots` nothing is written, and nobody may write while it is open.

    Raises StoreFullError when the disk has no room for it, StoreError for anything else.
    """
    try:
        if slots and not part:
            _allocate_readers(path / "lock.mdb", readers_max)
        env = lmdb.open(
            os.fsencode(path),
            mode=FILE_MODE,
            map_size=map_bytes,
            subdir=not part,
            lock=slots and not part,
            create=not readonly,
            readonly=readonly,
            writemap=not readonly,
            meminit=False,
            sync=sync,
            metasync=sync,
            readahead=not readonly,  # the writer walks into fresh pages; lookups read one at a time
            max_dbs=len(DATABASES),
            max_readers=readers_max,
            max_spare_txns=SPARE_TXNS if readonly else 0,
            lib_version=0,
        )
    except lmdb.Error as error:
        hint = open_hint(path, error)
        raise refusal(f"cannot open {path}", error, hint, path=str(path), map_bytes=map_bytes) from error
    except OSError as error:
        kind = StoreFullError if error.errno in FULL else StoreError
        raise kind(f"cannot open {path}: {error}", hint=hint_for(error), path=str(path)) from error
    keep_from_children(env)
    _close_on_exec(path if part else path / "data.mdb")
    return env


def open_hint(path: Path, error: lmdb.Error) -> str:
    """What to do about an environment that cannot be opened, or whose readers' table is full."""
    if "already open in this process" in str(error):
        return "one engine or reader of a directory per process: close the other one, or open it after the fork"
    if not isinstance(error, lmdb.ReadersFullError):
        return ""
    return f"close views or readers, raise readers_max, raise views_max, or see who else reads {path}"


def _allocate_readers(table: Path, readers_max: int) -> None:
    """Give the readers' table its disk: LMDB makes it sparse and stores into it through a map, a SIGBUS on a full disk.

    Never while the environment is open in this process: the descriptor's end would drop LMDB's own locks.
    """
    descriptor = open_table(table)
    if descriptor is None:
        return
    try:
        allocate(descriptor, 0, (readers_max + 2) * _READER_BYTES)
    finally:
        os.close(descriptor)


def open_table(table: Path) -> int | None:
    """A descriptor of the file of a readers' table; None where nothing can be written, and LMDB does without."""
    try:
        return os.open(table, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return None
        raise


def keep_from_children(holder: object) -> None:
    """See to it that no forked child drops `holder`, an environment or what refers to its open transactions, not even
    as its interpreter ends: the slots in the readers' table are the parent's, and closing would free them."""
    _holders.add(holder)


_holders: weakref.WeakSet[object] = weakref.WeakSet()


def _leave_to_the_parent() -> None:
    import ctypes

    for holder in list(_holders):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(holder))


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _close_on_exec(file: Path) -> None:
    """LMDB opens its data file without O_CLOEXEC: what the host executes would inherit a writable descriptor."""
    with suppress(OSError):
        ours = file.stat()
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                found = os.fstat(int(name))
                if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                    os.set_inheritable(int(name), False)


def make_databases(env: lmdb.Environment) -> dict[bytes, lmdb._Database]:
    """Every database by name, made where it is missing."""
    return {name: env.open_db(name) for name in DATABASES}


def reserve_a_commit(env: lmdb.Environment, file: Path) -> None:
    """Give a file disk for the next small commits: a full disk is an error here, and a SIGBUS in them.

    Raises StoreFullError.
    """
    used = used_bytes(env)
    try:
        with file.open("r+b") as content:
            allocate(content.fileno(), used, COMMIT_PAGES * PAGE_BYTES)
    except OSError as error:
        raise StoreFullError(f"{file}: no room for a commit: {error}", hint=hint_for(error), used=used) from error


def used_bytes(env: lmdb.Environment) -> int:
    """Where the last page that was ever used ends."""
    return int(env.info()["last_pgno"] + 1) * PAGE_BYTES


def check_length(file: Path) -> None:
    """Raise StoreDamagedError when a file is shorter than the pages in use: reading them through a map is a SIGBUS.

    The layout is that of LMDB 0.9's `MDB_meta`, on the first two pages behind a 16-byte header:
    https://github.com/LMDB/lmdb/blob/LMDB_0.9.33/libraries/liblmdb/mdb.c
    """
    try:
        descriptor = open_plain(file)
    except NotPlainError as error:
        raise StoreDamagedError(f"{file} is no plain file", hint="restore a snapshot", path=str(file)) from error
    try:
        head, size = os.pread(descriptor, 2 * PAGE_BYTES, 0), os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    metas = [_META.unpack_from(head, page + _PAGE_HEADER) for page in (0, PAGE_BYTES) if len(head) == 2 * PAGE_BYTES]
    last_page = max(((txnid, last) for magic, last, txnid in metas if magic == _MAGIC), default=(0, 1))[1]
    if size < (last_page + 1) * PAGE_BYTES:
        raise StoreDamagedError(
            f"{file} is cut off: {size} bytes, and {(last_page + 1) * PAGE_BYTES} are in use",
            hint="restore a snapshot",
            size=size,
        )


def check_identity(path: Path, found: bytes | None, expected: Identity) -> None:
    """Raise StoreMismatchError unless what an environment says of itself, `found`, is `expected`."""
    if found is None:
        raise StoreMismatchError(f"{path} is no shard: it holds no identity", path=str(path))
    try:
        identity = _decode_identity(found)
    except msgspec.MsgspecError as error:
        raise StoreMismatchError(f"{path}: unreadable identity: {error}", path=str(path)) from error
    for field in msgspec.structs.fields(Identity):
        has, wants = getattr(identity, field.name), getattr(expected, field.name)
        if has != wants != "":
            raise StoreMismatchError(
                f"{path} belongs to {field.name} {has!r}, not {wants!r}", path=str(path), found=has, expected=wants
            )


def damage_in(path: Path) -> list[str]:
    """What is structurally wrong with an environment at rest, or with a part's file, by reading every page; empty when
    nothing is. No page, however it was forged, does harm. OSError: this process lacks what it takes to look."""
    file = path / "data.mdb" if path.is_dir() else path
    try:
        check_length(file)
        findings: list[str] = lmdb.verify.verify(str(path))  # type: ignore[no-untyped-call]
        return findings
    except (lmdb.verify.VerifyError, StoreDamagedError, OSError) as error:
        if isinstance(error, OSError) and error.errno in LACKING:
            raise
        return [str(error)]
    except Exception as error:  # a page that the verifier does not survive either
        return [f"{file}: {type(error).__name__} while its pages were read: {error}"]
