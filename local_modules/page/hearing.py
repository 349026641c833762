"""Checks and reads the recordings given to the page."""

import os
from typing import NamedTuple

import numpy as np
import soundfile

from local_modules.errors import InputError
from local_modules.inference.speech import read_waveform
from local_modules.inference.verification import Verifier, Voice

MAX_MEGABYTES = 30
MAX_SECONDS = 120


class Heard(NamedTuple):
    """A recording that the page was given.

    Arguments
    ---------
    voice : Voice
        Its embedding.
    samples : numpy.ndarray
        All of it, mono and at the model's rate, float32, [time].
    warning : str | None
        Why answers about it are less reliable, as a sentence.
    """

    voice: Voice
    samples: np.ndarray
    warning: str | None


def hear(verifier: Verifier, path: str | None, what: str) -> Heard:
    """Reads and embeds a recording given to the page.

    Arguments
    ---------
    verifier : Verifier
        The model.
    path : str | None
        The file; None if there is none.
    what : str
        The page's name for it.

    Raises
    ------
    InputError
        It is missing, too long or too short, or can't be used; the message doesn't
        name the file, which the user never sees.
    """
    if path is None or not os.path.exists(path):  # it may have been deleted
        raise InputError(f"{what}: is missing. Record it, or drop a file.")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: raw audio
        raise InputError(
            f"{what}: can't be read. Save it as WAV, FLAC, OGG or MP3."
        ) from None
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{what}: {seconds:.0f} s long; the maximum is {MAX_SECONDS} s"
        )
    try:
        voice = verifier.listen(path)
        samples = read_waveform(path, verifier.model.sample_rate).numpy()
    except InputError as error:
        raise InputError(f"{what}: {str(error).removeprefix(f'{path}: ')}") from None
    warning = voice.quality.warning
    if warning:
        warning = f"{what}: {warning}. Record it again from farther away."
    return Heard(voice, samples, warning)
