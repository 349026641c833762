"""What stands in for SpeechBrain's parts in a graph, against them and against torch."""

import pytest
import torch
from speechbrain.processing.features import STFT, spectral_magnitude

from local_modules.inference.onnx_parts import FoldedSTFT, power_spectrum


def noise(n_samples):
    generator = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(2, n_samples, generator=generator)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("options", [{}, {"n_fft": 512}, {"normalized_stft": True}])
def test_folded_is_torch_stft(rate, options):
    stft = STFT(sample_rate=rate, **{"n_fft": max(400, rate // 40), **options})
    wavs = noise(rate // 4)
    if stft.win_length > stft.n_fft:
        pytest.skip("torch.stft has no such transform either")
    found = torch.stack(FoldedSTFT(stft)(wavs), dim=-1)
    torch.testing.assert_close(found, stft(wavs), rtol=0, atol=1e-4)


def test_power_is_speechbrains():
    stft = STFT(sample_rate=16000)
    wavs = noise(16007)
    found = power_spectrum(FoldedSTFT(stft)(wavs))
    torch.testing.assert_close(found, spectral_magnitude(stft(wavs)))
