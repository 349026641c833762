"""Who may reach the page."""

import contextlib
import getpass
import ipaddress
import os
import socket
import sys

from local_modules.errors import InputError

PASSWORD = "SPEAKER_PASSWORD"  # in the environment: the process list is for everyone


def find_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """What a host's name means: bound is what has been looked at, not a name that may
    come to mean something else.

    Returns
    -------
    tuple
        Family and address, as sockets take them.

    Raises
    ------
    InputError
        There is no such host.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host}: is no address: {error}") from None
    return family, address


def is_loopback(address: tuple) -> bool:
    """Whether only this machine reaches an address.

    Example
    -------
    >>> is_loopback(("127.0.0.1", 80)), is_loopback(("::1", 80, 0, 0))
    (True, True)
    >>> is_loopback(("0.0.0.0", 80)), is_loopback(("::", 80, 0, 0))
    (False, False)
    """
    return ipaddress.ip_address(address[0]).is_loopback


def find_password(host: str, address: tuple) -> str | None:
    """The password of the page: from the environment, or else, where others reach the
    page and a person is at the terminal, from there.

    Raises
    ------
    InputError
        Others reach the page and there is no password.
    """
    password = os.environ.get(PASSWORD)
    if password or is_loopback(address):
        return password or None
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            password = getpass.getpass(f"A password for the page on {host}: ")
    if not password:
        raise InputError(
            f"--host {host}: others reach the page there, and it has no password: set "
            f"the environment variable {PASSWORD}, or stay on 127.0.0.1"
        )
    return password
