"""From relative lengths to frames: the one place that defines what is padding."""

import torch


def frame_counts(lens: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Counts the frames of speech of each utterance of a padded batch.

    Features of `n` samples have `1 + n // hop` frames (a centred STFT), so an
    utterance that fills the share `lens` of the padded waveform has
    `1 + floor(lens * (n_frames - 1))` of them. That is exact for every length if the
    waveforms were padded to a multiple of the hop, and for features padded by hand
    with `lens = n / n_frames`; rounding `lens * n_frames` is exact in neither case.

    Arguments
    ---------
    lens : torch.Tensor
        Relative lengths in (0, 1], [batch].
    n_frames : int
        Number of frames of the padded batch.

    Returns
    -------
    torch.Tensor
        Number of frames of speech, int64, [batch].

    Example
    -------
    >>> frame_counts(torch.tensor([1.0, 0.5, 0.25]), n_frames=8)
    tensor([8, 4, 2])
    """
    count = lens.double() * (n_frames - 1)
    # The summand undoes the rounding of float32 lengths; exact up to ten minutes. As a
    # factor, 1 + 2**-24, it is lost in an export, which keeps constants in float32.
    return (count + count * 2**-24).floor().long() + 1


def frame_mask(counts: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Marks the frames of speech.

    Arguments
    ---------
    counts : torch.Tensor
        Number of frames of speech of each utterance, [batch].
    n_frames : int
        Number of frames of the padded batch.

    Returns
    -------
    torch.Tensor
        True for speech and False for padding, [batch, n_frames].

    Example
    -------
    >>> frame_mask(torch.tensor([1, 3]), n_frames=3).int()
    tensor([[1, 0, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return torch.arange(n_frames, device=counts.device) < counts.unsqueeze(1)


def pad_to_multiple(
    wavs: torch.Tensor, lens: torch.Tensor, multiple: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads a batch of waveforms with zeros to a multiple of the hop, where
    `frame_counts` is exact.

    Arguments
    ---------
    wavs : torch.Tensor
        Waveforms, [batch, time].
    lens : torch.Tensor
        Relative lengths, [batch].
    multiple : int
        Samples of one hop.

    Returns
    -------
    wavs, lens : torch.Tensor
        The padded waveforms and their relative lengths.

    Example
    -------
    >>> wavs, lens = pad_to_multiple(torch.ones(1, 300), torch.ones(1), 160)
    >>> wavs.shape, lens
    (torch.Size([1, 320]), tensor([0.9375]))
    """
    n_samples = wavs.shape[1]
    wavs = torch.nn.functional.pad(wavs, (0, -n_samples % multiple))
    return wavs, (lens.double() * n_samples).round().div(wavs.shape[1]).to(lens.dtype)
