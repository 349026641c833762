"""Schedules, against values worked by hand."""

import math
from itertools import pairwise

import pytest

from local_modules.training.schedules import MarginSchedule, WarmupCosine

GRID = [step / 1000 for step in range(1001)]


@pytest.mark.parametrize(
    "progress, expected",
    [
        (0.0, 0.0),
        (0.1, 0.2),
        (0.2, 0.4),
        (0.4, 0.4 * (1 + math.sqrt(0.5)) / 2),
        (0.6, 0.4 / 2),
        (1.0, 0.0),
    ],
)
def test_warmup_cosine_by_hand(progress, expected):
    schedule = WarmupCosine(lr=0.4, warmup_share=0.2)
    assert schedule(progress) == pytest.approx(expected)


@pytest.mark.parametrize("warmup_share", [-0.1, 1.0, 2])
def test_training_is_not_all_warm_up(warmup_share):
    with pytest.raises(ValueError, match=f"warmup_share {warmup_share} does not lie"):
        WarmupCosine(0.1, warmup_share)


@pytest.mark.parametrize("warmup_share", [0.0, 0.05, 0.3, 0.9])
def test_warmup_cosine_rises_then_falls_without_a_jump(warmup_share):
    schedule = WarmupCosine(2.0, warmup_share)
    rates = [schedule(progress) for progress in GRID]
    peak = round(1000 * warmup_share)
    assert rates[peak] == pytest.approx(2.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)
    steepest = max(2.0 / peak if peak else 0.0, math.pi / (1000 - peak))
    jumps = [abs(b - a) for a, b in pairwise(rates)]
    assert max(jumps) <= 1.001 * steepest


@pytest.mark.parametrize(
    "progress, share", [(0.0, 0.0), (0.2, 0.0), (0.25, 0.25), (0.4, 1.0), (1.0, 1.0)]
)
def test_margin_by_hand(progress, share):
    assert MarginSchedule(0.2, 0.4)(progress) == pytest.approx(share)


def test_margin_never_falls_nor_jumps():
    schedule = MarginSchedule(0.1, 0.6)
    shares = [schedule(progress) for progress in GRID]
    assert shares == sorted(shares)
    jumps = [b - a for a, b in pairwise(shares)]
    assert max(jumps) == pytest.approx(1 / 500)


def test_margin_is_full_from_the_start_unless_told_otherwise():
    assert [MarginSchedule()(progress) for progress in (0.0, 0.5, 1.0)] == [1, 1, 1]


def test_margin_with_a_step():
    schedule = MarginSchedule(0.3, 0.3)
    assert [schedule(progress) for progress in (0.0, 0.29, 0.3, 0.31)] == [0, 0, 1, 1]


@pytest.mark.parametrize("start, end", [(0.5, 0.4), (-0.1, 0.4), (0.2, 1.1)])
def test_margin_refuses_a_ramp_outside_the_training(start, end):
    message = rf"MarginSchedule: ramp from {start} to {end} does not lie in \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        MarginSchedule(start, end)
