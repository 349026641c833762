"""eSpeak NG through ctypes: a text and a drawn voice in, a waveform out."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from local_modules.errors import InputError

SAMPLE_RATE = 22050  # of every voice that eSpeak NG synthesises from formants

# From espeak-ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_PARAMETER_RATE = 1

_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


class Espeak:
    """One eSpeak NG synthesiser with its own data folder.

    eSpeak reads a voice from a file in its data folder and lists a few hundred
    voices at most. The folder here is therefore private, holds English only and
    one variant file, which is rewritten for every utterance. Its short path also
    stays within the 160 characters that eSpeak allows.

    The library keeps state, such as flutter and roughness, in globals that outlive
    even `espeak_Terminate`. It is therefore loaded anew for every utterance, which
    takes 0.3 ms, so that no utterance depends on earlier ones.

    Arguments
    ---------
    parent : str
        Where the private folder is made; the system's temporary folder by default.

    Raises
    ------
    InputError
        If the wheel `espeakng-loader` is not installed.

    Example
    -------
    >>> with Espeak() as espeak:
    ...     variant = "language variant\\nname drawn\\npitch 90 120\\n"
    ...     wave = espeak.speak("good morning", variant, "gmw/en-US", 170)
    >>> wave.dtype, 0.5 < len(wave) / SAMPLE_RATE < 1.5
    (dtype('float64'), True)
    """

    def __init__(self, parent: str | None = None):
        try:
            import espeakng_loader
        except ImportError:
            raise InputError(
                "espeakng_loader is missing: it synthesises the demo corpus; "
                "pip install espeakng-loader"
            ) from None
        self._home = tempfile.TemporaryDirectory(prefix="espeak-", dir=parent)
        self._variant = self._copy_english(Path(espeakng_loader.get_data_path()))
        self._library = espeakng_loader.get_library_path()
        self._libc = ctypes.CDLL(None)

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._home.cleanup()

    def speak(self, text: str, variant: str, language: str, rate: int) -> np.ndarray:
        """Synthesise one utterance; the same arguments give the same samples.

        Arguments
        ---------
        text : str
            What is said.
        variant : str
            An eSpeak voice variant file, without `breath`: that noise reads
            uninitialised memory and differs between processes.
        language : str
            The voice file that the variant modifies, such as `gmw/en-US`.
        rate : int
            Words per minute, 80 to 450.

        Returns
        -------
        wave : np.ndarray
            Samples in -1 to 1 at `SAMPLE_RATE`, shape [time].
        """
        self._variant.write_text(variant, encoding="utf-8")
        voice = f"{language}+{self._variant.name}".encode()
        chunks: list[np.ndarray] = []

        @_SynthCallback
        def collect(samples, count, _events) -> int:
            if count > 0:
                chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0

        with self._loaded() as lib:
            lib.espeak_SetSynthCallback(collect)
            if lib.espeak_SetVoiceByName(voice) != 0:
                raise RuntimeError(f"eSpeak NG has no voice {voice.decode()}")
            lib.espeak_SetParameter(_PARAMETER_RATE, rate, 0)
            data = text.encode()
            lib.espeak_Synth(
                data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
            )
        return np.concatenate(chunks) / 32768

    @contextmanager
    def _loaded(self) -> Iterator[ctypes.CDLL]:
        lib = ctypes.CDLL(self._library)
        try:
            rate = lib.espeak_Initialize(
                _AUDIO_OUTPUT_SYNCHRONOUS, 0, os.fsencode(self._home.name), 0
            )
            if rate != SAMPLE_RATE:
                raise RuntimeError(
                    f"eSpeak NG did not start: espeak_Initialize: {rate}"
                )
            yield lib
            lib.espeak_Terminate()
        finally:
            self._libc.dlclose(ctypes.c_void_p(lib._handle))

    def _copy_english(self, source: Path) -> Path:
        data = Path(self._home.name, "espeak-ng-data")
        shutil.copytree(source / "lang" / "gmw", data / "lang" / "gmw")
        for name in ("phondata", "phonindex", "phontab", "intonations", "en_dict"):
            shutil.copy(source / name, data)
        variants = data / "voices" / "!v"
        variants.mkdir(parents=True)
        return variants / "drawn"
