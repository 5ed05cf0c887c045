"""The example machines: `from shardengine.machines.bank import Bank, Open, Transfer`, and `leaderboard`, `queue`,
`limiter`. What they are made of is `shardengine/engine/machines/`."""
