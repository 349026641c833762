"""Classification losses on cosines between embeddings and speakers' weights.

All are a softmax cross-entropy on `angular_scale` times the cosines; they differ in how
`angular_margin` lowers the cosine of the right speaker. Cosines come from a classifier
with normalised weights, such as SpeechBrain's `lobes.models.ECAPA_TDNN.Classifier`.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class CosineSoftmax(nn.Module):
    """Softmax cross-entropy on scaled cosines; the base of the margin losses.

    Arguments
    ---------
    angular_scale : float
        Factor s of the cosines.
    angular_margin : float
        Margin m; the plain softmax has none and ignores it, so that the loss can be
        changed in one line of YAML.

    Example
    -------
    >>> cosines = torch.tensor([[[0.5, 0.5]]])
    >>> CosineSoftmax(angular_scale=30.0)(cosines, torch.tensor([[0]]))
    tensor(0.6931)
    """

    def __init__(self, angular_scale: float = 30.0, angular_margin: float = 0.0):
        super().__init__()
        self.angular_scale = angular_scale
        self.angular_margin = angular_margin

    def target_logit(self, cosine: torch.Tensor, margin: float) -> torch.Tensor:
        """The cosine of the right speaker, [batch], as the softmax sees it."""
        return cosine

    def forward(
        self, cosines: torch.Tensor, targets: torch.Tensor, margin_share: float = 1.0
    ) -> torch.Tensor:
        """Computes the mean loss of a batch, in float32 whatever the precision.

        Arguments
        ---------
        cosines : torch.Tensor
            Cosines to all speakers, [batch, 1, speakers] or [batch, speakers].
        targets : torch.Tensor
            Indices of the right speakers, [batch, 1] or [batch].
        margin_share : float
            Share of the margin to apply, from 0 to 1, for a margin schedule.

        Returns
        -------
        torch.Tensor
            Scalar.
        """
        cosines = cosines.float().flatten(0, -2)
        targets = targets.flatten()
        # Products of rounded unit vectors, above all in bf16, can exceed 1.
        cosine = cosines.gather(1, targets.unsqueeze(1)).clamp(-1.0, 1.0)
        logit = self.target_logit(cosine, margin_share * self.angular_margin)
        cosines = cosines.scatter(1, targets.unsqueeze(1), logit)
        return F.cross_entropy(self.angular_scale * cosines, targets)


class AdditiveMarginSoftmax(CosineSoftmax):
    """AM-softmax: the margin is taken off the cosine, cos(t) - m (Wang et al., 2018,
    "Additive margin softmax for face verification", eq. 5)."""

    def target_logit(self, cosine: torch.Tensor, margin: float) -> torch.Tensor:
        """cos(t) - m."""
        return cosine - margin


class AdditiveAngularMargin(CosineSoftmax):
    """AAM-softmax: the margin is added to the angle, cos(t + m) (Deng et al., CVPR
    2019, "ArcFace", eq. 3).

    Past t = pi - m, where cos(t + m) would rise again, it continues as
    cos(t) - m sin(m), which keeps falling.
    """

    def target_logit(self, cosine: torch.Tensor, margin: float) -> torch.Tensor:
        """cos(t + m), or its decreasing continuation."""
        # The floor keeps the gradient of the square root finite at cos(t) = 1 and -1.
        sine = (1.0 - cosine.square()).clamp(min=1e-7).sqrt()
        rotated = cosine * math.cos(margin) - sine * math.sin(margin)
        continued = cosine - margin * math.sin(margin)
        return torch.where(cosine > -math.cos(margin), rotated, continued)
