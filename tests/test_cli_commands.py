"""Lines of JSON as commands of any machine, and the machines to start from on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine import KeyValue, Machine, Put, encode
from shardengine.engine.cli.commands import Commands
from shardengine.engine.cli.records import parse_jsonl, parse_tsv, parser_of
from shardengine.machines.bank import Audit, Bank, Open, Transfer
from shardengine.machines.queue import Lease, Queue
from tests.commands import cli
from tests.machines import Other

QUEUE = "shardengine.machines.queue:Queue"
BANK = "shardengine.machines.bank:Bank"


class Odd(msgspec.Struct, tag="odd", rename="camel"):
    """A command that travels as a map."""

    some_key: bytes | None
    text: str
    limits: Annotated[list[int], msgspec.Meta(max_length=2)] = msgspec.field(default_factory=lambda: [1])
    parts: list[bytes] = []


class Even(Odd, tag="even"):
    """Another one, of the same fields."""


class Row(Odd, tag=3, array_like=True):
    """One that travels as an array."""


class Oddities(Machine):
    """A machine whose commands have fields of several kinds."""

    name: ClassVar[str] = "test.oddities"
    command: ClassVar[Any] = Odd | Even

    def keys(self, command: Any) -> list[bytes]:
        return [b"k"]

    def apply(self, tx: object, command: Any, context: object) -> None:
        pass


class Calc(msgspec.Struct, tag="calc"):
    """A command with fields whose names mean something else in a line."""

    op: str = "+"
    key: bytes = b""
    key_hex: str = ""


class Sums(Oddities):
    """One whose command has a field called `op`."""

    command: ClassVar[Any] = Calc | Odd


class Extended(KeyValue):
    """Key-value commands, and another."""

    command: ClassVar[Any] = Put | Row


class Rows(Oddities):
    """One with a single command."""

    command: ClassVar[Any] = Row


def parsed(machine: type[Machine], text: str) -> Any:
    return msgspec.msgpack.decode(Commands(machine).parse(text.encode()), type=machine.command)


@given(source=st.text(max_size=9), target=st.binary(max_size=9), amount=st.integers(0, 1 << 53 - 1))
def test_a_line_is_a_command_by_its_name_and_fields(source: str, target: bytes, amount: int) -> None:
    line = {"amount": amount, "op": "transfer", "source": source, "target_hex": target.hex()}
    assert parsed(Bank, json.dumps(line)) == Transfer(source.encode(), target, amount)


def test_lists_defaults_maps_and_renamed_fields_are_understood() -> None:
    assert parsed(Bank, '{"op": "audit", "accounts": ["ä", "b"]}') == Audit(["ä".encode(), b"b"])
    assert parsed(Bank, '{"op": "audit", "accounts_hex": ["00", "ff"]}') == Audit([b"\0", b"\xff"])
    assert parsed(Queue, '{"op": "lease", "queue": "q", "consumer": "c", "ttl_ms": 5}') == Lease(b"q", b"c", 5, 1)
    assert parsed(Oddities, '{"op": "odd", "someKey": null, "text": "ä"}') == Odd(None, "ä", [1], [])
    assert parsed(Rows, '{"op": "row", "someKey": "k", "text": "", "parts": ["a"]}') == Row(b"k", "", [1], [b"a"])
    full = '{"op": "even", "someKey_hex": "ff", "text": "", "limits": [], "parts": ["a"]}'
    assert parsed(Oddities, full) == Even(b"\xff", "", [], [b"a"])
    assert Commands(Bank).parse(b" \r") == b""


def test_a_pair_is_a_command_whatever_its_fields_are_called() -> None:
    assert parsed(Bank, '["open", {"account_hex": "ff", "amount": 1}]') == Open(b"\xff", 1)
    assert parsed(Sums, '["calc", {"op": "calc", "key": "k", "key_hex": "no"}]') == Calc("calc", b"k", "no")
    assert parsed(Sums, '["calc", {}]') == Calc()
    assert parsed(Sums, '{"op": "odd", "someKey": "k", "text": ""}') == Odd(b"k", "")
    for line in ('{"op": "calc"}', '{"op": "calc", "key": "k"}'):
        with pytest.raises(ValueError, match=r'calc has a field `op` of its own: write \["calc", \{"op": \.\.\.\}\]'):
            Commands(Sums).parse(line.encode())


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('["close", {}]', "no `op` that is one of: open, "),
        ('["open", {"op": "open", "account": "a", "amount": 1}]', "open has no `op`"),
        ('["open", {"account": "a", "amount": 1}, 1]', "a command is a JSON object"),
        ("{}", "no `op` that is one of: open, transfer, balance, audit"),
        ('{"op": ["open"]}', "no `op` that is one of"),
        ('{"op": "Open", "account": "a", "amount": 1}', "no `op` that is one of"),
        ('{"op": "open", "account": "a"}', "no `amount`"),
        ('{"op": "open", "account": "a", "amount": 1, "more": 2}', "open has no `more`"),
        ('{"op": "open", "account": "a", "amount_hex": "00", "amount": 1}', "open has no `amount_hex`"),
        ('{"op": "open", "account": "a", "amount": 1, "amount": 2}', "`amount` comes twice"),
        ('{"op": "open", "account": "a", "account_hex": "61", "amount": 1}', "both `account` and `account_hex`"),
        ('{"op": "open", "account_hex": "6", "amount": 1}', "non-hexadecimal"),
        ('{"op": "open", "account": 5, "amount": 1}', "no open: Expected `bytes`, got `int`"),
        ('{"op": "open", "account": "a", "amount": -1}', "no open: Expected `int` >= 0"),
        ('{"op": "open", "account": "a", "amount": 1e3}', "no open: Expected `int`, got `float`"),
        (f'{{"op": "open", "account": "a", "amount": {1 << 64}}}', "no open: "),
        ('{"op": "open", "account": "\\ud800", "amount": 1}', "surrogates not allowed"),
        ("[1]", "a command is a JSON object"),
        ("[" * 100_000, "too many levels"),
        ("{", "Expecting"),
    ],
)
def test_a_line_that_is_no_command_is_refused_with_the_reason(line: str, problem: str) -> None:
    with pytest.raises(ValueError, match="^.*" + problem.replace("(", r"\(")):
        Commands(Bank).parse(line.encode())


def test_the_key_value_machine_keeps_its_form_under_every_name() -> None:
    assert parser_of("jsonl", KeyValue) is parser_of("jsonl", Other) is parse_jsonl
    assert parser_of(None, KeyValue) is parser_of("tsv", Extended) is parser_of(None, Other) is parse_tsv


def test_tsv_is_refused_by_name_for_a_machine_without_a_put_and_is_not_its_default(tmp_path: Path) -> None:
    queue = ("load", "-", "--data", tmp_path / "queue", "--shards", 1, "--machine", QUEUE)
    ran = cli(*queue, "--format", "tsv", stdin="q\tbody\n")
    assert (ran.code, "tsv makes key-value commands only, and shardengine.queue has none" in ran.err) == (2, True)
    assert not (tmp_path / "queue").exists()
    assert cli(*queue, stdin='{"op": "push", "queue": "q", "body": "b"}\n').code == 0
    row = parser_of("jsonl", Extended)(b'{"op": "row", "someKey": "k", "text": ""}')
    assert msgspec.msgpack.decode(row, type=Extended.command) == Row(b"k", "")


def test_a_bank_is_opened_and_read_from_the_command_line(tmp_path: Path) -> None:
    lines = [
        '{"op": "open", "account": "alice", "amount": 70}',
        '{"op": "open", "account": "alice", "amount": 5}',
        '{"op": "open", "account": "bob", "amount": 30}',
        '{"op": "transfer", "source": "bob", "target": "bob", "amount": 31}',
    ]
    path = tmp_path / "opened.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    bank = ("--data", tmp_path / "bank", "--machine", BANK)
    facts = cli("load", path, *bank, "--shards", 2, "--format", "jsonl", "--json").facts
    assert (facts["records"], facts["rejected"], facts["entries"]) == (4, 2, 2)
    assert cli("get", "alice", *bank).out == "70\n"
    assert cli("scan", *bank).out == "alice\t70\nbob\t30\n"
    assert cli("verify", tmp_path / "bank", "--machine", BANK).code == 0


def test_a_bad_line_of_a_machine_is_named_and_what_came_before_is_loaded(tmp_path: Path) -> None:
    bank = ("--data", tmp_path / "bank", "--machine", BANK)
    ran = cli("load", "-", *bank, "--shards", 1, stdin='\n{"op": "open", "account": "alice"}\n')
    assert (ran.code, "error: line 2: " in ran.err) == (1, True)
    assert cli("stats", *bank, "--json").facts["last_applied"]["index"] == 1


def test_opened_accounts_are_what_the_machine_stores() -> None:
    assert Commands(Bank).parse(b'{"op": "open", "account": "a", "amount": 1}') == encode(Open(b"a", 1))
