"""What is raised when a person, not the program, has to change something."""


class InputError(Exception):
    """A person's mistake: bad usage, a missing key, an unreadable corpus.

    The message is one line that names the file, key or value, what is wrong with
    it and what would be right. Scripts print it without a traceback and exit with
    `exit_status`.
    """

    exit_status = 2


class RunError(InputError):
    """A run that was started correctly and could not be finished."""

    exit_status = 1
