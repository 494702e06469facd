"""A signal before a command's own work has begun ends it at once, whatever code it strikes; later at a safe point."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

STRUCK = """
import os, signal, sys, time
from aerialseg import cli

def command(args, **options):
    try:
        os.kill(os.getpid(), getattr(signal, args[0]))
        time.sleep(1)
    except Exception:  # as libraries do around their optional imports
        pass

cli.build_app = lambda: command
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_is_not_lost_in_code_that_catches_every_exception(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", STRUCK, name], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.Signals[name]
    assert done.stderr.startswith(f"error: stopped by {name}")
    assert done.stderr.count("\n") == 1


LOADING = """
import os, signal, sys, time
from aerialseg.cli.console import console_progress
from aerialseg.errors import Stopped
with console_progress() as progress:
    if sys.argv[2] == "working":
        progress.start("work", 2, "piece")
    try:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(0.1)  # a model loads here, or a piece of work is under way
        progress.advance()
    except Stopped as stopped:
        print("clean")
        sys.exit(stopped.exit_code)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_ends_loading_at_once_and_work_at_its_next_safe_point(name: str) -> None:
    for state, said in (("loading", ""), ("working", "clean\n")):
        command = [sys.executable, "-c", LOADING, name, state]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (128 + signal.Signals[name], said)
        assert (f"error: stopped by {name}" in done.stderr) == (state == "loading")
