from collections.abc import Sequence

from shardengine.shards.types import Entry

def normal_form(
    entries: Sequence[Entry], clock: int
) -> tuple[int, list[bytes], list[tuple[int, int]], int, bytes] | None: ...
def weigh_puts(
    datas: list[bytes],
    tag: int,
    key_bytes_max: int,
    value_bytes_max: int,
    table: bytes,
    shards: int,
    base: int,
    runs: bytes,
) -> tuple[bytes, list[int]] | None: ...
def fill_parts(datas: list[bytes], owners: bytes, base: int, runs: bytes, views: dict[int, memoryview]) -> None: ...
def sorted_puts(view: memoryview, tag: int) -> tuple[list[tuple[bytes, bytes]], int] | None: ...
