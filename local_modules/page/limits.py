"""Who may reach the page, and what may be sent to it."""

import getpass
import ipaddress
import os
import socket
import sys
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from speechbrain.dataio.preprocess import AudioNormalizer

from local_modules.errors import InputError
from local_modules.inference.speech import AUDIBLY_CLIPPED
from local_modules.inference.verification import Verifier, Voice

PASSWORD = "SPEAKER_PASSWORD"  # in the environment: the process list is for everyone
MAX_MEGABYTES = 30
MAX_SECONDS = 120


class Heard(NamedTuple):
    """A recording that the page was given.

    Arguments
    ---------
    voice : Voice
        What the model makes of it.
    samples : numpy.ndarray
        All of it, mono and at the model's rate, float32, [time].
    warning : str | None
        What makes answers about it less sure, as a sentence.
    """

    voice: Voice
    samples: np.ndarray
    warning: str | None


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
        password = getpass.getpass(f"A password for the page on {host}: ")
    if not password:
        raise InputError(
            f"--host {host}: others reach the page there, and it has no password: set "
            f"the environment variable {PASSWORD}, or stay on 127.0.0.1"
        )
    return password


def hear(verifier: Verifier, path: str | None, what: str) -> Heard:
    """Listens to what the page was given.

    Arguments
    ---------
    verifier : Verifier
        The model.
    path : str | None
        The file; None if there is none.
    what : str
        What the person calls it.

    Raises
    ------
    InputError
        It is missing, too long or too short, or can't be used; in words for a person
        who never sees the file's name.
    """
    if path is None or not os.path.exists(path):  # it may have been here for too long
        raise InputError(f"{what}: is not here yet. Record it, or drop a file.")
    rate = verifier.model.sample_rate
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if seconds > MAX_SECONDS:
                raise InputError(
                    f"{path}: {seconds:.0f} s long; here {MAX_SECONDS} s are the most"
                )
        voice = verifier.listen(path)
        samples, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        raise InputError(
            f"{what}: can't be read. Save it as WAV, FLAC, OGG or MP3."
        ) from None
    except InputError as error:
        raise InputError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from None
    warning = None
    if voice.quality.clipped > AUDIBLY_CLIPPED:
        share = 100 * voice.quality.clipped
        warning = (
            f"{what}: is clipped, {share:.0f} % of it: the answer is less sure. Record "
            "it again from farther away."
        )
    samples = AudioNormalizer(rate)(torch.from_numpy(samples), file_rate).numpy()
    return Heard(voice, samples, warning)
