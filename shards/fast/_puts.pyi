from collections.abc import Sequence

from shardengine.shards.types import Entry

def normal_form(
    entries: Sequence[Entry], clock: int
) -> tuple[int, list[bytes], list[tuple[int, int]], int, bytes] | None: ...
def split_puts(
    datas: list[bytes],
    tag: int,
    key_bytes_max: int,
    value_bytes_max: int,
    table: bytes,
    shards: int,
    base: int,
    runs: bytes,
) -> list[bytes | None] | None: ...
def sorted_puts(view: memoryview, tag: int) -> tuple[list[tuple[bytes, bytes]], int] | None: ...
