"""What is told and what is left out where recordings have no embedding."""

import numpy as np
import pytest
import torch

from local_modules.errors import RunError
from local_modules.training.validation import verify
from local_modules.trials import TrialList

NAMES = [f"{speaker}{number}" for speaker in "abcde" for number in (1, 2)]


@pytest.fixture
def trials():
    """Each pair of the ten recordings: more trials than recordings."""
    pairs = [(a, b) for i, a in enumerate(NAMES) for b in NAMES[:i]]
    labels = np.array([a[0] == b[0] for a, b in pairs])
    return TrialList(labels, [a for a, _ in pairs], [b for _, b in pairs])


@pytest.fixture
def embeddings():
    """Without two of them."""
    axes = torch.eye(5)
    return {name: axes["abcde".index(name[0])] for name in NAMES[2:]}


def test_a_share_of_the_recordings_may_be_lost(trials, embeddings, caplog):
    rates, target, nontarget = verify("valid", embeddings, trials, max_bad_share=0.2)
    assert (rates["eer"], rates["n_target"]) == (0.0, 4)
    assert target.tolist() == [1.0] * 4 and nontarget.tolist() == [0.0] * 24
    assert "valid: 2 of 10 recordings can't be decoded, the first is a" in caplog.text


def test_and_no_more(trials, embeddings):
    with pytest.raises(RunError, match=r"2 of 10 .* over max_bad_share 19\.00%"):
        verify("valid", embeddings, trials, max_bad_share=0.19)


def test_an_embedding_that_is_not_finite_is_named(trials, embeddings):
    embeddings["c2"] = torch.full((5,), torch.nan)
    told = "test: 1 of 8 embeddings are not finite, the first is that of c2: repair"
    with pytest.raises(RunError, match=told):
        verify("test", embeddings, trials, max_bad_share=0.2)


def test_of_a_debug_run_most_are_lost_on_purpose(trials, embeddings):
    assert verify("valid", embeddings, trials, 0.0, is_debug=True)[0]["n_target"] == 4


def test_nothing_is_left_of_one_kind(trials, embeddings):
    few = {name: embeddings[name] for name in NAMES[2:5]}
    few.pop("b2")
    with pytest.raises(RunError, match="test: no target or no non-target trials"):
        verify("test", few, trials, max_bad_share=1.0)
