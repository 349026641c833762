"""Subsampling: the first layer of an encoder, which shortens the sequence.

A subsampling is built with `(input_size, output_size)`, called with `(feats, counts)`,
and says how many frames it needs (`min_frames`) and how many it returns
(`output_counts`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from local_modules.masking import frame_mask


class ConvSubsampling(nn.Module):
    """Strided 3 x 3 convolutions over time and frequency, then a linear layer.

    There are `factor` / 2 convolutions; each halves time and frequency.

    Arguments
    ---------
    input_size : int
        Number of features per frame.
    output_size : int
        Number of channels per frame after the linear layer.
    factor : int
        2 or 4: how many frames become one.
    channels : int
        Channels of the convolutions.

    Example
    -------
    >>> subsampling = ConvSubsampling(80, 32, factor=4)
    >>> subsampling(torch.rand(2, 100, 80), None).shape
    torch.Size([2, 25, 32])
    """

    def __init__(
        self, input_size: int, output_size: int, factor: int = 4, channels: int = 32
    ):
        super().__init__()
        if factor not in (2, 4):
            raise ValueError(f"ConvSubsampling: factor is {factor}, not 2 or 4")
        self.factor = self.min_frames = factor
        self.convs = nn.ModuleList()
        n_bins = input_size
        for in_channels in [1, channels][: factor // 2]:
            self.convs.append(nn.Conv2d(in_channels, channels, 3, 2, padding=1))
            n_bins = (n_bins + 1) // 2
        self.linear = nn.Linear(channels * n_bins, output_size)

    def output_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """Number of output frames that hold speech, given the input's."""
        return (counts + self.factor - 1) // self.factor

    def forward(self, feats: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
        """Subsamples a padded batch.

        Arguments
        ---------
        feats : torch.Tensor
            [batch, frames, features], zero in the padding.
        counts : torch.Tensor | None
            Frames of speech of each utterance, [batch]; None if nothing is padded.

        Returns
        -------
        torch.Tensor
            [batch, ceil(frames / factor), output_size].
        """
        x = feats.unsqueeze(1)
        for conv in self.convs:
            x = F.silu(conv(x))
            if counts is not None:
                counts = (counts + 1) // 2
                mask = frame_mask(counts, x.shape[2])
                x = x * mask[:, None, :, None]
        return self.linear(x.transpose(1, 2).flatten(2))


class StackSubsampling(nn.Module):
    """Stacks neighbouring frames and maps them with one linear layer.

    Frames that do not fill a stack are dropped.

    Arguments
    ---------
    input_size : int
        Number of features per frame.
    output_size : int
        Number of channels per frame after the linear layer.
    factor : int
        How many frames become one.

    Example
    -------
    >>> StackSubsampling(64, 32, factor=8)(torch.rand(2, 100, 64), None).shape
    torch.Size([2, 12, 32])
    """

    def __init__(self, input_size: int, output_size: int, factor: int = 8):
        super().__init__()
        self.factor = self.min_frames = factor
        self.linear = nn.Linear(factor * input_size, output_size)

    def output_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """Number of output frames that hold speech, given the input's."""
        return counts // self.factor

    def forward(self, feats: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
        """Subsamples `feats` [batch, frames, features] to
        [batch, frames // factor, output_size]; a stack never mixes utterances, so
        `counts` is not needed."""
        n_stacks = feats.shape[1] // self.factor
        # Not a slice, whose length an export can't infer.
        stacks = feats.narrow(1, 0, n_stacks * self.factor).unflatten(1, (n_stacks, -1))
        return self.linear(stacks.flatten(2))
