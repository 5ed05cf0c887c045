"""Lines of JSON into commands of any machine.

One object a line: `op` is the command's name in lower case, every other member a field of it. What the command wants as
bytes is given as text, or in hexadecimal with `_hex` behind the field's name; in a list, each item is. A name that ends
in `_hex` by itself is that field and no other's hexadecimal.

A command may also be a pair, `[NAME, {FIELD: ...}]`. One with a field `op` of its own has to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import NODEFAULT, inspect

from shardengine import Machine, encode


class Commands:
    """The commands of one machine."""

    def __init__(self, machine: type[Machine]) -> None:
        told = inspect.type_info(machine.command)
        kinds = told.types if isinstance(told, inspect.UnionType) else (told,)
        self._kinds = {kind.cls.__name__.lower(): kind for kind in kinds if isinstance(kind, inspect.StructType)}
        self._decode = msgspec.msgpack.Decoder(machine.command).decode

    def parse(self, line: bytes) -> bytes:
        """A line without its newline to the data of an entry; raises ValueError with what is wrong."""
        if not line.strip():
            return b""
        kind, op, members = self._told(line)
        values = _values(kind, members)
        if members:
            raise ValueError(f"{op} has no `{next(iter(members))}`")
        try:
            data = encode(_laid_out(kind, values))
            self._decode(data)
        except (msgspec.MsgspecError, OverflowError) as error:
            raise ValueError(f"no {op}: {error}") from None
        return data

    def _told(self, line: bytes) -> tuple[inspect.StructType, str, dict[str, Any]]:
        """What the line names: a command, by which name, and the members that are fields of it."""
        found = _json(line)
        match found:
            case [op, dict(members)]:
                pass
            case dict(members):
                op = members.pop("op", None)
            case _:
                raise ValueError("a command is a JSON object")
        kind = self._kinds.get(op) if isinstance(op, str) else None
        if kind is None:
            raise ValueError(f"no `op` that is one of: {', '.join(self._kinds)}")
        if isinstance(found, dict) and any(field.encode_name == "op" for field in kind.fields):
            raise ValueError(f'{op} has a field `op` of its own: write ["{op}", {{"op": ...}}]')
        return kind, op, members


def _json(line: bytes) -> Any:
    try:
        return json.loads(line.decode(), object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("JSON of too many levels") from None


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"`{name}` comes twice")
        found[name] = value
    return found


def _values(kind: inspect.StructType, members: dict[str, Any]) -> dict[str, Any]:
    """The fields of a command, by name, taken out of `members`."""
    values: dict[str, Any] = {}
    taken = {field.encode_name for field in kind.fields}
    for field in kind.fields:
        name, as_hex = field.encode_name, f"{field.encode_name}_hex"
        hexed = as_hex in members and as_hex not in taken and _wants_bytes(field.type)
        if name in members and hexed:
            raise ValueError(f"both `{name}` and `{as_hex}`")
        if hexed:
            values[name] = _each(members.pop(as_hex), bytes.fromhex)
        elif name in members:
            value = members.pop(name)
            values[name] = _each(value, str.encode) if _wants_bytes(field.type) else value
        elif field.default is not NODEFAULT:
            values[name] = field.default
        elif field.default_factory is not NODEFAULT:
            values[name] = field.default_factory()
        elif field.required:
            raise ValueError(f"no `{name}`")
    return values


def _wants_bytes(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.UnionType):
        return any(map(_wants_bytes, kind.types))
    item = getattr(kind, "item_type", None)
    return isinstance(kind, inspect.BytesType) or (item is not None and _wants_bytes(item))


def _each(value: Any, change: Callable[[str], bytes]) -> Any:
    if isinstance(value, list):
        return [_each(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _laid_out(kind: inspect.StructType, values: dict[str, Any]) -> Any:
    """As the command travels."""
    if kind.array_like:
        return [*([] if kind.tag is None else [kind.tag]), *values.values()]
    return values if kind.tag_field is None else {kind.tag_field: kind.tag, **values}
