"""The command line as real processes, for tests: run to the end, or fed through a pipe and signalled.

What runs to its end is forked from a process that has its modules (tests/forking.py); `started`, an interpreter of its
own, shows besides that they are found. What is `running` is always started.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.forking import forked

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG_S = 120


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHARDENGINE_")}
    return {**clean, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **extra}


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "shardengine", *map(str, args)]


def cli(*args: object, stdin: str = "", **env: str) -> Ran:
    """Run a command to its end, with a watchdog."""
    return _ran(*forked("tests.command_child", [str(arg) for arg in args], environment(**env), stdin.encode()))


def started(*args: object, stdin: str = "", **env: str) -> Ran:
    """`cli`, by an interpreter that has imported nothing."""
    done = subprocess.run(
        command(*args),
        input=stdin.encode(),
        capture_output=True,
        timeout=WATCHDOG_S,
        env=environment(**env),
        check=False,
    )
    return _ran(done.returncode, done.stdout, done.stderr)


def _ran(code: int, out: bytes, err: bytes) -> Ran:
    ran = Ran(code, out.decode(), err.decode())
    assert "Traceback" not in ran.err, ran.err
    return ran


class Running:
    """A command in a session of its own, fed through a pipe: a write that returns was read, but for a pipe's room."""

    def __init__(self, *args: object, **env: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command(*args), stdin=pipe, stdout=pipe, stderr=pipe, env=environment(**env), start_new_session=True
        )

    def write(self, data: bytes) -> None:
        """Feed standard input; a reader that ends in the middle is what some tests want."""
        assert self.process.stdin
        try:
            self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass

    def error_line(self, containing: str) -> str:
        """The next line on standard error that contains a text."""
        assert self.process.stderr
        said = []
        for line in self.process.stderr:
            said.append(line.decode())
            if containing in said[-1]:
                return said[-1]
        raise AssertionError(f"never said {containing!r}: {said}")

    def workers(self) -> list[int]:
        """Process ids of its session, without its own."""
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != self.process.pid:
                try:
                    after_name = (folder / "stat").read_text().rpartition(") ")[2].split()
                except OSError:
                    continue
                if int(after_name[3]) == self.process.pid and after_name[0] != "Z":
                    found.append(int(folder.name))
        return found

    def end(self, *, close_stdin: bool = True) -> Ran:
        """Wait for the end. Without `close_stdin` the input stays open meanwhile, as a person's terminal would."""
        process = self.process
        assert process.stdin
        assert process.stdout
        assert process.stderr
        if not close_stdin:
            process.wait(WATCHDOG_S)
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass
        process.stdin = None
        out, err = process.communicate(timeout=WATCHDOG_S)
        assert b"Traceback" not in err, err.decode()
        return Ran(process.returncode, out.decode(), err.decode())


@contextmanager
def running(*args: object, **env: str) -> Iterator[Running]:
    run = Running(*args, **env)
    watchdog = threading.Timer(WATCHDOG_S, run.process.kill)
    watchdog.start()
    try:
        yield run
    finally:
        watchdog.cancel()
        run.process.kill()
        run.process.wait()
        for stream in (run.process.stdin, run.process.stdout, run.process.stderr):
            if stream and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass


def records(first: int, last: int) -> bytes:
    return b"".join(b"key-%07d\tvalue of %d\n" % (n, n) for n in range(first, last + 1))
