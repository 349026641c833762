"""Errors that the user, not the program, has to fix, and how they are reported."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable


class InputError(Exception):
    """A user error: bad usage, a missing key, an unreadable corpus.

    The message is one line that names the file, key or value, what is wrong with
    it and what would be right. Scripts print it without a traceback and exit with
    `exit_status`.
    """

    exit_status = 2

    def __str__(self) -> str:
        # A data worker's comes as the last line of its traceback.
        line = super().__str__().strip().splitlines()[-1]
        return line.removeprefix(f"{type(self).__module__}.{type(self).__name__}: ")


class RunError(InputError):
    """A run that was started correctly and could not be finished."""

    exit_status = 1


def exit_status(
    program: str,
    command: Callable[[], object],
    stopped: str = "The same command continues.",
) -> int:
    """Runs a program, and prints in one line what has to be changed, or that it was
    stopped.

    Arguments
    ---------
    program : str
        Its name.
    command : callable
        What it runs.
    stopped : str
        What Ctrl-C, or a full disk, means for the work done so far.

    Returns
    -------
    int
        0; that of an `InputError`; 1 for a full disk; 130 for Ctrl-C.

    Example
    -------
    >>> def sing():
    ...     raise RunError("the singer is hoarse")
    >>> exit_status("sing.py", sing), exit_status("sing.py", lambda: None)
    (1, 0)
    """
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        command()
    except InputError as error:
        # Under torchrun, user errors are printed once per machine; errors of a run by
        # every rank, because one alone may have met them.
        if is_first or isinstance(error, RunError):
            print(f"{program}: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if not is_disk_full(error):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"{program}: {where}{error.strerror}; make room. {stopped}".rstrip(),
            file=sys.stderr,
        )
        return RunError.exit_status
    except KeyboardInterrupt:
        if is_first:
            print(f"\nStopped. {stopped}".rstrip(), file=sys.stderr)
        return 130
    return 0


def is_disk_full(error: Exception) -> bool:
    """Whether an error, or its cause, is a full disk: by the system's error number, or
    by the words of SQLite (no number before Python 3.11) or of `torch.save`.

    Example
    -------
    >>> is_disk_full(OSError(errno.ENOSPC, "")), is_disk_full(OSError(errno.EACCES, ""))
    (True, False)
    """
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(words in str(error) for words in ("disk is full", "inline_container")):
        return True
    return error.__cause__ is not None and is_disk_full(error.__cause__)


def one_line(error: object) -> str:
    """The message of any error, without line ends; if it is empty, the error's class.

    Example
    -------
    >>> one_line(ValueError("no\\n  number")), one_line(KeyError())
    ('no number', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def printable(name: str) -> str:
    """A file's name, with what a line of UTF-8 cannot hold escaped.

    Example
    -------
    >>> print(printable("a\\nb"))
    a\\nb
    """
    escaped = name.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\r\n]", lambda end: repr(end[0])[1:-1], escaped)


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Checks that options of a command line, or each item of a list, are above 0.

    Raises
    ------
    InputError
        One isn't.

    Example
    -------
    >>> options = argparse.Namespace(trials=3, sizes=[5, 8], limit=None)
    >>> check_positive(options, "trials", "sizes", "limit")
    """
    for name in names:
        value = getattr(options, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not one > 0:
                raise InputError(f"--{name} {one}: has to be above 0")


class LineParser(argparse.ArgumentParser):
    """A parser whose errors are all `InputError`, without the usage before them, also
    those that `exit_on_error` misses.

    Example
    -------
    >>> try:
    ...     LineParser(prog="sing.py").parse_args(["--loud"])
    ... except InputError as error:
    ...     print(error)
    unrecognized arguments: --loud
    """

    def error(self, message: str):
        """Raises the error, after the name of the subcommand, if any."""
        _, _, command = self.prog.partition(" ")
        raise InputError(f"{command}: {message}" if command else message)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the option of all programs that load models."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="load models unchecked, with the code in their folders: only for those "
        "that you made or audited yourself",
    )
