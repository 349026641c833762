"""Poolings: from frames to one vector per utterance.

A pooling is built with the number of channels it receives, says in `output_size` how
many it returns, and is called with `(frames, mask)`.
"""

import torch
from torch import nn

VARIANCE_FLOOR = 1e-5  # keeps the gradient of the square root finite


def masked_statistics(
    frames: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted mean and standard deviation over time, in float32 whatever the
    precision: they sum hundreds of frames and their small differences.

    Arguments
    ---------
    frames : torch.Tensor
        [batch, frames, channels].
    weights : torch.Tensor
        Weights that sum to one over the frames, [batch, frames, channels or 1].

    Returns
    -------
    mean, std : torch.Tensor
        [batch, channels] each.

    Example
    -------
    >>> frames = torch.tensor([[[1.0], [3.0]]])
    >>> mean, std = masked_statistics(frames, torch.full((1, 2, 1), 0.5))
    >>> round(mean.item(), 2), round(std.item(), 2)
    (2.0, 1.0)
    """
    weights, frames = weights.float(), frames.float()
    mean = (weights * frames).sum(dim=1)
    variance = (weights * (frames - mean.unsqueeze(1)).square()).sum(dim=1)
    return mean, variance.clamp(min=VARIANCE_FLOOR).sqrt()


def uniform_weights(frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Equal weights for all frames of speech, [batch, frames, 1]."""
    if mask is None:
        mask = frames.new_ones(frames.shape[:2])
    mask = mask.float().unsqueeze(-1)
    return mask / mask.sum(dim=1, keepdim=True)


class MeanPooling(nn.Module):
    """Mean over time.

    Arguments
    ---------
    input_size : int
        Number of channels.

    Example
    -------
    >>> MeanPooling(4)(torch.rand(2, 9, 4), None).shape
    torch.Size([2, 4])
    """

    def __init__(self, input_size: int):
        super().__init__()
        self.output_size = input_size

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pools `frames` [batch, frames, channels] where `mask` [batch, frames] is
        True (None: everywhere) to [batch, channels]."""
        return (uniform_weights(frames, mask) * frames.float()).sum(dim=1)


class StatisticsPooling(nn.Module):
    """Mean and standard deviation over time (Snyder et al., Interspeech 2017).

    Arguments
    ---------
    input_size : int
        Number of channels.

    Example
    -------
    >>> StatisticsPooling(4)(torch.rand(2, 9, 4), None).shape
    torch.Size([2, 8])
    """

    def __init__(self, input_size: int):
        super().__init__()
        self.output_size = 2 * input_size

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pools `frames` [batch, frames, channels] where `mask` [batch, frames] is
        True (None: everywhere) to [batch, 2 * channels]."""
        weights = uniform_weights(frames, mask)
        return torch.cat(masked_statistics(frames, weights), dim=-1)


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation weighted by attention (Okabe et al., Interspeech
    2018), a weight per frame and channel, computed from the frame and the utterance's
    mean and standard deviation (Desplanques et al., Interspeech 2020).

    Arguments
    ---------
    input_size : int
        Number of channels.
    attention_size : int
        Width of the hidden layer of the attention.

    Example
    -------
    >>> AttentiveStatisticsPooling(4)(torch.rand(2, 9, 4), None).shape
    torch.Size([2, 8])
    """

    def __init__(self, input_size: int, attention_size: int = 128):
        super().__init__()
        self.output_size = 2 * input_size
        self.frame_layer = nn.Linear(input_size, attention_size)
        self.context_layer = nn.Linear(2 * input_size, attention_size, bias=False)
        self.score_layer = nn.Linear(attention_size, input_size)

    def forward(self, frames: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Pools `frames` [batch, frames, channels] where `mask` [batch, frames] is
        True (None: everywhere) to [batch, 2 * channels]."""
        weights = uniform_weights(frames, mask)
        context = torch.cat(masked_statistics(frames, weights), dim=-1)
        hidden = self.frame_layer(frames) + self.context_layer(context).unsqueeze(1)
        scores = self.score_layer(torch.tanh(hidden))
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        attention = torch.softmax(scores.float(), dim=1)
        return torch.cat(masked_statistics(frames, attention), dim=-1)
