"""A history as lines of JSON, for other checkers and for keeping.

One object a line, in the order of the numbers `n`, in the manner of a Jepsen history:

    n        the order number
    process  of an operation: no other one of that process goes on meanwhile; an `info` is its process's last
    type     "invoke"; "ok", "fail" or "info"; "event", to a subscription that goes on
    f        "propose", "apply", "get", "scan", "view" or "watch"
    session  whose reads never see an older state than before
    time     nanoseconds of a monotonic clock; an event has none
    value    what was asked for, or answered; see below
    error    of "fail" and "info", if anything is known

Bytes are strings with one character a byte, from U+0000 to U+00FF (Latin-1), so ASCII reads as it is.

    f        asked for                                               answered
    propose  data: [bytes], commands: the same, as msgpack says      results
    apply    first: index, data, commands                            results: [{index, succeeded, value, reason,
                                                                               already_applied}]
    get      keys, linearizable, at_least, of_view                   values: [bytes or null], revision: index or null
    view     keys: [], else as get; a barrier, too                   values: [], revision
    scan     prefix, limit, start_after, reverse, linearizable,      entries: [[key, value]], more, revision
             at_least, of_view
    watch    since, key, prefix, previous                            through; each event: kind, key, value, previous,
                                                                     revision

A result's value that is no JSON stands in `msgpack`, as bytes. An operation without an end was still going on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from shardengine.engine.conformance.operations import Event, Operation, Read, Scan, Watch, Write
from shardengine.shards.types import ApplyResult

_Moment = tuple[int, Operation, Event | None]
_READ = ("linearizable", "at_least", "of_view")


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    n: int
    process: int
    type: str
    f: str
    session: str = ""
    time: int = 0
    value: dict[str, Any] = {}
    error: str | None = None


def lines_of(operations: Iterable[Operation]) -> Iterator[Line]:
    """Every beginning, event and end, in order."""
    moments: list[_Moment] = []
    for operation in operations:
        moments.append((operation.begun, operation, None))
        if isinstance(operation, Watch):
            moments += [(at, operation, event) for at, event in zip(operation.at, operation.events, strict=True)]
        if operation.ended is not None:
            moments.append((operation.ended, operation, None))
    free: list[int] = []
    processes: dict[int, int] = {}
    for n, operation, event in sorted(moments, key=lambda moment: moment[0]):
        if n == operation.begun:
            processes[n] = heapq.heappop(free) if free else len(processes)
        process = processes[operation.begun]
        if n == operation.ended and operation.outcome != "info":
            heapq.heappush(free, process)
        yield _line(n, process, operation, event)


def _line(n: int, process: int, operation: Operation, event: Event | None) -> Line:
    told: dict[str, Any] = {"n": n, "process": process, "f": _f_of(operation), "session": operation.session}
    if event is not None:
        return Line(**told, type="event", value=_event(event))
    if n == operation.begun:
        return Line(**told, type="invoke", time=operation.begun_ns, value=_asked(operation))
    value = _answer(operation) if operation.outcome == "ok" else {}
    return Line(**told, type=operation.outcome, time=operation.ended_ns, value=value, error=operation.error)


def _f_of(operation: Operation) -> str:
    match operation:
        case Write():
            return "propose" if operation.first is None else "apply"
        case Read():
            return "get" if operation.keys else "view"
        case Scan():
            return "scan"
        case _:
            return "watch"


def _asked(operation: Operation) -> dict[str, Any]:
    match operation:
        case Write(first=first, datas=datas):
            where = {} if first is None else {"first": first}
            return {**where, "data": list(map(_text, datas)), "commands": list(map(_command, datas))}
        case Read(keys=keys):
            return {"keys": list(map(_text, keys)), **_fields(operation, _READ)}
        case Scan(prefix=prefix, start_after=start_after):
            told = {"prefix": _text(prefix), "start_after": _text(start_after)}
            return {**told, **_fields(operation, ("limit", "reverse", *_READ))}
        case Watch(key=key, prefix=prefix):
            return {"key": _text(key), "prefix": _text(prefix), **_fields(operation, ("since", "previous"))}
        case _:
            raise AssertionError(operation)


def _answer(operation: Operation) -> dict[str, Any]:
    match operation:
        case Write(results=results):
            return {"results": list(map(_result, results))}
        case Read(values=values, revision=revision):
            return {"values": list(map(_text, values)), "revision": revision}
        case Scan(entries=entries):
            told = [[_text(key), _text(value)] for key, value in entries]
            return {"entries": told, **_fields(operation, ("more", "revision"))}
        case Watch(through=through):
            return {"through": through}
        case _:
            raise AssertionError(operation)


def _fields(operation: Operation, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(operation, name) for name in names}


def _event(event: Event) -> dict[str, Any]:
    told = {"kind": event.kind, "key": _text(event.key), "revision": event.revision}
    return {**told, "value": _text(event.value), "previous": _text(event.previous)}


def _result(result: ApplyResult) -> dict[str, Any]:
    told = msgspec.structs.asdict(result)
    value = told.pop("value")
    try:
        alike = repr(msgspec.json.decode(msgspec.json.encode(value))) == repr(value)
    except (msgspec.MsgspecError, TypeError, ValueError):
        alike = False
    return told | ({"value": value} if alike else {"msgpack": _text(msgspec.msgpack.encode(value))})


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("latin-1")


def _command(data: bytes) -> Any:
    """For people and other checkers: nothing is read from it."""
    try:
        return _plain(msgspec.msgpack.decode(data))
    except (msgspec.MsgspecError, ValueError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


# ---- and back --------------------------------------------------------------------------------------------------------


class Reader:
    """Lines in their order, to operations. `take` raises ValueError, TypeError or KeyError for one that does not fit;
    nothing is to be read on then."""

    def __init__(self, operations: list[Operation], order: Iterator[int]) -> None:
        self._operations = operations
        self._order = order
        self._open: dict[int, Operation] = {}
        self.last = 0

    def take(self, line: Line) -> None:
        if line.n <= self.last:
            raise ValueError(f"number {line.n} behind {self.last}")
        self.last = line.n
        if line.type == "invoke":
            if line.process in self._open:
                raise ValueError(f"process {line.process} does two things at a time")
            told: dict[str, Any] = {"order": self._order, "session": line.session, "begun": line.n}
            operation = _BEGUN[line.f]({**told, "begun_ns": line.time}, line.value)
            self._open[line.process] = operation
            self._operations.append(operation)
            return
        operation = self._open[line.process]
        if line.f != _f_of(operation):
            raise ValueError(f"process {line.process} does something else")
        if line.type == "event":
            if not isinstance(operation, Watch):
                raise ValueError(f"process {line.process} does not watch")
            operation.at.append(line.n)
            operation.events.append(_event_of(line.value))
        else:
            self._end(self._open.pop(line.process), line)

    def _end(self, operation: Operation, line: Line) -> None:
        if line.type not in ("ok", "fail", "info"):
            raise ValueError(f"the type {line.type!r}")
        if line.type == "ok":
            _take_answer(operation, line.value)
        operation.outcome = line.type  # type: ignore[assignment]  # it is one of them
        operation.error, operation.ended, operation.ended_ns = line.error, line.n, line.time


def _write_of(told: dict[str, Any], value: dict[str, Any]) -> Write:
    return Write(**told, datas=list(map(_bytes, value["data"])), first=value.get("first"))


def _read_of(told: dict[str, Any], value: dict[str, Any]) -> Read:
    return Read(**told, keys=list(map(_bytes, value["keys"])), **{name: value[name] for name in _READ})


def _scan_of(told: dict[str, Any], value: dict[str, Any]) -> Scan:
    told |= {name: value[name] for name in ("limit", "reverse", *_READ)}
    return Scan(**told, prefix=_bytes(value["prefix"]), start_after=_maybe(value["start_after"]))


def _watch_of(told: dict[str, Any], value: dict[str, Any]) -> Watch:
    told |= {"since": value["since"], "previous": value["previous"]}
    return Watch(**told, key=_maybe(value["key"]), prefix=_bytes(value["prefix"]))


_BEGUN: dict[str, Callable[[dict[str, Any], dict[str, Any]], Operation]] = {
    "propose": _write_of,
    "apply": _write_of,
    "get": _read_of,
    "view": _read_of,
    "scan": _scan_of,
    "watch": _watch_of,
}


def _take_answer(operation: Operation, value: dict[str, Any]) -> None:
    match operation:
        case Write():
            operation.results = list(map(_result_of, value["results"]))
        case Read():
            operation.values, operation.revision = list(map(_maybe, value["values"])), value["revision"]
        case Scan():
            entries = [(_bytes(key), _bytes(one)) for key, one in value["entries"]]
            operation.entries, operation.revision, operation.more = entries, value["revision"], value["more"]
        case Watch():
            operation.through = value["through"]


def _result_of(told: dict[str, Any]) -> ApplyResult:
    packed = told.pop("msgpack", None)
    value = told.pop("value", None) if packed is None else msgspec.msgpack.decode(_bytes(packed))
    return ApplyResult(**told, value=value)


def _event_of(told: dict[str, Any]) -> Event:
    value, previous = _maybe(told["value"]), _maybe(told["previous"])
    return Event(told["kind"], _bytes(told["key"]), value, previous, told["revision"])


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _maybe(text: str | None) -> bytes | None:
    return None if text is None else _bytes(text)
