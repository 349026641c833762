"""Dropout: how often, how large, and that nothing else depends on it."""

import pytest
import torch

from local_modules.dropout import Dropout

N = 1_000_003  # no multiple of the elements to a number


@pytest.mark.parametrize("p", [0.001, 0.04, 0.1, 0.5, 0.97])
def test_so_many_are_dropped_and_the_mean_stays(p):
    torch.manual_seed(1)
    x = torch.ones(N)
    found = Dropout(p)(x)
    dropped = (found == 0).double()
    deviation = (p * (1 - p) / N) ** 0.5
    assert abs(dropped.mean().item() - p) < 5 * deviation + 2**-16
    # As torch scales them.
    torch.testing.assert_close(found.max().item(), 1 / (1 - p), rtol=1e-3, atol=0)
    assert len(found.unique()) == 2
    # The elements of one number know nothing of each other, nor those of the next.
    for lag in (1, 2, 3, 4, 5):
        both = (dropped[lag:] * dropped[:-lag]).mean().item()
        assert abs(both - p * p) < 6 * (p * p / N) ** 0.5 + 1e-5


def test_the_gradient_goes_where_the_value_went():
    torch.manual_seed(2)
    x = torch.randn(3, 5, 7, requires_grad=True)
    found = Dropout(0.3)(x)
    found.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), found.detach())
    assert set(x.grad.unique().tolist()) == {0.0, x.grad.max().item()}


def test_another_mask_each_time_and_the_same_from_the_same_seed():
    layer, x = Dropout(0.5), torch.ones(999)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first) and torch.equal(layer(x), second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_and_shapes(dtype):
    for shape in ((), (1,), (5,), (2, 0), (3, 2, 1)):
        found = Dropout(0.5)(torch.ones(shape, dtype=dtype))
        assert found.shape == shape and found.dtype == dtype


def test_in_use_and_at_the_ends_it_is_torchs():
    x = torch.randn(100)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(100))
    with pytest.raises(ValueError, match="probability"):
        Dropout(1.5)
