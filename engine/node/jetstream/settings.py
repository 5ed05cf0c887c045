"""What a stream has to be so that it is a log which loses nothing: how one is made, and what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from shardengine.engine.errors import LogSettingsError
from shardengine.shards.digest import checksum128

SERVER_MIN = (2, 15)
"""The oldest server whose batches are atomic and whose leaders are up to date before they serve."""
IDENTITY_KEY = "shardengine"
"""Under this key of a stream's metadata lies a word of ours, unlike that of any other stream."""
HEADERS_BYTES = 512
"""More than our headers take of a message."""
_LEAST_MESSAGE_BYTES = 64 << 10
PAYLOAD_BYTES_MIN = 264 << 10
"""A piece of a snapshot is one message between nodes, and no longer than this."""


class Setting(NamedTuple):
    """One that is wrong."""

    name: str
    value: object
    wanted: str


def subjects_of(stream: str) -> str:
    return f"{stream}.>"


def mark_of(identity: str) -> str:
    """What tells the subjects of one log from those of another one of its name, which came before it or after it."""
    return checksum128(identity.encode()).hex()[:12]


def news_of(stream: str) -> str:
    """Where the servers send on what was stored."""
    return f"_shardengine.{stream}.new.>"


def config_of(stream: str, replicas: int, word: str, first_position: int = 1) -> dict[str, Any]:
    """The configuration of a new log, whose first frame is to be at `first_position`."""
    return {
        **({"first_seq": first_position} if first_position > 1 else {}),
        "name": stream,
        "subjects": [subjects_of(stream)],
        "storage": "file",
        "num_replicas": replicas,
        "retention": "limits",
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": -1,
        "deny_delete": True,
        "allow_direct": True,
        "allow_atomic": True,
        "republish": {"src": subjects_of(stream), "dest": news_of(stream)},
        "metadata": {IDENTITY_KEY: word},
    }


def check_settings(stream: str, replicas: int, config: Mapping[str, Any], server: str) -> None:
    """Raise LogSettingsError with all that is wrong with a stream, and with the `server`'s version."""
    wrong = [*_wrong_server(server), *_wrong(stream, replicas, config)]
    if wrong:
        said = "; ".join(f"{name} is {value!r}, and must be {wanted}" for name, value, wanted in wrong)
        raise LogSettingsError(
            f"the stream {stream!r} is not set up as a log: {said}",
            hint="set the stream up so (nats stream edit), or name one that is not there yet: it is made right",
            stream=stream,
            wrong=wrong,
        )


def check_payload(stream: str, payload: int) -> None:
    """Raise LogSettingsError when a server takes no message as long as nodes send each other."""
    if payload < PAYLOAD_BYTES_MIN:
        raise LogSettingsError(
            f"the servers of the stream {stream!r} take messages of {payload} bytes, and nodes give each other "
            f"snapshots in messages of up to {PAYLOAD_BYTES_MIN}",
            hint="set max_payload on every server: 8MB suits most",
            stream=stream,
            wrong=[Setting("max_payload", payload, f"at least {PAYLOAD_BYTES_MIN}")],
        )


def _wrong_server(version: str) -> Iterator[Setting]:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < SERVER_MIN:
        yield Setting("the server's version", version, "2.15 or later")


def _wrong(stream: str, replicas: int, config: Mapping[str, Any]) -> Iterator[Setting]:
    """A setting that is false, 0 or absent may be missing from what a server says."""
    for name, right, wanted in _rules(stream, replicas):
        value = config.get(name)
        if not right(value):
            yield Setting(name, value, wanted)


_Rule = tuple[str, Callable[[Any], bool], str]


def _rules(stream: str, replicas: int) -> Iterator[_Rule]:
    yield "subjects", lambda value: value == [subjects_of(stream)], f"[{subjects_of(stream)!r}]"
    yield "storage", lambda value: value == "file", "'file'"
    yield "num_replicas", lambda value: (value or 1) >= replicas, f"at least {replicas}"
    yield "retention", lambda value: value in (None, "limits"), "'limits'"
    yield "discard", lambda value: value == "new", "'new'"
    for name in ("max_msgs", "max_msgs_per_subject"):
        yield name, lambda value: (value or -1) < 0, "-1: nothing goes by itself"
    yield "max_age", lambda value: not value, "0: nothing goes by itself"
    yield "max_msg_size", _takes_enough, f"-1, or at least {_LEAST_MESSAGE_BYTES}"
    for name in ("deny_delete", "allow_direct", "allow_atomic"):
        yield name, bool, "true"
    for name in _NEVER:
        yield name, lambda value: not value, "false, or absent"
    yield "persist_mode", lambda value: value in (None, "", "default"), "'default'"
    yield "republish", lambda value: _republishes(stream, value), f"'>' to {news_of(stream)!r}, whole"


_NEVER = (
    "deny_purge",
    "sealed",
    "no_ack",
    "allow_rollup_hdrs",
    "allow_msg_ttl",
    "subject_delete_marker_ttl",
    "allow_msg_counter",
    "allow_msg_schedules",
    "discard_new_per_subject",
    "subject_transform",
    "mirror",
    "sources",
)


def _takes_enough(value: Any) -> bool:
    return value in (None, -1, 0) or value >= _LEAST_MESSAGE_BYTES


def _republishes(stream: str, value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and value.get("src") in (None, "", ">", subjects_of(stream))
        and value.get("dest") == news_of(stream)
        and not value.get("headers_only")
    )
