"""The commands that change one key through the log of a node: `put`, `delete`, `cas`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shardengine import ApplyResult, CompareAndSwap, Delete, Put, run
from shardengine.engine.cli.common import (
    DONE,
    DataSaysNoError,
    config_option,
    data_option,
    field,
    hex_option,
    json_option,
    owned,
    quiet_option,
    remark,
    settings,
    shards_option,
    to_bytes,
)
from shardengine.engine.cli.streams import print_json, print_table
from shardengine.node import Node

_OPTIONS = [data_option(), hex_option, shards_option, quiet_option, config_option, json_option]


def _with_options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _propose(
    command: Put | Delete | CompareAndSwap,
    data: Path,
    as_hex: bool,
    shards: int | None,
    config_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Propose it to the node in `data`, and say what came of it."""

    async def propose() -> tuple[ApplyResult, int]:
        async with Node(owned(data), config=settings(config_file, {"shards": shards})) as node:
            if (behind := node.status()).position < behind.ready_at:
                remark(f"applying the log from position {behind.position} to {behind.ready_at}")
            result = await node.propose(command)
            return result, node.engine.entry_term(result.index) or 0

    result, position = run(propose)
    if as_json:
        told = {**field("key", command.key, as_hex), "succeeded": result.succeeded, "index": result.index}
        print_json({**told, "position": position})
    elif result.succeeded:
        print_table("applied", {"index": result.index, "position": position})
    if not result.succeeded:
        raise DataSaysNoError(f"{result.reason}, at index {result.index}")
    return DONE


@click.command()
@click.argument("key")
@click.argument("value")
@_with_options
def put(key: str, value: str, as_hex: bool, **options: Any) -> int:
    """Put VALUE at KEY: durable in the log, and applied, when this returns.

    The directory is a node's, made when it is not there; no other program may have it open.

    \b
    Examples:
      shardengine put apple red --data fruit
      shardengine put 00ff 01 --hex --data fruit
    """
    return _propose(Put(to_bytes(key, as_hex, "KEY"), to_bytes(value, as_hex, "VALUE")), as_hex=as_hex, **options)


@click.command()
@click.argument("key")
@_with_options
def delete(key: str, as_hex: bool, **options: Any) -> int:
    """Delete KEY, which may be absent.

    \b
    Example:
      shardengine delete apple --data fruit
    """
    return _propose(Delete(to_bytes(key, as_hex, "KEY")), as_hex=as_hex, **options)


@click.command()
@click.argument("key")
@click.argument("value")
@click.option("--expected", metavar="VALUE", help="What KEY has to hold.")
@click.option("--absent", is_flag=True, help="In place of --expected: there has to be no KEY.")
@_with_options
def cas(key: str, value: str, expected: str | None, absent: bool, as_hex: bool, **options: Any) -> int:
    """Put VALUE at KEY if that holds what is expected; exit code 1, and nothing changed, when it does not.

    \b
    Examples:
      shardengine cas apple green --expected red --data fruit
      shardengine cas pear yellow --absent --data fruit
    """
    if absent is (expected is not None):
        raise click.UsageError("say what is --expected, or --absent, and not both")
    held = None if expected is None else to_bytes(expected, as_hex, "--expected")
    command = CompareAndSwap(to_bytes(key, as_hex, "KEY"), held, to_bytes(value, as_hex, "VALUE"))
    return _propose(command, as_hex=as_hex, **options)
