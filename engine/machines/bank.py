"""A bank: every account has a balance, and no transfer overdraws one.

Money is conserved: at every index of the log the balances add up to what the accounts were opened with, whatever is
transferred, refused, or killed half way.

An account is one key, its name, and a partition by itself: accounts spread over all shards. So `Transfer` and `Audit`
are commands over several shards: they name all their keys, and that is all there is to it. A balance is kept in decimal
digits, so that `shardengine get` shows it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from shardengine import Context, Machine, Rejected, Tx
from shardengine.engine.machines.common import Command

AMOUNT_MAX = (1 << 53) - 1
"""The highest amount, and balance: what every reader of JSON keeps whole. 1,000 of them are within 64 bits."""
Amount = Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX)]


class Open(Command, frozen=True, tag=1):
    """Open `account` with a first `amount`; rejected when there is one of that name."""

    account: bytes
    amount: Amount


class Transfer(Command, frozen=True, tag=2):
    """Move `amount` from one account to another, or to the same one, which changes nothing. Rejected when one is
    unknown, when `source` holds less, or when `target` would hold more than AMOUNT_MAX."""

    source: bytes
    target: bytes
    amount: Amount


class Balance(Command, frozen=True, tag=3):
    """The result is the balance of `account`, behind all commands before this one."""

    account: bytes


class Audit(Command, frozen=True, tag=4):
    """The result is what `accounts` hold together, each counted once. Rejected when one is unknown."""

    accounts: Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=1000)]


class Bank(Machine):
    """`Open`, `Transfer`, `Balance` and `Audit`."""

    name = "shardengine.bank"
    command = Open | Transfer | Balance | Audit

    def keys(self, command: Open | Transfer | Balance | Audit) -> list[bytes]:
        if isinstance(command, Transfer):
            return [command.source, command.target]
        return command.accounts if isinstance(command, Audit) else [command.account]

    def apply(self, tx: Tx, command: Open | Transfer | Balance | Audit, context: Context) -> int | None:
        match command:
            case Open(account, amount):
                if tx.get(account) is not None:
                    raise Rejected(f"account {account!r} exists")
                tx.put(account, b"%d" % amount)
            case Transfer(source, target, amount):
                left, sum_there = _balance(tx, source) - amount, _balance(tx, target) + amount
                if left < 0:
                    raise Rejected(f"overdraft: account {source!r} holds less than {amount}")
                if source != target:
                    if sum_there > AMOUNT_MAX:
                        raise Rejected(f"account {target!r} would hold more than {AMOUNT_MAX}")
                    tx.put(source, b"%d" % left)
                    tx.put(target, b"%d" % sum_there)
            case Balance(account):
                return _balance(tx, account)
            case Audit(accounts):
                return sum(_balance(tx, account) for account in dict.fromkeys(accounts))
        return None


def _balance(tx: Tx, account: bytes) -> int:
    value = tx.get(account)
    if value is None:
        raise Rejected(f"no account {account!r}")
    return int(value)
