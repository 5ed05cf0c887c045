"""What a load reads: packed and unpacked, in every encoding that people's files have, whole, cut off and damaged."""

from __future__ import annotations

import bz2
import codecs
import fcntl
import gzip
import lzma
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import Delete, Entry, LogId, Put, encode
from shardengine.engine.cli.common import DataSaysNoError
from shardengine.engine.cli.loads import Prefix
from shardengine.engine.cli.records import BadRecordError, Records, format_tsv, parse_jsonl, parse_tsv
from shardengine.engine.cli.source import READ_BYTES, Lines, Source, text_mark
from tests.commands import cli

TEXT = "ä\teins\nb\tzwei\n"
LINES = [line.encode() for line in TEXT.splitlines()]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


@contextmanager
def source(path: Path, content: bytes) -> Iterator[Source]:
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    found = Source(fd, str(path))
    try:
        yield found
    finally:
        found.close()
        os.close(fd)


def lines_of(path: Path, content: bytes) -> list[bytes]:
    with source(path, content) as found:
        lines, all_of_them = Lines(found, 1 << 20), list[bytes]()
        while some := lines.next():
            all_of_them += some
        return all_of_them


def piped(content: bytes) -> list[bytes]:
    """The lines of a pipe that gives a byte at a time."""
    receive, send = os.pipe()
    found = Source(receive, "-")
    try:
        lines, all_of_them = Lines(found, 1 << 20), list[bytes]()
        os.write(send, content)  # fits a pipe
        os.close(send)
        while some := lines.next():
            all_of_them += some
        return all_of_them
    finally:
        found.close()
        os.close(receive)


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_files_are_read_as_if_they_were_not(tmp_path: Path, packing: str) -> None:
    pack = PACKERS[packing]
    assert lines_of(tmp_path / "file", pack(TEXT.encode())) == LINES
    assert piped(pack(TEXT.encode())) == LINES
    members = pack(TEXT.encode()) + pack(b"") + pack(b"c\tdrei") + bytes(8)
    assert lines_of(tmp_path / "file", members) == [*LINES, b"c\tdrei"]
    assert lines_of(tmp_path / "file", pack(codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"))) == LINES


@pytest.mark.parametrize("packing", PACKERS)
def test_a_small_file_that_unpacks_to_a_large_one_is_read_piece_by_piece(tmp_path: Path, packing: str) -> None:
    line = b"k\t" + b"v" * 998 + b"\n"
    with source(tmp_path / "file", PACKERS[packing](line * 20_000)) as found:
        sizes = []
        while block := found.block():
            sizes.append(len(block))
    assert sum(sizes) == 20_000 * len(line)
    assert max(sizes) <= READ_BYTES


@pytest.mark.parametrize("packing", PACKERS)
def test_packed_data_that_is_cut_off_or_damaged_is_named_with_its_line(tmp_path: Path, packing: str) -> None:
    many = b"".join(b"key-%d\t%d\n" % (n, n * n) for n in range(40_000))
    packed = PACKERS[packing](many)
    with pytest.raises(ValueError, match=f"the {packing} data is cut off"):
        lines_of(tmp_path / "file", packed[:-20])
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0xFF
    with pytest.raises(ValueError, match=f"the {packing} data is (damaged|cut off)"):
        lines_of(tmp_path / "file", bytes(damaged))
    with source(tmp_path / "file", packed[: len(packed) // 2]) as found:
        records = Records(
            Lines(found, 1 << 20), parse_tsv, before=Prefix(), last=LogId(7, 1), chunk_entries=500, chunk_bytes=1 << 20
        )
        read: list[Entry] = []
        with pytest.raises(BadRecordError) as caught:
            read.extend(entry for chunk in records for entry in chunk.entries)
    assert caught.value.line == records.line + 1


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_byte_order_mark_is_understood_and_left_out(tmp_path: Path, mark: bytes, encoding: str) -> None:
    assert lines_of(tmp_path / "file", mark + TEXT.encode(encoding)) == LINES
    assert piped(mark + TEXT.encode(encoding)) == LINES
    assert lines_of(tmp_path / "file", mark) == []
    if encoding != "utf-8":
        with pytest.raises(ValueError, match=f"no {encoding.upper()} text"):
            lines_of(tmp_path / "file", mark + TEXT.encode(encoding)[:-1])


@pytest.mark.parametrize(
    ("content", "said", "command"),
    [
        (b"\x28\xb5\x2f\xfd\x24\x00", "compressed with zstd", "zstdcat"),
        (b"\x04\x22\x4d\x18\x64", "compressed with lz4", "lz4cat"),
        (b"PK\x03\x04\x14", "compressed with zip", "unzip -p"),
        ("key\tvalue".encode("utf-16-le"), "UTF-16LE without", "iconv -f UTF-16LE -t UTF-8"),
        ("key\tvalue".encode("utf-16-be"), "UTF-16BE without", "iconv -f UTF-16BE -t UTF-8"),
    ],
)
def test_what_cannot_be_read_here_is_named_with_the_command_that_can(
    tmp_path: Path, content: bytes, said: str, command: str
) -> None:
    with pytest.raises(DataSaysNoError) as caught:
        lines_of(tmp_path / "a file", content)
    assert said in caught.value.message
    assert caught.value.hint == f"{command} '{tmp_path}/a file' | shardengine load -"


def test_nul_bytes_and_carriage_returns_stay_what_they_are(tmp_path: Path) -> None:
    assert lines_of(tmp_path / "file", b"a\0b\t\0\r\nc\t\r\r\n") == [b"a\0b\t\0\r", b"c\t\r\r"]
    assert parse_tsv(b"a\0b\t\0\r") == encode(Put(b"a\0b", b"\0"))


@given(head=st.binary(max_size=20))
def test_whatever_a_scan_prints_first_is_read_back_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, head: bytes
) -> None:
    packed = [b"\x1f\x8b", b"BZh91AY&SY", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]
    starts = [b"", *packed, b"\xef\xbb\xbf", b"\xff\xfe", b"a\0b\0c\0d\0"]
    for start in starts:
        line = format_tsv(start + head, b"value")
        assert piped(text_mark(line) + line + b"\n") == [line]


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "a", "key": "b", "value": "c"}',
        b'{"key": "a", "k\\u0065y": "b", "value": "c"}',
        b'{"key": "a", "value": "b", "value": "\\"c\\""}',
        b'{"op": "put", "key": "a", "value": "b", "op": "delete"}',
        b'{"key": "\\\\", "value": "b", "key": "\\\\"}',
    ],
)
def test_a_member_that_comes_twice_is_refused_by_name(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"`(key|value|op)` comes twice"):
        parse_jsonl(line)


def test_quotes_inside_of_values_make_no_twins() -> None:
    assert parse_jsonl(b'{"key": "\\"a\\"", "value": "\\\\\\"key\\": "}') == encode(Put(b'"a"', b'\\"key": '))
    assert parse_jsonl(b'{"op": "delete", "key": "\\""}') == encode(Delete(b'"'))
    for wrong in (b'{"key": null, "key_hex": "00", "value": "a"}', b'{"key": "\xff", "value": "a"}', b"[]", b"\0"):
        with pytest.raises(ValueError, match=r"\w"):
            parse_jsonl(wrong)


def test_descriptors_above_1023_are_read_as_others_are(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("this user may not open so many files")
    (tmp_path / "file").write_bytes(TEXT.encode())
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    low = os.open(tmp_path / "file", os.O_RDONLY)
    high = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        found = Source(high, "file")
        assert Lines(found, 1 << 20).next() == LINES
        assert found.has_more()
        found.close()
    finally:
        os.close(low)
        os.close(high)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_values_as_large_as_the_directory_allows_go_through_whatever_comes_before_them(tmp_path: Path) -> None:
    sizes = [1_500_000, 2_900_000, 10, 1_400_000, 3_000_000]
    path = tmp_path / "large.tsv"
    path.write_text("".join(f"k{size}\t{'v' * size}\n" for size in sizes))
    made = cli("load", "-", "--data", tmp_path / "data", "--shards", 1, SHARDENGINE_VALUE_BYTES_MAX="3_000_000")
    assert made.code == 0, made.err
    ran = cli("load", path, "--data", tmp_path / "data", "--json", SHARDENGINE_RING_BYTES="12_599_296")
    assert (ran.code, ran.err) == (0, "")
    assert ran.facts["entries"] == len(sizes)
    over = cli("load", "-", "--data", tmp_path / "data", stdin=f"k\t{'v' * 3_000_001}\n")
    assert over.code == 1
    assert "line 1: " in over.err
    assert "3000000" in over.err


def test_a_stream_without_an_end_or_a_line_is_refused_and_not_read_for_ever(tmp_path: Path) -> None:
    ran = cli("load", "/dev/zero", "--data", tmp_path / "data", "--shards", 1)
    assert ran.code == 1
    assert "line 1: longer than " in ran.err
    assert cli("load", tmp_path, "--data", tmp_path / "data").code == 2
    (tmp_path / "empty").touch()
    assert cli("load", tmp_path / "empty", "--data", tmp_path / "data", "--json").facts["records"] == 0
