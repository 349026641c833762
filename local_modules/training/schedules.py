"""Schedules as functions of the progress of training, from 0 to 1.

They hold no state: the caller measures the progress as a share of its budget of steps
or minutes, which fits them to any budget, and keeps it across restarts.
"""

import math


class WarmupCosine:
    """Linear warm-up to the peak learning rate, then half a cosine down.

    Arguments
    ---------
    lr : float
        Peak learning rate.
    warmup_share : float
        Share of the training that is warm-up; 0 for plain cosine annealing.

    Raises
    ------
    ValueError
        `warmup_share` is not in [0, 1).

    Example
    -------
    >>> schedule = WarmupCosine(lr=1.0, warmup_share=0.1)
    >>> [round(schedule(progress), 3) for progress in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, lr: float, warmup_share: float = 0.1):
        if not 0 <= warmup_share < 1:
            raise ValueError(
                f"WarmupCosine: warmup_share {warmup_share} does not lie in [0, 1)"
            )
        self.lr = lr
        self.warmup_share = warmup_share

    def __call__(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1]."""
        if progress < self.warmup_share:
            return self.lr * progress / self.warmup_share
        angle = math.pi * (progress - self.warmup_share) / (1 - self.warmup_share)
        return self.lr * (1 + math.cos(angle)) / 2


class MarginSchedule:
    """Share of the margin: zero, a linear ramp, then all of it.

    Arguments
    ---------
    ramp_start : float
        Progress up to which there is no margin.
    ramp_end : float
        Progress from which the margin is full; equal to `ramp_start` for a step.

    Example
    -------
    >>> schedule = MarginSchedule(ramp_start=0.2, ramp_end=0.4)
    >>> [round(schedule(progress), 2) for progress in (0.1, 0.3, 0.4, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """

    def __init__(self, ramp_start: float = 0.0, ramp_end: float = 0.0):
        if not 0 <= ramp_start <= ramp_end <= 1:
            raise ValueError(
                f"MarginSchedule: ramp from {ramp_start} to {ramp_end} does not lie "
                "in [0, 1]"
            )
        self.ramp_start = ramp_start
        self.ramp_end = ramp_end

    def __call__(self, progress: float) -> float:
        """The share of the margin at `progress` in [0, 1]."""
        if progress >= self.ramp_end:
            return 1.0
        ramp = (progress - self.ramp_start) / (self.ramp_end - self.ramp_start or 1.0)
        return max(0.0, ramp)
