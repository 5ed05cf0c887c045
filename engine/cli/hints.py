"""What an error advises, in the words of the command line."""

from __future__ import annotations

import re

import msgspec

from shardengine.engine.config import ENV_PREFIX, EngineConfig

_SETTING = re.compile("|".join(rf"\b{field.name}\b" for field in msgspec.structs.fields(EngineConfig)))
_CODE = (
    (re.compile(r"restore\(path, force=True\)"), "`restore PATH --force`"),
    (re.compile(r"\bforce=True\b"), "--force"),
    (re.compile(r"\bshards=(\d+) or None\b"), r"--shards \1 or without --shards"),
)


def in_command_words(hint: str) -> str:
    """`hint` with options where it has arguments of Python, and how to give each setting that it names."""
    for pattern, words in _CODE:
        hint = pattern.sub(words, hint)
    named = dict.fromkeys(name for name in _SETTING.findall(hint) if name != "shards")
    if not named:
        return hint
    variables = ", ".join(f"{ENV_PREFIX}{name.upper()}=..." for name in named)
    return f"{hint}; set it in the environment ({variables}) or in a file that --config names"


def for_machine(hint: str) -> str:
    return f"{hint}: --machine MODULE:CLASS"
