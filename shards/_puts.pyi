from collections.abc import Sequence

from shards.puts import Columns
from shards.types import Entry

def columns(entries: Sequence[Entry]) -> Columns | None: ...
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
