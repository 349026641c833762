"""Simulated recording conditions: room, channel, noise and level."""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16000
SNR_DB = (5.0, 25.0)
PEAK = 0.95  # of full scale; the level is lowered if it would be exceeded


@dataclass(frozen=True)
class Session:
    """The conditions of one recording, drawn anew for every utterance.

    Arguments
    ---------
    equaliser_db : np.ndarray
        Gain in dB of the channel at `frequencies`, shape [points].
    frequencies : np.ndarray
        Where the gain is given, in Hz, ascending, shape [points].
    rt60 : float
        Reverberation time in seconds.
    direct_db : float
        Direct sound over reverberation in dB.
    noise_slope : float
        The noise's power falls as 1 / f ** noise_slope: 0 is white, 1 pink.
    snr_db : float
        Speech (with its room and channel) over noise in dB.
    level_db : float
        RMS of the recording in dB below full scale.
    """

    equaliser_db: np.ndarray
    frequencies: np.ndarray
    rt60: float
    direct_db: float
    noise_slope: float
    snr_db: float
    level_db: float

    def record(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Record speech in this session.

        Arguments
        ---------
        speech : np.ndarray
            Clean samples at 16 kHz, shape [time].
        rng : np.random.Generator
            Draws the room's reflections and the noise.

        Returns
        -------
        recording : np.ndarray
            As long as `speech`, its peak at most `PEAK`.

        Example
        -------
        >>> rng = np.random.default_rng(0)
        >>> tone = np.sin(np.arange(16000) / 10)
        >>> recording = draw_session(rng).record(tone, rng)
        >>> recording.shape, bool(abs(recording).max() <= PEAK)
        ((16000,), True)
        """
        room = self._room(rng)
        size = _fast_size(len(speech) + len(room))
        hertz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE)
        channel = 10 ** (np.interp(hertz, self.frequencies, self.equaliser_db) / 20)
        spectrum = np.fft.rfft(speech, size) * np.fft.rfft(room, size) * channel
        heard = np.fft.irfft(spectrum, size)[: len(speech)]

        colour = np.maximum(hertz, 50) ** (-self.noise_slope / 2)
        noise = np.fft.rfft(rng.standard_normal(size)) * colour
        noise = np.fft.irfft(noise, size)[: len(speech)]
        noise *= _rms(heard) / _rms(noise) * 10 ** (-self.snr_db / 20)

        recording = heard + noise
        level = 10 ** (self.level_db / 20) / _rms(recording)
        return recording * min(level, PEAK / np.abs(recording).max())

    def _room(self, rng: np.random.Generator) -> np.ndarray:
        """A direct path, then noise that decays by 60 dB in `rt60` seconds."""
        time = np.arange(1, int(self.rt60 * SAMPLE_RATE)) / SAMPLE_RATE
        tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / self.rt60)
        tail *= 10 ** (-self.direct_db / 20) / np.sqrt(np.sum(tail**2))
        return np.concatenate(([1.0], tail))


def draw_session(rng: np.random.Generator) -> Session:
    """Draw the conditions of a recording.

    Arguments
    ---------
    rng : np.random.Generator
        The utterance's stream.

    Returns
    -------
    session : Session
        One in eight is band-limited like a telephone line.

    Example
    -------
    >>> session = draw_session(np.random.default_rng(0))
    >>> SNR_DB[0] <= session.snr_db <= SNR_DB[1]
    True
    """
    frequencies = np.geomspace(50, SAMPLE_RATE / 2, 100)
    octaves = np.log2(frequencies / 1000)
    equaliser = rng.normal(0, 1.5) * octaves
    for _ in range(3):
        centre, width = rng.uniform(-3, 3), rng.uniform(0.4, 1.5)
        peak = np.exp(-0.5 * ((octaves - centre) / width) ** 2)
        equaliser += rng.normal(0, 4) * peak
    if rng.random() < 1 / 8:
        outside = np.maximum(np.log2(300 / frequencies), np.log2(frequencies / 3400))
        equaliser -= 40 * np.clip(outside, 0, 1)
    return Session(
        equaliser_db=equaliser,
        frequencies=frequencies,
        rt60=rng.uniform(0.1, 0.6),
        direct_db=rng.uniform(-2, 14),
        noise_slope=rng.uniform(0, 2),
        snr_db=rng.uniform(*SNR_DB),
        level_db=rng.uniform(-32, -18),
    )


def _rms(wave: np.ndarray) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def _fast_size(count: int) -> int:
    """The next multiple of 2 ** 12: an FFT without large prime factors."""
    return -(-count // 4096) * 4096
