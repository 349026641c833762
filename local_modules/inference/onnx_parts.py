"""Replacements for modules that can't be traced into ONNX, or only into slow graphs."""

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from speechbrain.processing.features import STFT
from torch import nn
from torch.onnx import ops

from local_modules.conformer import SelfAttention, rotary_angles

PADDING = -1e9  # added to the scores of padded keys, enough to mask them


class FoldedSTFT(nn.Module):
    """SpeechBrain's `STFT` as two matrix products, which every ONNX runtime supports
    and computes fast.

    Cosines are even about the middle of a frame and sines are odd, so each frame is
    folded there: cosines need only the sum of its halves, sines only the difference,
    and each product is half the size.

    Arguments
    ---------
    stft : speechbrain.processing.features.STFT
        The transform to replace; its framing, window and size are used.

    Example
    -------
    >>> stft = STFT(sample_rate=16000)
    >>> wavs = torch.rand(2, 1600)
    >>> real, imaginary = FoldedSTFT(stft)(wavs)
    >>> torch.allclose(real, stft(wavs)[..., 0], atol=1e-4)
    True
    """

    def __init__(self, stft: STFT):
        super().__init__()
        self.n_fft, self.hop_length = stft.n_fft, stft.hop_length
        self.pad_mode = stft.pad_mode
        self.margin = stft.n_fft // 2 if stft.center else 0
        # A window shorter than the transform is centred in it, as in torch.stft.
        before = (stft.n_fft - stft.win_length) // 2
        window = torch.zeros(stft.n_fft, dtype=torch.float64)
        window[before : before + stft.win_length] = stft.window.double()
        if stft.normalized_stft:
            window /= math.sqrt(stft.n_fft)
        self.register_buffer("window", window.float())
        # Samples 1, 2, ... of a frame have a mirror image; sample 0 has none, nor has
        # the middle one if n_fft is even.
        self.n_pairs = (stft.n_fft - 1) // 2
        middle = range(self.n_pairs + 1, stft.n_fft - self.n_pairs)
        places = torch.tensor([*range(1, self.n_pairs + 1), 0, *middle])
        n_bins = stft.n_fft // 2 + 1 if stft.onesided else stft.n_fft
        turns = torch.outer(places, torch.arange(n_bins)) % stft.n_fft
        angles = 2 * math.pi * turns.double() / stft.n_fft
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", -angles[: self.n_pairs].sin().float())

    def forward(self, wavs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Real and imaginary parts, [batch, frames, bins] each, of waveforms
        [batch, time]."""
        if self.margin:
            margins = (self.margin, self.margin)
            wavs = nn.functional.pad(wavs.unsqueeze(1), margins, self.pad_mode)
            wavs = wavs.squeeze(1)
        frames = self._frames(wavs) * self.window
        n = self.n_pairs
        first, last = frames[..., 1 : n + 1], frames[..., self.n_fft - n :].flip(-1)
        alone = frames[..., :1], frames[..., n + 1 : self.n_fft - n]
        real = torch.cat([first + last, *alone], dim=-1) @ self.cosines
        return real, (first - last) @ self.sines

    def _frames(self, wavs: torch.Tensor) -> torch.Tensor:
        """Overlapping frames, [batch, frames, n_fft], copied in pieces of
        gcd(n_fft, hop_length) samples."""
        size = math.gcd(self.n_fft, self.hop_length)
        n_pieces = wavs.shape[1] // size
        pieces = wavs[:, : n_pieces * size].reshape(-1, n_pieces, size)
        n_frames = 1 + (wavs.shape[1] - self.n_fft) // self.hop_length
        starts = torch.arange(n_frames, device=wavs.device) * (self.hop_length // size)
        numbers = torch.arange(self.n_fft // size, device=wavs.device)
        numbers = (starts.unsqueeze(1) + numbers).flatten()
        return pieces[:, numbers].reshape(-1, n_frames, self.n_fft)


def power_spectrum(spectrum: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """SpeechBrain's `spectral_magnitude`, [batch, frames, bins], of the output of
    `FoldedSTFT`, without a slow sum over an axis of length two."""
    real, imaginary = spectrum
    return real * real + imaginary * imaginary


class WholeAttention(nn.Module):
    """The Conformer's `SelfAttention` in the two operators that ONNX has for it. Traced
    into many small operators, it would spend most of its time outside the products.

    The mask is one more channel: 1 in each query, and `PADDING` in the keys of padding.
    A regular mask would need a value for each pair of frames.

    Arguments
    ---------
    attention : SelfAttention
        The module to replace; its weights are used.

    Example
    -------
    >>> attention = SelfAttention(32, 4).eval()
    >>> x, mask = torch.rand(2, 9, 32), torch.arange(9) < torch.tensor([[9], [4]])
    >>> found = WholeAttention(attention)(x, mask)
    >>> torch.allclose(found, attention(x, mask), atol=1e-5)
    True
    """

    def __init__(self, attention: SelfAttention):
        super().__init__()
        self.n_heads = attention.n_heads
        self.in_proj = attention.in_proj
        self.out_proj = attention.out_proj

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As in `SelfAttention`."""
        size = x.shape[-1] // self.n_heads
        query, key, value = self.in_proj(x).chunk(3, dim=-1)
        angles = rotary_angles(x.shape[1], size // 2, x.device)
        turn = {"cos_cache": angles.cos(), "sin_cache": angles.sin()}
        turn = {name: cache.expand(x.shape[0], -1, -1) for name, cache in turn.items()}
        query, key = (
            ops.rotary_embedding(part, **turn, num_heads=self.n_heads)
            for part in (query, key)
        )
        ones = torch.ones_like(mask, dtype=x.dtype)
        x, *_ = ops.attention(
            self._with_channel(query, ones),
            self._with_channel(key, torch.where(mask, 0.0, PADDING)),
            self._with_channel(value, ones),  # as wide as the others, for the tracer
            q_num_heads=self.n_heads,
            kv_num_heads=self.n_heads,
            scale=size**-0.5,
        )
        return self.out_proj(x.unflatten(-1, (self.n_heads, -1))[..., :-1].flatten(2))

    def _with_channel(self, x: torch.Tensor, channel: torch.Tensor) -> torch.Tensor:
        """Adds a channel, [batch, frames], to each head of [batch, frames, d_model]."""
        heads = x.unflatten(-1, (self.n_heads, -1))
        channel = channel[:, :, None, None].expand(-1, -1, self.n_heads, -1)
        return torch.cat([heads, channel], dim=-1).flatten(2)


IN_ONNX = {STFT: FoldedSTFT, SelfAttention: WholeAttention}


@contextmanager
def traceable(graph: nn.Module) -> Iterator[None]:
    """Within the context, replaces what can't be traced: the power spectrum, which uses
    complex numbers, and the masks of ECAPA-TDNN, which call `len(lengths)` and so fix
    the batch size. Also replaces attention, whose trace would be slow."""
    exchanged = [
        (module, name, child, IN_ONNX[type(child)])
        for module in graph.modules()
        for name, child in module.named_children()
        if type(child) in IN_ONNX
    ]
    # An import statement gives lazy wrappers; setting their attributes has no effect.
    ecapa = importlib.import_module("speechbrain.lobes.models.ECAPA_TDNN")
    features = importlib.import_module("speechbrain.lobes.features")
    masks, magnitude = ecapa.length_to_mask, features.spectral_magnitude

    def length_to_mask(length, max_len, device):
        frames = torch.arange(max_len, device=device, dtype=length.dtype)
        return (frames < length.unsqueeze(1)).to(length.dtype)

    try:
        ecapa.length_to_mask = length_to_mask
        features.spectral_magnitude = power_spectrum
        for module, name, child, in_onnx in exchanged:
            setattr(module, name, in_onnx(child))
        yield
    finally:
        ecapa.length_to_mask, features.spectral_magnitude = masks, magnitude
        for module, name, child, _ in exchanged:
            setattr(module, name, child)
