"""Averaged weights, against the closed form of their recursion."""

import pytest
import torch
from torch import nn

from local_modules.training.averaging import RecentAverage


def steps_of(model, n_steps):
    """Random weights and statistics, as if each were a step of a training."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(n_steps):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                value = torch.rand(tensor.shape, generator=generator)
                tensor.data.copy_(value)
            else:
                tensor += 1
        yield {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("age", [0.02, 0.1, 0.3, 0.5])
def test_a_step_weighs_the_difference_of_powers(age):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = RecentAverage(model, age)
    seen = []
    for state in steps_of(model, 25):
        average.update_parameters(model)
        seen.append(state)
    power = 1 / age - 1
    # The products of the recursion telescope to this.
    ends = [(step / 25) ** power for step in range(26)]
    shares = [after - before for before, after in zip(ends[:-1], ends[1:], strict=True)]
    for name, value in average.module.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert value == 25
        else:
            expected = sum(
                share * state[name] for share, state in zip(shares, seen, strict=True)
            )
            assert torch.allclose(value, expected, atol=1e-5)


def test_the_age_is_the_mean_age():
    model = nn.Linear(1, 1, bias=False)
    average = RecentAverage(model.double(), age=0.1)
    for step in range(1, 2001):
        nn.init.constant_(model.weight, step / 2000)
        average.update_parameters(model)
    assert 1 - average.module.weight.item() == pytest.approx(0.1, abs=1e-3)


def test_without_age_it_is_the_model():
    model = nn.BatchNorm1d(4)
    average = RecentAverage(model, age=0)
    for state in steps_of(model, 3):
        average.update_parameters(model)
        for name, value in average.module.state_dict().items():
            assert torch.equal(value, state[name])


def test_what_it_starts_from_is_forgotten():
    """A trained model is loaded after the average was made."""
    model = nn.Linear(2, 2)
    average = RecentAverage(model, age=0.4)
    nn.init.constant_(model.weight, 7.0)
    average.update_parameters(model)
    assert (average.module.weight == 7.0).all()


def test_it_is_for_evaluation():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    average = RecentAverage(model, age=0.1)
    assert not average.module.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_saved_and_loaded_it_goes_on_as_if_never_stopped():
    model = nn.BatchNorm1d(4)
    whole, part = RecentAverage(model, 0.2), RecentAverage(model, 0.2)
    for step, _ in enumerate(steps_of(model, 9)):
        if step == 5:
            after = RecentAverage(model, 0.2)
            after.load_state_dict(part.state_dict())
            part = after
        whole.update_parameters(model)
        part.update_parameters(model)
    for name, value in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], value)


@pytest.mark.parametrize("age", [-0.1, 0.6])
def test_an_age_that_is_none_is_refused(age):
    with pytest.raises(ValueError, match=rf"age {age} does not lie in \[0, 0.5\]"):
        RecentAverage(nn.Linear(1, 1), age)


def test_batch_norms_get_back_what_was_finite():
    model = nn.BatchNorm1d(2)
    average = RecentAverage(model, age=0.1)
    model(torch.randn(8, 2))
    average.update_parameters(model)
    kept = average.module.running_mean.clone()
    model(torch.full((8, 2), torch.nan))
    average.restore_buffers(model)
    assert torch.equal(model.running_mean, kept) and kept.isfinite().all()
    assert torch.equal(average.module.running_mean, kept)
