"""The bank, beside a dict of balances."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardengine.machines.bank import AMOUNT_MAX, Audit, Balance, Bank, Open, Transfer
from tests.inprocess import REJECTED, Bench, Step

ACCOUNTS = st.sampled_from([b"a", b"b", b"a/", b"\x01a", bytes(480)])
AMOUNTS = st.integers(0, 5) | st.sampled_from([AMOUNT_MAX - 1, AMOUNT_MAX])
COMMANDS = (
    st.builds(Open, ACCOUNTS, AMOUNTS)
    | st.builds(Transfer, ACCOUNTS, ACCOUNTS, AMOUNTS)
    | st.builds(Balance, ACCOUNTS)
    | st.builds(Audit, st.lists(ACCOUNTS, min_size=1, max_size=4))
)
OPENS = st.lists(st.builds(Open, ACCOUNTS, AMOUNTS).map(Step), max_size=5)
STEPS = st.builds(list.__add__, OPENS, st.lists(st.builds(Step, COMMANDS, st.just(0), st.booleans()), max_size=40))


class Model:
    """Balances by account."""

    def __init__(self) -> None:
        self.balances: dict[bytes, int] = {}
        self.paid_in = 0

    def __call__(self, command: Any, now: int) -> Any:
        named = [getattr(command, name) for name in ("account", "source", "target") if hasattr(command, name)]
        if isinstance(command, Audit):
            named = command.accounts
        if isinstance(command, Open):
            return self._open(command)
        if not set(named) <= self.balances.keys():
            return REJECTED
        if isinstance(command, Transfer):
            return self._transfer(command)
        return sum(self.balances[account] for account in set(named))

    def _open(self, command: Open) -> str | None:
        if command.account in self.balances:
            return REJECTED
        self.balances[command.account] = command.amount
        self.paid_in += command.amount
        return None

    def _transfer(self, command: Transfer) -> str | None:
        after = dict(self.balances)
        after[command.source] -= command.amount
        if after[command.source] < 0:
            return REJECTED
        after[command.target] += command.amount
        if after[command.target] > AMOUNT_MAX:
            return REJECTED
        self.balances = after
        return None


@given(steps=STEPS)
def test_the_bank_is_the_dict_model_and_conserves_money(steps: list[Step]) -> None:
    bench, model = Bench(Bank), Model()
    bench.agrees(model, steps)
    assert {account: int(value) for account, value in bench.records.items()} == model.balances
    assert sum(map(int, bench.records.values())) == model.paid_in


def test_a_transfer_is_refused_with_its_reason_and_changes_nothing() -> None:
    bench = Bench(Bank)
    for account, amount in ((b"poor", 5), (b"rich", AMOUNT_MAX), (b"some", 9)):
        assert bench.run(Open(account, amount)).succeeded
    bench.end_group()
    before = dict(bench.records)
    for command, reason in (
        (Transfer(b"poor", b"some", 6), "overdraft: account b'poor' holds less than 6"),
        (Transfer(b"poor", b"poor", 6), "overdraft: account b'poor' holds less than 6"),
        (Transfer(b"poor", b"rich", 1), f"account b'rich' would hold more than {AMOUNT_MAX}"),
        (Transfer(b"poor", b"nobody", 1), "no account b'nobody'"),
        (Transfer(b"nobody", b"poor", 1), "no account b'nobody'"),
        (Open(b"poor", 1), "account b'poor' exists"),
        (Balance(b"nobody"), "no account b'nobody'"),
        (Audit([b"poor", b"nobody"]), "no account b'nobody'"),
    ):
        result = bench.run(command)
        assert (result.succeeded, result.reason) == (False, reason)
    bench.end_group()
    assert bench.records == before == {b"poor": b"5", b"rich": b"%d" % AMOUNT_MAX, b"some": b"9"}


def test_a_transfer_to_the_same_account_changes_nothing() -> None:
    bench = Bench(Bank)
    bench.run(Open(b"full", AMOUNT_MAX))
    assert bench.value(Transfer(b"full", b"full", AMOUNT_MAX)) is None
    assert bench.value(Balance(b"full")) == AMOUNT_MAX


def test_an_audit_of_the_most_and_the_fullest_accounts_is_a_number_that_travels() -> None:
    bench = Bench(Bank)
    accounts = [b"%d" % number for number in range(1000)]
    for account in accounts:
        bench.run(Open(account, AMOUNT_MAX))
    assert bench.value(Audit(accounts)) == 1000 * AMOUNT_MAX


@pytest.mark.parametrize(
    "command", [Open(b"a", -1), Open(b"a", AMOUNT_MAX + 1), Transfer(b"a", b"b", -1), Audit([]), Audit([b"a"] * 1001)]
)
def test_what_is_beyond_the_bounds_is_no_command(command: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        Bench(Bank).run(command)
