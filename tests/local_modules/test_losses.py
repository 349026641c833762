"""Margin losses, against values worked by hand and against SpeechBrain's."""

import math

import pytest
import torch
from speechbrain.nnet import losses as speechbrain_losses

from local_modules.losses import (
    AdditiveAngularMargin,
    AdditiveMarginSoftmax,
    CosineSoftmax,
)

LOSSES = [CosineSoftmax, AdditiveMarginSoftmax, AdditiveAngularMargin]
MARGINS = [0.05, 0.2, 0.5, 1.0]


def cross_entropy(scale, target, *others):
    """-log softmax of the first of some logits, in plain Python."""
    return math.log(1 + sum(math.exp(scale * (other - target)) for other in others))


def angle_batch(n=2001, start=0.0, end=math.pi):
    """Cosines to three speakers: to the right one, the first, over a grid of angles."""
    angles = torch.linspace(start, end, n, dtype=torch.float64)
    others = torch.tensor([[0.3, -0.1]], dtype=torch.float64).expand(n, 2)
    cosines = torch.cat([angles.cos().unsqueeze(1), others], dim=1)
    return cosines.float().unsqueeze(1), torch.zeros(n, 1, dtype=torch.long)


def each_loss(loss, cosines, targets, **kwargs):
    """The loss of each utterance."""
    return torch.stack(
        [
            loss(cosine, target, **kwargs)
            for cosine, target in zip(cosines, targets, strict=True)
        ]
    )


@pytest.mark.parametrize(
    "loss_class, target_logit",
    [
        (CosineSoftmax, math.cos(1.0)),
        (AdditiveMarginSoftmax, math.cos(1.0) - 0.2),
        (AdditiveAngularMargin, math.cos(1.2)),
    ],
)
def test_value_by_hand(loss_class, target_logit):
    loss = loss_class(angular_scale=10.0, angular_margin=0.2)
    cosines = torch.tensor([[0.4, math.cos(1.0), -0.5]])
    expected = cross_entropy(10.0, target_logit, 0.4, -0.5)
    assert loss(cosines, torch.tensor([1])).item() == pytest.approx(expected, rel=1e-5)


def test_angular_margin_past_the_turning_point_by_hand():
    margin, angle = 0.5, math.pi - 0.2
    loss = AdditiveAngularMargin(angular_scale=4.0, angular_margin=margin)
    cosines = torch.tensor([[math.cos(angle), 0.0]])
    logit = math.cos(angle) - margin * math.sin(margin)
    expected = cross_entropy(4.0, logit, 0.0)
    assert loss(cosines, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-5)


def test_batch_is_the_mean_and_takes_both_shapes():
    loss = AdditiveAngularMargin(angular_margin=0.3)
    cosines, targets = (
        torch.rand(5, 1, 4) * 2 - 1,
        torch.tensor([[0], [3], [1], [1], [2]]),
    )
    expected = each_loss(loss, cosines, targets).mean()
    torch.testing.assert_close(loss(cosines, targets), expected)
    torch.testing.assert_close(loss(cosines.squeeze(1), targets.squeeze(1)), expected)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize(
    "loss_class, reference_class",
    [
        (AdditiveMarginSoftmax, speechbrain_losses.AngularMargin),
        (AdditiveAngularMargin, speechbrain_losses.AdditiveAngularMargin),
    ],
)
def test_agrees_with_speechbrain_at_every_angle(loss_class, reference_class, margin):
    cosines, targets = angle_batch(301)
    loss = loss_class(angular_scale=30.0, angular_margin=margin)
    reference = speechbrain_losses.LogSoftmaxWrapper(
        reference_class(margin=margin, scale=30.0)
    )
    # SpeechBrain stays 1e-7 off cosines of 1 and -1; that is some 5e-4 of a sine.
    torch.testing.assert_close(
        each_loss(loss, cosines, targets),
        each_loss(reference, cosines.unsqueeze(1), targets.unsqueeze(1)),
        atol=30.0 * 5e-4,
        rtol=1e-5,
    )
    inner = slice(2, -2)
    torch.testing.assert_close(
        each_loss(loss, cosines[inner], targets[inner]),
        each_loss(reference, cosines[inner].unsqueeze(1), targets[inner].unsqueeze(1)),
        atol=1e-4,
        rtol=1e-5,
    )


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("loss_class", LOSSES)
def test_target_logit_falls_with_the_angle(loss_class, margin):
    cosines, _ = angle_batch(2001)
    logits = loss_class().target_logit(cosines[:, 0, 0], margin)
    assert (logits.diff() <= 0).all()
    assert (logits[::50].diff() < 0).all()


@pytest.mark.parametrize("margin", MARGINS)
def test_target_logit_keeps_falling_across_the_turning_point(margin):
    turn = math.pi - margin
    cosines, _ = angle_batch(201, turn - 1e-3, turn + 1e-3)
    logits = AdditiveAngularMargin().target_logit(cosines[:, 0, 0], margin)
    rounding = 1e-6
    assert (logits.diff() <= rounding).all()
    assert logits[0] > -1.0 - rounding > logits[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("margin_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "cosine",
    [1.0, -1.0, 1 - 1e-8, -1 + 1e-8, 1 - 6e-8, -1 + 6e-8, 1 - 1e-6, 1.0078125, -1.01],
)
@pytest.mark.parametrize("loss_class", LOSSES)
def test_gradient_is_finite_at_the_ends(loss_class, cosine, margin_share, dtype):
    cosines = torch.tensor([[cosine, 0.5, 1.0], [cosine, cosine, cosine]], dtype=dtype)
    cosines.requires_grad_()
    loss = loss_class(angular_scale=30.0, angular_margin=0.3)
    value = loss(cosines, torch.tensor([0, 2]), margin_share)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert cosines.grad.dtype == dtype
    assert cosines.grad.isfinite().all()


@pytest.mark.parametrize("loss_class", LOSSES)
def test_cosines_rounded_past_the_ends_count_as_the_ends(loss_class):
    loss, right = loss_class(angular_margin=0.3), torch.tensor([0])
    for beyond, end in ((1.0078125, 1.0), (-1.0078125, -1.0)):
        cosines = torch.tensor([[beyond, 0.9]], dtype=torch.bfloat16)
        assert loss(cosines, right) == loss(torch.tensor([[end, 0.8984375]]), right)


def test_gradient_agrees_with_finite_differences():
    loss = AdditiveAngularMargin(angular_scale=5.0, angular_margin=0.3)
    for angle in (0.4, 1.5, 2.6, 3.0):
        cosines = torch.tensor([[math.cos(angle), 0.2]], requires_grad=True)
        loss(cosines, torch.tensor([0])).backward()

        def value(cosine, angle=angle):
            shifted = math.acos(cosine) + 0.3
            past = shifted > math.pi
            logit = cosine - 0.3 * math.sin(0.3) if past else math.cos(shifted)
            return cross_entropy(5.0, logit, 0.2)

        step = 1e-6
        middle = math.cos(angle)
        slope = (value(middle + step) - value(middle - step)) / (2 * step)
        assert cosines.grad[0, 0].item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_margin_share(loss_class):
    cosines, targets = angle_batch(101)
    full = loss_class(angular_margin=0.4)
    torch.testing.assert_close(
        full(cosines, targets, margin_share=0.5),
        loss_class(angular_margin=0.2)(cosines, targets),
    )
    # The floor of the sine does not matter where the margin is zero.
    torch.testing.assert_close(
        full(cosines, targets, margin_share=0.0),
        CosineSoftmax()(cosines, targets),
        rtol=0,
        atol=0,
    )
    assert full(cosines, targets) >= full(cosines, targets, margin_share=0.5)


@pytest.mark.parametrize("loss_class", LOSSES)
def test_order_of_the_speakers_does_not_matter(loss_class):
    torch.manual_seed(0)
    cosines, targets = torch.rand(6, 1, 8) * 2 - 1, torch.randint(8, (6, 1))
    order = torch.randperm(8)
    loss = loss_class(angular_margin=0.2)
    moved = order.argsort()[targets]
    torch.testing.assert_close(loss(cosines[..., order], moved), loss(cosines, targets))


def test_input_is_not_changed():
    cosines = torch.tensor([[1.5, 0.0]])
    AdditiveAngularMargin(angular_margin=0.2)(cosines, torch.tensor([0]))
    assert cosines.tolist() == [[1.5, 0.0]]
