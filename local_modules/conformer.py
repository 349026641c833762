"""Conformer encoder (Gulati et al., Interspeech 2020) for speaker embeddings.

With `multi_scale` the outputs of all blocks are concatenated, the multi-scale feature
aggregation of MFA-Conformer (Zhang et al., Interspeech 2022). Positions are rotary (Su
et al., 2021). Padding is masked in every layer that looks across frames.
"""

import torch
from torch import nn
from torch.nn import functional as F

from local_modules.dropout import Dropout
from local_modules.masking import frame_counts, frame_mask


def rotate(x: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding (Su et al., 2021, eq. 34).

    Turns each pair of channels (i, i + size / 2) by an angle that grows with the
    position, so that a product of two rotated vectors depends on their distance only.

    Arguments
    ---------
    x : torch.Tensor
        Queries or keys, [..., frames, size], size even.

    Returns
    -------
    torch.Tensor
        The same shape.

    Example
    -------
    >>> x = torch.ones(1, 3, 4)
    >>> torch.allclose(rotate(x).norm(dim=-1), x.norm(dim=-1))
    True
    """
    half = x.shape[-1] // 2
    angles = rotary_angles(x.shape[-2], half, x.device)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_angles(n_frames: int, half: int, device: torch.device) -> torch.Tensor:
    """Angles by which `rotate` turns the pairs of channels, [frames, half]."""
    positions = torch.arange(n_frames, device=device, dtype=torch.float32)
    steps = torch.arange(half, device=device, dtype=torch.float32)
    return torch.outer(positions, 10000.0 ** (-steps / half))


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions.

    Arguments
    ---------
    d_model : int
        Number of channels; a multiple of twice `n_heads`.
    n_heads : int
        Number of heads.

    Example
    -------
    >>> SelfAttention(32, 4)(torch.rand(2, 10, 32), None).shape
    torch.Size([2, 10, 32])
    """

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        if d_model % (2 * n_heads):
            raise ValueError(
                f"SelfAttention: d_model {d_model} is not a multiple of twice the "
                f"{n_heads} heads"
            )
        self.n_heads = n_heads
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attends from each frame of `x` [batch, frames, d_model] to all frames where
        `mask` [batch, frames] is True (None: to all)."""
        heads = self.in_proj(x).unflatten(-1, (3, self.n_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(
            rotate(query),
            rotate(key),
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
        )
        return self.out_proj(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Feed-forward module: two linear layers with a Swish between.

    Arguments
    ---------
    d_model : int
        Number of channels.
    d_ffn : int
        Width of the hidden layer.
    dropout : float
        Dropout after both layers.

    Example
    -------
    >>> FeedForward(32, 64)(torch.rand(2, 10, 32)).shape
    torch.Size([2, 10, 32])
    """

    def __init__(self, d_model: int, d_ffn: int, dropout: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(d_model, d_ffn),
            nn.SiLU(),
            Dropout(dropout),
            nn.Linear(d_ffn, d_model),
            Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, frames, d_model] to the same shape, frame by frame."""
        return self.layers(x)


class ConvolutionModule(nn.Module):
    """Gated pointwise, depthwise and pointwise convolution over time.

    Arguments
    ---------
    d_model : int
        Number of channels.
    kernel_size : int
        Frames that the depthwise convolution sees; odd.
    norm : str
        Normalisation after the depthwise convolution: "batch" as in the papers, or
        "layer", which needs no statistics of other utterances.
    dropout : float
        Dropout of the output.

    Example
    -------
    >>> ConvolutionModule(32, 15)(torch.rand(2, 10, 32), None).shape
    torch.Size([2, 10, 32])
    """

    def __init__(
        self, d_model: int, kernel_size: int, norm: str = "layer", dropout: float = 0.0
    ):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"ConvolutionModule: kernel_size {kernel_size} is not odd")
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        if norm not in norms:
            raise ValueError(f"ConvolutionModule: norm is {norm!r}, not batch or layer")
        self.pointwise_in = nn.Linear(d_model, 2 * d_model)
        self.depthwise = nn.Conv1d(
            d_model, d_model, kernel_size, padding=kernel_size // 2, groups=d_model
        )
        self.norm = norms[norm](d_model)
        self.pointwise_out = nn.Linear(d_model, d_model)
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Convolves `x` [batch, frames, d_model] over time; frames where `mask`
        [batch, frames] is False count as zero."""
        x = F.glu(self.pointwise_in(x), dim=-1)
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        x = self.depthwise(x.transpose(1, 2))
        # Not BatchNorm1d: under torchrun, a batch norm is of another class.
        if isinstance(self.norm, nn.LayerNorm):
            x = self.norm(x.transpose(1, 2))
        else:
            x = self.norm(x).transpose(1, 2)
        return self.dropout(self.pointwise_out(F.silu(x)))


class ConformerBlock(nn.Module):
    """Half-step feed-forward, self-attention, convolution, half-step feed-forward;
    each normalised at its input and added to its residual (pre-norm).

    Arguments
    ---------
    d_model, n_heads, d_ffn, kernel_size : int
        Channels, heads, width of the feed-forwards, frames of the convolution.
    conv_norm : str
        See `ConvolutionModule`.
    dropout : float
        Dropout of every module.

    Example
    -------
    >>> block = ConformerBlock(32, 4, 64, 15)
    >>> block(torch.rand(2, 10, 32), None).shape
    torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_ffn: int,
        kernel_size: int,
        conv_norm: str = "layer",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.ffn_in = FeedForward(d_model, d_ffn, dropout)
        self.attention = SelfAttention(d_model, n_heads)
        self.convolution = ConvolutionModule(d_model, kernel_size, conv_norm, dropout)
        self.ffn_out = FeedForward(d_model, d_ffn, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(5))
        self.dropout = Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Maps [batch, frames, d_model] to the same shape; `mask` [batch, frames] is
        False in the padding (None: nothing is padded)."""
        x = x + 0.5 * self.ffn_in(self.norms[0](x))
        x = x + self.dropout(self.attention(self.norms[1](x), mask))
        x = x + self.convolution(self.norms[2](x), mask)
        x = x + 0.5 * self.ffn_out(self.norms[3](x))
        return self.norms[4](x)


class ConformerEncoder(nn.Module):
    """Subsampling and a stack of Conformer blocks.

    Arguments
    ---------
    input_size : int
        Number of features per frame.
    subsampling : callable
        Class of the subsampling, called with `(input_size, d_model)`.
    d_model, n_blocks, n_heads, d_ffn, kernel_size : int
        Channels, blocks, heads, width of the feed-forwards, frames of the convolutions.
    conv_norm : str
        See `ConvolutionModule`.
    dropout : float
        Dropout after the subsampling and in every module.
    multi_scale : bool
        Return the outputs of all blocks side by side, normalised together, instead of
        the last block's alone.

    Example
    -------
    >>> from local_modules.subsampling import ConvSubsampling
    >>> encoder = ConformerEncoder(80, ConvSubsampling, 32, n_blocks=3)
    >>> frames, mask = encoder(torch.rand(2, 100, 80), torch.tensor([1.0, 0.5]))
    >>> frames.shape, mask.sum(dim=1)
    (torch.Size([2, 25, 96]), tensor([25, 13]))
    """

    def __init__(
        self,
        input_size: int,
        subsampling,
        d_model: int,
        n_blocks: int = 4,
        n_heads: int = 4,
        d_ffn: int = 256,
        kernel_size: int = 15,
        conv_norm: str = "layer",
        dropout: float = 0.0,
        multi_scale: bool = True,
    ):
        super().__init__()
        self.subsampling = subsampling(input_size, d_model)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(
            ConformerBlock(d_model, n_heads, d_ffn, kernel_size, conv_norm, dropout)
            for _ in range(n_blocks)
        )
        self.multi_scale = multi_scale
        self.output_size = d_model * n_blocks if multi_scale else d_model
        self.norm = nn.LayerNorm(self.output_size) if multi_scale else nn.Identity()

    def forward(
        self, feats: torch.Tensor, lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Encodes a padded batch.

        Arguments
        ---------
        feats : torch.Tensor
            Features, [batch, frames, features].
        lens : torch.Tensor | None
            Relative lengths, [batch]; None if nothing is padded.

        Returns
        -------
        frames : torch.Tensor
            [batch, subsampled frames, output_size].
        mask : torch.Tensor | None
            True for speech, [batch, subsampled frames]; None if nothing is padded.

        Raises
        ------
        RuntimeError
            An utterance is shorter than one frame after subsampling.
        """
        n_frames = feats.shape[1]
        counts = None if lens is None else frame_counts(lens, n_frames)
        # An exported graph can't depend on values: it treats any batch with lengths as
        # padded.
        padded = counts is not None
        # Within torch.compile this is always true, and values can be read.
        exporting = torch.compiler.is_exporting()
        if not exporting or torch.compiler.is_dynamo_compiling():
            shortest = int(counts.min()) if padded else n_frames
            if shortest < self.subsampling.min_frames:
                raise RuntimeError(
                    f"ConformerEncoder: an utterance has {shortest} frames, the "
                    f"minimum is {self.subsampling.min_frames}"
                )
            padded = shortest < n_frames
        mask = None
        if padded:
            feats = feats.masked_fill(~frame_mask(counts, n_frames).unsqueeze(-1), 0.0)
            x = self.subsampling(feats, counts)
            mask = frame_mask(self.subsampling.output_counts(counts), x.shape[1])
        else:
            x = self.subsampling(feats, None)
        x = self.dropout(x)
        outputs = []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        return self.norm(torch.cat(outputs, dim=-1) if self.multi_scale else x), mask
