"""Every hash of the house. The algorithms are xxHash's: XXH64 for slots, XXH3-64 and XXH3-128 for checksums.

Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_64_intdigest as checksum
from xxhash import xxh3_128 as hasher128
from xxhash import xxh3_128_digest as checksum128
from xxhash import xxh3_128_intdigest
from xxhash import xxh64_intdigest as key_hash

__all__ = ["DIGEST_MODULUS", "checksum", "checksum128", "hasher128", "key_hash", "records_digest"]

DIGEST_MODULUS = 1 << 128
_NO_DEADLINE = bytes(8)


def records_digest(records: Iterable[tuple[bytes, bytes]]) -> int:
    """Sum over live records of xxh3_128(u32le(len key) | key | u64le(deadline or 0) | value), modulo 2^128.

    A sum does not depend on order or on which shard holds a record. No record has a deadline yet.
    """
    total = 0
    for key, value in records:
        total += xxh3_128_intdigest(len(key).to_bytes(4, "little") + key + _NO_DEADLINE + value)
    return total % DIGEST_MODULUS
