"""How a stream, and its servers, have to be set up so that they are taken for a log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shardengine import LogError, LogSettingsError
from shardengine.engine.cluster.servers import Servers
from shardengine.engine.node.giving import GIVEN_BYTES
from shardengine.engine.node.jetstream import guarding, settings
from shardengine.engine.node.jetstream.settings import HEADERS_BYTES, PAYLOAD_BYTES_MIN, Setting, check_settings
from shardengine.engine.snapshot.transfer import Piece, encode_piece
from shardengine.node import JetStreamLog
from tests.jetstream import config, frames_up_to, make, new_name, opened, stream_of
from tests.killing import WATCHDOG_S

WRONG: dict[str, Any] = {
    "subjects": ["t.>", "u"],
    "storage": "memory",
    "num_replicas": 2,
    "retention": "workqueue",
    "discard": "old",
    "max_msgs": 1000,
    "max_msgs_per_subject": 1,
    "max_age": 60_000_000_000,
    "max_msg_size": 1024,
    "deny_delete": False,
    "allow_direct": False,
    "allow_atomic": False,
    "deny_purge": True,
    "sealed": True,
    "no_ack": True,
    "allow_rollup_hdrs": True,
    "allow_msg_ttl": True,
    "subject_delete_marker_ttl": 1_000_000_000,
    "allow_msg_counter": True,
    "allow_msg_schedules": True,
    "discard_new_per_subject": True,
    "subject_transform": {"src": "t.>", "dest": "u.>"},
    "mirror": {"name": "u"},
    "sources": [{"name": "u"}],
    "persist_mode": "async",
    "republish": None,
}


@pytest.mark.parametrize("name", WRONG)
def test_each_setting_that_could_lose_a_frame_is_refused_by_name(name: str) -> None:
    check_settings("t", 3, config("t", 3), "2.15.1")
    with pytest.raises(LogSettingsError, match=name) as refused:
        check_settings("t", 3, config("t", 3, **{name: WRONG[name]}), "2.15.1")
    ((found, value, wanted),) = refused.value.wrong
    assert (found, value) == (name, WRONG[name]) and wanted


@pytest.mark.parametrize("change", [{"src": "t.a"}, {"dest": "elsewhere.>"}, {"headers_only": True}])
def test_a_stream_that_says_its_news_elsewhere_is_refused(change: dict[str, Any]) -> None:
    right = config("t")["republish"]
    with pytest.raises(LogSettingsError, match="republish"):
        check_settings("t", 1, config("t", republish={**right, **change}), "2.15.1")


@pytest.mark.parametrize(("version", "right"), [("2.14.9", False), ("2.15.0-RC.1", True), ("3.0.0", True), ("", False)])
def test_an_old_server_is_refused(version: str, right: bool) -> None:
    if right:
        check_settings("t", 1, config("t"), version)
        return
    with pytest.raises(LogSettingsError, match="version"):
        check_settings("t", 1, config("t"), version)


async def test_all_that_is_wrong_with_a_stream_is_told_at_once_and_it_stays_as_it_was(servers: Servers) -> None:
    name = new_name()
    wrong: dict[str, Any] = {"max_age": 60_000_000_000, "deny_delete": False, "discard": "old"}
    async with stream_of(servers.urls, name) as stream:
        await make(stream, config(name, **wrong))
        before = await stream.info()
        log = JetStreamLog(servers.urls, name)
        with pytest.raises(LogSettingsError) as refused:
            await log.open()
        assert {setting.name: setting.value for setting in refused.value.wrong} == {**wrong, "num_replicas": 1}
        assert all(isinstance(setting, Setting) for setting in refused.value.wrong)
        assert "max_age is 60000000000, and must be 0" in str(refused.value)
        assert await stream.info() == before
        await log.aclose()


async def test_a_stream_that_somebody_made_right_is_taken_as_it_is(servers: Servers) -> None:
    name = new_name()
    async with stream_of(servers.urls, name) as stream:
        await make(stream, config(name, max_bytes=1 << 20, compression="s2", metadata={}))
        before = (await stream.info()).config
        async with opened(servers.urls, name, replicas=1) as log:
            assert await log.append([b"one"]) == [2]
        assert (await stream.info()).config == before


async def test_a_stream_that_is_not_there_is_made_only_when_that_is_wanted(servers: Servers) -> None:
    log = JetStreamLog(servers.urls, new_name(), create=False)
    with pytest.raises(LogError, match="stream not found"):
        await log.open()
    await log.aclose()


async def test_a_setting_that_is_changed_while_the_log_is_open_ends_its_use_by_name(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarding, "LOOK_S", 0.05)
    name = new_name()
    async with opened(servers.urls, name, replicas=1) as log, stream_of(servers.urls, name) as stream:
        waiting = asyncio.create_task(frames_up_to(log, 9))
        shorter = {"max_age": 60_000_000_000, "duplicate_window": 60_000_000_000}
        changed = {**(await stream.info()).config, **shorter}
        await stream._api(f"STREAM.UPDATE.{name}", changed)
        with pytest.raises(LogSettingsError, match="max_age"):
            await asyncio.wait_for(waiting, WATCHDOG_S)
        with pytest.raises(LogSettingsError, match="max_age"):
            await log.append([b"one"])


async def test_servers_that_cannot_pass_on_a_piece_of_a_snapshot_are_refused_by_name(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = Piece(b"x" * 16, 1 << 40, 1 << 40, 1 << 60, bytes(GIVEN_BYTES), b"", True, b"x" * 16)
    assert len(encode_piece(piece)) + HEADERS_BYTES <= PAYLOAD_BYTES_MIN <= servers.payload_bytes_max
    monkeypatch.setattr(settings, "PAYLOAD_BYTES_MIN", servers.payload_bytes_max + 1)
    log = JetStreamLog(servers.urls, new_name())
    with pytest.raises(LogSettingsError, match=f"messages of {servers.payload_bytes_max} bytes") as refused:
        await log.open()
    assert [setting.name for setting in refused.value.wrong] == ["max_payload"]
    await log.aclose()
