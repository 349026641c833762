"""Controls who can reach the page."""

import contextlib
import getpass
import ipaddress
import os
import socket
import sys

from local_modules.errors import InputError

PASSWORD = "SPEAKER_PASSWORD"  # in the environment: everyone can see command lines


def find_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """Resolves a host name, once: the address that is checked is then the one bound.

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
        raise InputError(f"--host {host}: is not an address: {error}") from None
    return family, address


def is_loopback(address: tuple) -> bool:
    """Whether an address can be reached only from this machine.

    Example
    -------
    >>> is_loopback(("127.0.0.1", 80)), is_loopback(("::1", 80, 0, 0))
    (True, True)
    >>> is_loopback(("0.0.0.0", 80)), is_loopback(("::", 80, 0, 0))
    (False, False)
    """
    return ipaddress.ip_address(address[0]).is_loopback


def find_password(host: str, address: tuple) -> str | None:
    """The password of the page: from the environment or, if others can reach the page,
    asked for at the terminal.

    Raises
    ------
    InputError
        Others can reach the page and there is no password.
    """
    password = os.environ.get(PASSWORD)
    if password or is_loopback(address):
        return password or None
    if sys.stdin.isatty():
        with contextlib.suppress(EOFError):
            password = getpass.getpass(f"Password for the page on {host}: ")
    if not password:
        raise InputError(
            f"--host {host}: others can reach the page there, and it has no password: "
            f"set the environment variable {PASSWORD}, or stay on 127.0.0.1"
        )
    return password
