"""What ranks do together, on three processes, against one with all of the batch."""

import pytest
import torch
from speechbrain.utils.run_opts import RunOptions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from local_modules.distributed import (
    gather_on_all,
    gather_on_first,
    meet_ranks,
    on_first,
    rank_share,
    synchronise_batch_norms,
)
from local_modules.errors import InputError, RunError

N_UTTERANCES = 2  # so the third rank has none
SHARES = (4, 1, 2)  # of a batch


def of_the_first(mistake):
    """On the first rank alone; it would be wrong to be asked on another."""
    assert torch.distributed.get_rank() == 0
    if mistake:
        raise RunError(mistake)
    return {"eer": 0.25}


def failure(mistake):
    try:
        on_first(of_the_first, mistake)
    except RunError as error:
        return str(error)


def together(rank, count, folder):
    first = on_first(of_the_first, None), failure("it was too hot")
    share = rank_share(N_UTTERANCES)
    gathered = gather_on_first({f"{i}.wav": torch.full((3,), i) for i in share})
    names = gather_on_all(rank * [f"{rank}.wav"], "cpu")
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Conv1d(5, 1, 1))
    model = DistributedDataParallel(synchronise_batch_norms(layers))
    x = (torch.randn(sum(SHARES), 2, 6) + 10.0).split(SHARES)[rank]
    y = model(x).square().sum()
    # The sum over all, of which DDP takes the mean over the ranks.
    (y * count).backward()
    grads = [parameter.grad for parameter in layers.parameters()]
    return gathered, layers.state_dict(), grads, names, first


@pytest.fixture(scope="module")
def results(on_ranks):
    return on_ranks(together, len(SHARES))[0]


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        pytest.param(
            "nccl",
            "Not enough GPUs",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has GPUs"),
        ),
        ("carrier_pigeon", "carrier_pigeon"),
    ],
)
def test_ranks_without_what_they_need_are_one_line(backend, words, monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(InputError) as caught:
        meet_ranks(RunOptions(distributed_backend=backend))
    line = str(caught.value)
    assert line.startswith(f"--distributed_backend {backend}: ") and "\n" not in line
    assert words in line and "gloo" in line


def test_the_first_rank_gets_all_embeddings_once(results):
    gathered = [result[0] for result in results]
    assert {path: vector.tolist() for path, vector in gathered[0].items()} == {
        f"{i}.wav": [i, i, i] for i in range(N_UTTERANCES)
    }
    assert gathered[1:] == [{}, {}]


def test_all_ranks_have_what_the_first_does_or_fail_with_it(results):
    assert [result[4] for result in results] == 3 * [({"eer": 0.25}, "it was too hot")]


def test_all_ranks_get_all_names(results):
    assert [result[3] for result in results] == 3 * [["1.wav", "2.wav", "2.wav"]]


def test_batch_norm_over_ranks_is_that_of_the_whole_batch(results):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv1d(2, 5, 3), nn.BatchNorm1d(5), nn.Conv1d(5, 1, 1))
    layers(torch.randn(sum(SHARES), 2, 6) + 10.0).square().sum().backward()
    for _, state, grads, *_ in results:
        torch.testing.assert_close(state, layers.state_dict())
        for grad, parameter in zip(grads, layers.parameters(), strict=True):
            # Before a batch norm, a bias has no gradient but by rounding.
            torch.testing.assert_close(grad, parameter.grad, atol=1e-3, rtol=1e-3)


def test_in_evaluation_a_synchronised_batch_norm_is_the_usual_one():
    usual = nn.BatchNorm1d(3).eval()
    usual.running_mean += 1.0
    synchronised = synchronise_batch_norms(nn.Sequential(nn.BatchNorm1d(3))).eval()
    synchronised[0].load_state_dict(usual.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(synchronised(x), usual(x))


def test_alone_there_is_one_share():
    assert list(rank_share(4)) == [0, 1, 2, 3]
