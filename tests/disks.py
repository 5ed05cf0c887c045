"""Small file systems of memory, in a mount namespace of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.killing import ROOT, environment


def in_a_file_system(path: Path, *command: str, size: str, prepare: str = "true") -> subprocess.CompletedProcess[str]:
    """Run a command that sees `size` of memory at `path`, after the shell has done what `prepare` says."""
    mount = f"mount -t tmpfs -o size={size} none '{path}' && {prepare} && exec \"$@\""
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def needs_file_systems(path: Path) -> None:
    """Skip the test where this user can mount nothing at `path`."""
    try:
        refused = in_a_file_system(path, "true", size="1m").returncode != 0
    except FileNotFoundError:
        refused = True
    if refused:
        pytest.skip("no mount namespaces for this user")
