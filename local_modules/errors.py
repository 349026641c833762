"""What is raised when a person, not the program, has to change something, and how it
is told."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable


class InputError(Exception):
    """A person's mistake: bad usage, a missing key, an unreadable corpus.

    The message is one line that names the file, key or value, what is wrong with
    it and what would be right. Scripts print it without a traceback and exit with
    `exit_status`.
    """

    exit_status = 2

    def __str__(self) -> str:
        # A data worker's comes wrapped in its traceback, of which it is the last line.
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
    """Runs a program, and says in one line what has to be changed, or that it was
    stopped.

    Arguments
    ---------
    program : str
        What it is called.
    command : callable
        What it does.
    stopped : str
        What Ctrl-C, or a disk that is full, means for what is done so far.

    Returns
    -------
    int
        0; that of an `InputError`; 1 where the disk is full; 130 for Ctrl-C.

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
        # What a person has to change is told once on a machine, by torchrun's first.
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
    """Whether the system says that there is no room, or SQLite, whose errors have no
    number before Python 3.11, or `torch.save`, which has words of its own; or whether
    one of them is what caused the error.

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
    """What somebody else's error says, without its line ends; if it says nothing, what
    it is.

    Example
    -------
    >>> one_line(ValueError("no\\n  number")), one_line(KeyError())
    ('no number', 'KeyError')
    """
    return " ".join(str(error).split()) or type(error).__name__


def printable(name: str) -> str:
    """A file's name with what a line of UTF-8 cannot hold escaped.

    Example
    -------
    >>> print(printable("a\\nb"))
    a\\nb
    """
    escaped = name.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\r\n]", lambda end: repr(end[0])[1:-1], escaped)


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Checks options of a command line that have to be above 0, one by one where they
    are lists.

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
    """A command line whose complaints are an `InputError`, without the usage before
    them, also those that `exit_on_error` forgets.

    Example
    -------
    >>> try:
    ...     LineParser(prog="sing.py").parse_args(["--loud"])
    ... except InputError as error:
    ...     print(error)
    unrecognized arguments: --loud
    """

    def error(self, message: str):
        """Raises it; of a command of several, with its name."""
        _, _, command = self.prog.partition(" ")
        raise InputError(f"{command}: {message}" if command else message)
