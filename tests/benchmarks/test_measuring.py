"""What the benchmarks share."""

import os
import signal
import sys
import time

from benchmarks.measuring import run_to_its_end
from tests.programs import Program

CHILD = """
import pathlib, signal, sys, time
def put_away(*_):
    time.sleep(1)
    pathlib.Path("kept").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, put_away)
pathlib.Path("begun").touch()
time.sleep(60)
"""


def run_child(folder):
    os.chdir(folder)
    try:
        return run_to_its_end([sys.executable, "-c", CHILD])
    except KeyboardInterrupt:
        return 3


def test_a_program_puts_away_what_it_is_at_when_ctrl_c_comes(tmp_path):
    program = Program(run_child, tmp_path)
    while not (tmp_path / "begun").exists():
        assert program.status is None
        time.sleep(0.02)
    os.killpg(program.pid, signal.SIGINT)
    program.output()
    assert program.status == 3 and (tmp_path / "kept").exists()


def test_the_status_is_the_programs(tmp_path):
    assert run_to_its_end([sys.executable, "-c", "raise SystemExit(7)"]) == 7
