"""Programs in processes of their own that have imported everything before they begin:
forked from a server that has done nothing else. Starting Python and importing torch
takes longer than most of what is trained in the tests."""

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.environment"])


class Program:
    """A function that returns an exit status, at the head of a process group.

    Arguments
    ---------
    function : callable
        Of a module that can be imported.
    *args
        Its arguments.
    environment : mapping, optional
        Variables to add.
    """

    def __init__(
        self, function: Callable[..., int], *args, environment: Mapping | None = None
    ):
        file, self._output = tempfile.mkstemp()
        os.close(file)
        args = self._output, environment or {}, function, args
        self._process = CONTEXT.Process(target=_lead, args=args)
        self._process.start()
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs, and a signal's number below zero."""
        return self._process.exitcode

    def output(self, timeout: float = 300.0) -> str:
        """What it has printed by its end, which is waited for."""
        self._process.join(timeout)
        text = Path(self._output).read_text(encoding="utf-8")
        assert self.status is not None, text
        os.unlink(self._output)
        return text


def _lead(output, environment, function, args):
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # as in any program
    os.environ.update(environment)
    sys.exit(function(*args))


def train(arguments: list[str]) -> int:
    """`train_speaker.py`."""
    import train_speaker

    return train_speaker.main(arguments)


def train_and_die(n_saved: int, arguments: list[str]) -> int:
    """The same, killed after so many checkpoints."""
    from local_modules.training.checkpoints import WholeCheckpointer

    save = WholeCheckpointer.save_checkpoint

    def save_and_die(self, *args, **kwargs):
        nonlocal n_saved
        checkpoint = save(self, *args, **kwargs)
        n_saved -= 1
        if not n_saved:
            os.kill(os.getpid(), signal.SIGKILL)
        return checkpoint

    WholeCheckpointer.save_checkpoint = save_and_die
    return train(arguments)


def train_told(method: str, n_calls: int, number: int, arguments: list[str]) -> int:
    """The same, where a signal goes to all its processes during a batch."""
    from local_modules.training.brain import RepeatableBrain

    of_batch = getattr(RepeatableBrain, method)

    def tell_and_go_on(self, *args):
        nonlocal n_calls
        n_calls -= 1
        if not n_calls:
            os.killpg(0, number)
        return of_batch(self, *args)

    setattr(RepeatableBrain, method, tell_and_go_on)
    return train(arguments)


def benchmark(name: str, folder: Path, *arguments: str) -> None:
    """Runs `benchmarks/<name>.py` in a folder, and checks that all went well."""
    program = Program(_benchmark, name, folder, arguments)
    output = program.output()
    assert program.status == 0, output


def _benchmark(name, folder, arguments):
    os.chdir(folder)
    return importlib.import_module(f"benchmarks.{name}").main([*arguments])
