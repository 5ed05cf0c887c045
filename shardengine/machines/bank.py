"""Accounts and transfers: see `engine/machines/bank.py`."""

from shardengine.engine.machines.bank import AMOUNT_MAX, Audit, Balance, Bank, Open, Transfer

__all__ = ["AMOUNT_MAX", "Audit", "Balance", "Bank", "Open", "Transfer"]
