"""Draws speakers, and describes their voices to eSpeak NG."""

from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from recipes.demo.espeak import SAMPLE_RATE as ESPEAK_RATE

SAMPLE_RATE = 16000

ACCENTS = (
    "gmw/en",
    "gmw/en-029",
    "gmw/en-GB-scotland",
    "gmw/en-GB-x-gbclan",
    "gmw/en-GB-x-gbcwmd",
    "gmw/en-GB-x-rp",
    "gmw/en-US",
    "gmw/en-US-nyc",
)

# Share of speakers, median pitch in Hz and its spread, median vocal-tract scale
# and its spread (spreads are of the logarithm). The scale is that of all
# resonances relative to eSpeak's own voice, a man's: women's vocal tracts are about
# 15 % shorter, children's about 25 %. The groups overlap as in people.
GROUPS = {
    "male": (0.45, 118, 0.17, 0.98, 0.055),
    "female": (0.45, 205, 0.14, 1.14, 0.055),
    "child": (0.10, 262, 0.13, 1.29, 0.06),
}


@dataclass(frozen=True)
class Voice:
    """How a speaker sounds.

    Arguments
    ---------
    sex : str
        `male`, `female` or `child`.
    accent : str
        The eSpeak voice file of the speaker's English.
    pitch : float
        Middle of the pitch range in Hz.
    pitch_range : float
        Width of the pitch range as a fraction of its middle.
    tract : float
        Scale of all resonances: 1.1 is a vocal tract 1.1 times shorter than
        that of eSpeak's own voice.
    rate : float
        Words per minute.
    breath : float
        RMS of the breath noise as a fraction of the voice's.
    intonation : int
        One of eSpeak's four melodies.
    timbre : tuple of str
        The remaining lines of the eSpeak variant file: formants, roughness,
        flutter, tone, consonants.
    """

    sex: str
    accent: str
    pitch: float
    pitch_range: float
    tract: float
    rate: float
    breath: float
    intonation: int
    timbre: tuple[str, ...]

    def vary(self, rng: np.random.Generator) -> "Voice":
        """The speaker's voice in one utterance: nobody sounds the same twice.

        Arguments
        ---------
        rng : np.random.Generator
            The utterance's stream.

        Returns
        -------
        voice : Voice
            With another pitch, tempo, breath and intonation, and a vocal tract
            that differs a little, as with rounded lips or a raised larynx.
        """
        return replace(
            self,
            pitch=_around(rng, self.pitch, 0.08),
            pitch_range=_around(rng, self.pitch_range, 0.2),
            tract=_around(rng, self.tract, 0.012),
            rate=_around(rng, self.rate, 0.07),
            breath=_around(rng, self.breath, 0.3),
            intonation=int(rng.integers(1, 5)),
        )

    def variant(self) -> str:
        """The eSpeak variant file of this voice.

        Returns
        -------
        text : str
            The file, for `Espeak.speak`. Its pitch is divided by the tract
            scale, which `fit_tract` multiplies back.
        """
        middle = self.pitch / self.tract
        low = middle * (1 - self.pitch_range / 2)
        high = middle * (1 + self.pitch_range / 2)
        head = (
            "language variant",
            "name drawn",
            f"pitch {low:.0f} {high:.0f}",
            f"intonation {self.intonation}",
        )
        return "\n".join((*head, *self.timbre, ""))


def draw_voice(rng: np.random.Generator) -> Voice:
    """Draw a speaker.

    Arguments
    ---------
    rng : np.random.Generator
        The speaker's own stream.

    Returns
    -------
    voice : Voice
        The speaker.

    Example
    -------
    >>> voice = draw_voice(np.random.default_rng(3))
    >>> voice == draw_voice(np.random.default_rng(3))
    True
    >>> voice.variant().splitlines()[0]
    'language variant'
    """
    shares = [group[0] for group in GROUPS.values()]
    sex = str(rng.choice(list(GROUPS), p=shares))
    _, pitch, pitch_spread, tract, tract_spread = GROUPS[sex]
    return Voice(
        sex=sex,
        accent=str(rng.choice(ACCENTS)),
        pitch=_around(rng, pitch, pitch_spread),
        pitch_range=rng.uniform(0.15, 0.6),
        tract=_around(rng, tract, tract_spread),
        rate=_around(rng, 172, 0.12),
        breath=max(0.0, rng.uniform(-0.1, 0.15)),
        intonation=int(rng.integers(1, 5)),
        timbre=_draw_timbre(rng),
    )


def fit_tract(wave: np.ndarray, tract: float) -> np.ndarray:
    """Change the length of the vocal tract in a waveform of eSpeak's.

    eSpeak's own formant scaling does not change the fricatives, which are recordings.
    A change of playing speed moves every resonance, as a shorter or longer vocal
    tract does; the pitch and the rate given to eSpeak compensate for the rest.

    Arguments
    ---------
    wave : np.ndarray
        eSpeak's samples at 22 050 Hz, shape [time].
    tract : float
        Factor on all frequencies, above 0.73: below, eSpeak's audio ends under 8 kHz.

    Returns
    -------
    wave : np.ndarray
        Samples at 16 kHz, shape [time * 16000 / 22050 / tract].

    Example
    -------
    >>> fit_tract(np.zeros(22050), 1.0).shape
    (16000,)
    """
    ratio = Fraction(SAMPLE_RATE / ESPEAK_RATE / tract).limit_denominator(200)
    return resample_poly(wave, ratio.numerator, ratio.denominator)


def add_breath(wave: np.ndarray, breath: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise that swells and fades with the voice, within every pitch period.

    Arguments
    ---------
    wave : np.ndarray
        Samples, shape [time].
    breath : float
        RMS of the noise as a fraction of the voice's.
    rng : np.random.Generator
        Draws the noise.

    Returns
    -------
    wave : np.ndarray
        The breathy voice, shape [time].

    Example
    -------
    >>> silence = np.zeros(400)
    >>> bool(add_breath(silence, 0.1, np.random.default_rng(0)).any())
    False
    """
    power = uniform_filter1d(wave**2, SAMPLE_RATE // 500)
    envelope = np.sqrt(np.maximum(power, 0))  # its running sum may round below zero
    return wave + breath * envelope * rng.standard_normal(len(wave))


def _around(rng: np.random.Generator, median: float, spread: float) -> float:
    """A log-normal draw, held within two and a half spreads."""
    return float(median * np.exp(spread * np.clip(rng.standard_normal(), -2.5, 2.5)))


def _draw_timbre(rng: np.random.Generator) -> tuple[str, ...]:
    formants = [
        f"formant {n} {_around(rng, 100, 0.05):.0f} {_around(rng, 100, 0.25):.0f} "
        f"{_around(rng, 110, 0.2):.0f}"
        for n in range(1, 7)
    ]
    tone = " ".join(
        f"{hertz} {_around(rng, level, 0.22):.0f}"
        for hertz, level in ((500, 170), (1300, 125), (2600, 105), (4500, 95))
    )
    return (
        *formants,
        f"voicing {_around(rng, 100, 0.15):.0f}",
        f"roughness {rng.integers(0, 7)}",
        f"flutter {rng.integers(0, 12)}",
        f"tone {tone}",
        f"consonants {_around(rng, 100, 0.2):.0f} {_around(rng, 100, 0.2):.0f}",
    )
