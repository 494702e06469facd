"""A signal before a command's own work has begun ends it at once, whatever code it strikes."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STRUCK = """
import os, signal, sys, time
from aerialseg import cli
from aerialseg.cli import app

def command(args, prog_name):
    try:
        os.kill(os.getpid(), getattr(signal, args[0]))
        time.sleep(1)
    except Exception:  # as libraries do around their optional imports
        pass

app.build_app = lambda: command
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_is_not_lost_in_code_that_catches_every_exception(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", STRUCK, name], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stderr.startswith(f"error: stopped by {name}")
    assert done.stderr.count("\n") == 1
