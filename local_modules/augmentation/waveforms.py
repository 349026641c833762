"""Waveform augmentation in batches, on the training device: noise, rooms and silence.

To be composed in SpeechBrain's `Augmenter`, beside its own `SpeedPerturb` and
`DropFreq`. SpeechBrain's classes of the same names read files in an order that a
resumed training does not know, use one room for a whole batch, and make a GPU wait for
each waveform; here all random numbers come from torch's generator of the device, so a
seeded step can be repeated exactly.
"""

from collections.abc import Callable

import torch
from scipy.fft import next_fast_len
from torch import nn

from local_modules.augmentation.recorded import (
    find_noises,
    find_responses,
    read_noises,
    read_responses,
)
from local_modules.augmentation.rooms import simulated_responses

EPSILON = 1e-8
CPU_ROWS = 16  # of a batch at a time, which stay in the CPU's cache
FFT_STEP = 256  # with many factors of two, FFTs are fast on all devices


class ColouredNoise:
    """Noise with a power spectrum 1 / f^alpha.

    Arguments
    ---------
    snr_low, snr_high : float
        Range of the signal-to-noise ratio, in dB.
    alpha_high : float
        Exponents are drawn from 0 (white) to this.

    Example
    -------
    >>> noise, snr = ColouredNoise()(torch.randn(2, 16000))
    >>> noise.shape, snr.shape
    (torch.Size([2, 16000]), torch.Size([2, 1]))
    """

    def __init__(
        self, snr_low: float = 5.0, snr_high: float = 25.0, alpha_high: float = 2.0
    ):
        self.snr = snr_low, snr_high
        self.alpha_high = alpha_high

    def __call__(self, wavs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A different noise for each waveform of [batch, time], and its signal-to-noise
        ratio in dB, [batch, 1]."""
        batch, n_samples = wavs.shape
        n_fft = _fft_length(n_samples)
        bins = torch.arange(n_fft // 2 + 1, device=wavs.device).clamp(min=1)
        alpha = self.alpha_high * torch.rand(batch, 1, device=wavs.device)
        spectrum = torch.randn(
            batch, len(bins), dtype=torch.complex64, device=wavs.device
        )
        spectrum *= torch.exp(-alpha / 2 * bins.log())
        noise = torch.fft.irfft(spectrum, n_fft)[:, :n_samples]
        return noise, _uniform(*self.snr, torch.rand_like(alpha))


class RecordedNoise:
    """Noise from the recordings of a folder, kept in memory (`read_noises`).

    Arguments
    ---------
    folder : str
        MUSAN, or any folder of noises.
    sample_rate : int
        Sample rate, in Hz.

    Raises
    ------
    InputError
        There is no noise in the folder.
    """

    def __init__(self, folder: str, sample_rate: int):
        find_noises(folder)  # so that errors are reported before training
        self.folder = folder
        self.sample_rate = sample_rate
        self.noises = {}  # by device

    def __call__(self, wavs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `ColouredNoise`; each kind of noise is equally likely."""
        device = wavs.device
        if device not in self.noises:
            noises = read_noises(self.folder, self.sample_rate)
            self.noises[device] = [tensor.to(device) for tensor in noises]
        samples, kinds = self.noises[device]
        batch, n_samples = wavs.shape
        length = samples.shape[1]
        n_read = min(n_samples, length)
        draws = torch.rand(4, batch, device=device)
        first, count, snr_low, snr_high = kinds[(draws[0] * len(kinds)).long()].T
        stretch = first.long() + (draws[1] * count).long()
        place = (draws[2] * (length - n_read + 1)).long()
        # All windows that are as long as the crops, without copies.
        windows = samples.view(-1).unfold(0, n_read, 1)
        noise = windows[stretch * length + place].to(wavs.dtype)
        if n_read < n_samples:
            noise = noise.repeat(1, -(-n_samples // n_read))[:, :n_samples]
        return noise, _uniform(snr_low, snr_high, draws[3]).unsqueeze(1)


class AddNoise(nn.Module):
    """Adds noise at a random signal-to-noise ratio.

    Arguments
    ---------
    sample_rate : int
        Sample rate, in Hz.
    folder : str | None
        Recorded noises (`RecordedNoise`); None for `ColouredNoise`.

    Raises
    ------
    InputError
        There is no noise in the folder.

    Example
    -------
    >>> wavs = torch.randn(2, 16000)
    >>> AddNoise(16000)(wavs).shape
    torch.Size([2, 16000])
    """

    def __init__(self, sample_rate: int, folder: str | None = None):
        super().__init__()
        self.source = RecordedNoise(folder, sample_rate) if folder else ColouredNoise()

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Adds a different noise to each waveform of [batch, time]."""
        return _in_parts(self._add, wavs)

    def _add(self, wavs: torch.Tensor) -> torch.Tensor:
        noise, snr = self.source(wavs)
        level = _level(wavs) / _level(noise).clamp(min=EPSILON) * 10 ** (-snr / 20)
        return noise.mul_(level).add_(wavs)


class AddReverb(nn.Module):
    """Convolves with room responses, and keeps the level.

    Arguments
    ---------
    sample_rate : int
        Sample rate, in Hz.
    folder : str | None
        Recorded responses, such as RIRS_NOISES; None for `simulated_responses`.

    Raises
    ------
    InputError
        There is no response in the folder.

    Example
    -------
    >>> wavs = torch.randn(2, 16000)
    >>> AddReverb(16000)(wavs).shape
    torch.Size([2, 16000])
    """

    def __init__(self, sample_rate: int, folder: str | None = None):
        super().__init__()
        if folder:
            find_responses(folder)  # so that errors are reported before training
        self.sample_rate = sample_rate
        self.folder = folder
        self.spectra = {}  # of all responses, by length of the waveforms and device

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Convolves each waveform of [batch, time] with a random response."""
        key = wavs.shape[1], wavs.device
        if key not in self.spectra:
            self.spectra[key] = self._spectra(*key)
        return _in_parts(self._convolve, wavs)

    def _convolve(self, wavs: torch.Tensor) -> torch.Tensor:
        batch, n_samples = wavs.shape
        n_fft, responses = self.spectra[n_samples, wavs.device]
        chosen = torch.randint(len(responses), (batch,), device=wavs.device)
        spectrum = torch.fft.rfft(wavs, n_fft).mul_(responses[chosen])
        reverberant = torch.fft.irfft(spectrum, n_fft)[:, :n_samples]
        level = _level(wavs) / _level(reverberant).clamp(min=EPSILON)
        return reverberant.mul_(level)

    def _spectra(self, n_samples: int, device: torch.device) -> tuple:
        """The length of an FFT without wrap-around, and the spectra of all
        responses."""
        responses = (
            read_responses(self.folder, self.sample_rate)
            if self.folder
            else simulated_responses(self.sample_rate)
        )
        # What comes after the waveform's end is cut off.
        responses = responses[:, :n_samples].to(device)
        n_fft = _fft_length(n_samples + responses.shape[1] - 1)
        return n_fft, torch.fft.rfft(responses, n_fft)


class DropChunk(nn.Module):
    """Silences some stretches of each waveform, as SpeechBrain's class of this name
    does, but in batches.

    Arguments
    ---------
    max_chunks : int
        Maximum number of stretches to silence; the minimum is one.
    min_samples, max_samples : int
        Range of their lengths.

    Example
    -------
    >>> n_silent = (DropChunk()(torch.ones(2, 16000)) == 0).sum(dim=1)
    >>> ((100 <= n_silent) & (n_silent <= 3000)).tolist()
    [True, True]
    """

    def __init__(
        self, max_chunks: int = 3, min_samples: int = 100, max_samples: int = 1000
    ):
        super().__init__()
        self.max_chunks = max_chunks
        self.min_samples, self.max_samples = min_samples, max_samples

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Silences stretches of each waveform of [batch, time]."""
        return _in_parts(self._drop, wavs)

    def _drop(self, wavs: torch.Tensor) -> torch.Tensor:
        (batch, n_samples), device = wavs.shape, wavs.device
        shape = batch, self.max_chunks, 1
        n_chunks = torch.randint(1, self.max_chunks + 1, (batch, 1, 1), device=device)
        length = torch.randint(
            self.min_samples, self.max_samples + 1, shape, device=device
        )
        spare = (n_samples - length).clamp(min=0)
        start = (torch.rand(shape, device=device) * (spare + 1)).floor()
        sample = torch.arange(n_samples, device=device)
        is_silent = (start <= sample) & (sample < start + length)
        is_silent &= torch.arange(self.max_chunks, device=device)[:, None] < n_chunks
        return wavs.masked_fill(is_silent.any(dim=1), 0.0)


def _uniform(low, high, draws: torch.Tensor) -> torch.Tensor:
    """Maps numbers between 0 and 1 to numbers between two limits."""
    return low + (high - low) * draws


def _in_parts(augment: Callable, wavs: torch.Tensor) -> torch.Tensor:
    """Augments a batch; on a CPU, some rows at a time."""
    n_rows = CPU_ROWS if wavs.device.type == "cpu" else len(wavs)
    return torch.cat([augment(rows) for rows in wavs.split(n_rows)])


def _fft_length(n_samples: int) -> int:
    """A length of at least `n_samples` at which an FFT is fast; at others, it takes up
    to five times as long."""
    return FFT_STEP * next_fast_len(-(-n_samples // FFT_STEP), real=True)


def _level(wavs: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(wavs, dim=1, keepdim=True)
