"""Averages of a model's weights over its training."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


class RecentAverage(AveragedModel):
    """Power-function average of a model's weights and of its batch norms' statistics
    (Karras et al., CVPR 2024, section 3.1).

    The weights after step s count s^p - (s - 1)^p: the averaging window grows with the
    training, so one setting suits a hundred steps and a million. The average varies
    less from epoch to epoch than the weights, which a high learning rate scatters.

    Arguments
    ---------
    model : torch.nn.Module
        The model in training; it is copied, and `update_parameters(model)` has to
        follow each training step.
    age : float
        Mean age of the averaged weights, as a share of the training so far, from 0 (the
        latest weights alone) to 0.5 (all steps equally); 1 / (p + 1).

    Raises
    ------
    ValueError
        `age` is not in [0, 0.5].

    Example
    -------
    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = RecentAverage(model, age=0.5)
    >>> for step in (1.0, 2.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, step)
    ...     average.update_parameters(model)
    >>> average(torch.ones(1)).item()
    3.0
    """

    def __init__(self, model: nn.Module, age: float):
        if not 0 <= age <= 0.5:
            raise ValueError(f"RecentAverage: age {age} does not lie in [0, 0.5]")
        super().__init__(model, multi_avg_fn=self._move, use_buffers=True)
        self.age = age
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def restore_buffers(self, model: nn.Module) -> None:
        """Resets a model's batch norms to the averages of their statistics, which a
        batch that is not finite would otherwise spoil for good."""
        for buffer, kept in zip(model.buffers(), self.module.buffers(), strict=True):
            buffer.copy_(kept)

    @torch.no_grad()
    def _move(self, averaged, latest, n_averaged):
        weight = 1.0
        if self.age > 0:
            n = n_averaged.item()
            weight -= (n / (n + 1)) ** (1 / self.age - 1)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, latest, weight)
        else:  # how many batches a norm has seen
            torch._foreach_copy_(averaged, latest)
