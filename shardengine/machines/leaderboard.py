"""Players by their best score: see `engine/machines/leaderboard.py`."""

from shardengine.engine.machines.leaderboard import Around, Leaderboard, Remove, Submit, Top

__all__ = ["Around", "Leaderboard", "Remove", "Submit", "Top"]
