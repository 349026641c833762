"""Waveform augmentation that needs no recordings: coloured noise and rooms.

To be composed in SpeechBrain's `Augmenter`, beside its own `SpeedPerturb`, `DropFreq`
and `DropChunk`. Random numbers come from torch's generator of the device alone, so a
seeded step can be repeated exactly.
"""

import torch
from torch import nn

EPSILON = 1e-8


class AddColouredNoise(nn.Module):
    """Adds noise with a power spectrum 1 / f^alpha at a random signal-to-noise ratio.

    Arguments
    ---------
    snr_low, snr_high : float
        Range of the signal-to-noise ratio, in dB.
    alpha_high : float
        Exponents are drawn from 0 (white) to this.

    Example
    -------
    >>> wavs = torch.randn(2, 16000)
    >>> AddColouredNoise(snr_low=10, snr_high=10)(wavs).shape
    torch.Size([2, 16000])
    """

    def __init__(
        self, snr_low: float = 5.0, snr_high: float = 25.0, alpha_high: float = 2.0
    ):
        super().__init__()
        self.snr_low = snr_low
        self.snr_high = snr_high
        self.alpha_high = alpha_high

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Adds another noise to each waveform of [batch, time]."""
        batch, n_samples = wavs.shape
        spectrum = torch.fft.rfft(torch.randn_like(wavs))
        alpha = self.alpha_high * torch.rand(batch, 1, device=wavs.device)
        bins = torch.arange(spectrum.shape[1], device=wavs.device).clamp(min=1)
        noise = torch.fft.irfft(spectrum * bins ** (-alpha / 2), n=n_samples)
        span = self.snr_high - self.snr_low
        snr = self.snr_low + span * torch.rand(batch, 1, device=wavs.device)
        ratio = _rms(wavs) / _rms(noise).clamp(min=EPSILON)
        return wavs + noise * ratio * 10 ** (-snr / 20)


class AddSyntheticReverb(nn.Module):
    """Convolves with a direct path and an exponentially decaying tail of noise
    (Polack's model of a room response), and keeps the level.

    Arguments
    ---------
    sample_rate : int
        Sample rate, in Hz.
    rt60_low, rt60_high : float
        Range of the reverberation time, in seconds.
    drr_low, drr_high : float
        Range of the ratio of direct to reverberant energy, in dB.

    Example
    -------
    >>> wavs = torch.randn(2, 16000)
    >>> AddSyntheticReverb(16000)(wavs).shape
    torch.Size([2, 16000])
    """

    def __init__(
        self,
        sample_rate: int,
        rt60_low: float = 0.1,
        rt60_high: float = 0.6,
        drr_low: float = 0.0,
        drr_high: float = 15.0,
    ):
        super().__init__()
        self.sample_rate = sample_rate
        self.rt60 = rt60_low, rt60_high
        self.drr = drr_low, drr_high

    def forward(self, wavs: torch.Tensor) -> torch.Tensor:
        """Puts each waveform of [batch, time] into another room."""
        batch, n_samples = wavs.shape
        low, high = self.rt60
        rt60 = low + (high - low) * torch.rand(batch, 1, device=wavs.device)
        times = torch.arange(int(high * self.sample_rate), device=wavs.device)
        # 60 dB down after rt60: the amplitude falls by ln(1000) = 6.91.
        decay = torch.exp(-6.91 * times / (rt60 * self.sample_rate))
        tail = torch.randn(decay.shape, device=wavs.device) * decay
        tail[:, 0] = 0.0
        low, high = self.drr
        drr = low + (high - low) * torch.rand(batch, 1, device=wavs.device)
        response = tail / tail.norm(dim=1, keepdim=True) * 10 ** (-drr / 20)
        response[:, 0] = 1.0
        n_fft = n_samples + response.shape[1]
        product = torch.fft.rfft(wavs, n_fft) * torch.fft.rfft(response, n_fft)
        reverberant = torch.fft.irfft(product, n_fft)[:, :n_samples]
        return reverberant * _rms(wavs) / _rms(reverberant).clamp(min=EPSILON)


def _rms(wavs: torch.Tensor) -> torch.Tensor:
    return wavs.square().mean(dim=1, keepdim=True).sqrt()
