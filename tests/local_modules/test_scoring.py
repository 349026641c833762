"""Scores, against SciPy, against loops and against what normalisation is for."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from local_modules.scoring import (
    cohort_statistics,
    enrol,
    normalise_scores,
    score_trials,
    speaker_means,
    subtract_mean,
    trial_rows,
)
from local_modules.trials import TrialList


@pytest.fixture
def embeddings():
    return torch.randn(30, 12, generator=torch.Generator().manual_seed(0))


def trials(n, n_files=30):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(n_files, (2, n), generator=generator)


def cosine_scores(embeddings, enrol, test):
    """Through `score_trials`, as if all were target trials."""
    names = [[f"{row}" for row in side.tolist()] for side in (enrol, test)]
    listed = TrialList(np.ones(len(enrol), bool), *names)
    by_name = {f"{row}": vector for row, vector in enumerate(embeddings)}
    return score_trials(by_name, listed)[0]


def test_is_scipys_cosine(embeddings):
    enrol, test = trials(200)
    scores = cosine_scores(embeddings, enrol, test)
    expected = [
        1 - cosine(embeddings[a].double(), embeddings[b].double())
        for a, b in zip(enrol, test, strict=True)
    ]
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 65535, 65536, 65537, 200000])
def test_any_number_of_trials(embeddings, n):
    enrol, test = trials(n)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    expected = (unit @ unit.T)[enrol, test]
    torch.testing.assert_close(
        cosine_scores(embeddings, enrol, test), expected, rtol=0, atol=1e-6
    )


def test_length_of_an_embedding_does_not_count(embeddings):
    enrol, test = trials(500)
    scale = torch.logspace(-4, 4, len(embeddings)).unsqueeze(1)
    torch.testing.assert_close(
        cosine_scores(scale * embeddings, enrol, test),
        cosine_scores(embeddings, enrol, test),
        rtol=0,
        atol=1e-6,
    )


def test_sides_can_be_exchanged(embeddings):
    enrol, test = trials(500)
    forth, back = (
        cosine_scores(embeddings, enrol, test),
        cosine_scores(embeddings, test, enrol),
    )
    assert torch.equal(forth, back)


def test_range_and_half_precision(embeddings):
    itself = torch.arange(30)
    scores = cosine_scores(embeddings.bfloat16(), itself, itself)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.ones(30), rtol=0, atol=1e-6)
    both = torch.cat([embeddings, -embeddings])
    scores = cosine_scores(both, itself, itself + 30)
    torch.testing.assert_close(scores, -torch.ones(30), rtol=0, atol=1e-6)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=generator), dim=-1
    )


@pytest.mark.parametrize("top_k", [None, 2, 7, 40, 1000])
@pytest.mark.parametrize("memory_bytes", [1, 4 * 40 * 3, 2**28])
def test_cohort_statistics_by_sorting(top_k, memory_bytes):
    vectors, cohort = unit(11, 6), unit(40, 6, seed=1)
    mean, std = cohort_statistics(vectors, cohort, top_k, memory_bytes)
    for row, vector in enumerate(vectors):
        scores = sorted((float(vector @ other) for other in cohort), reverse=True)
        kept = np.array(scores[: top_k or len(scores)])
        assert float(mean[row]) == pytest.approx(kept.mean(), abs=1e-6)
        assert float(std[row]) == pytest.approx(kept.std(ddof=1), abs=1e-6)


def test_a_cohort_of_one_has_no_deviation():
    with pytest.raises(ValueError, match="1 cohort scores"):
        cohort_statistics(unit(3, 4), unit(1, 4))
    with pytest.raises(ValueError, match="1 cohort scores"):
        cohort_statistics(unit(3, 4), unit(9, 4), top_k=1)


def test_normalised_scores_by_hand():
    # (0.5 - 0.1) / 0.2 = 2 and (0.5 + 0.1) / 0.1 = 6.
    score = normalise_scores(
        torch.tensor([0.5]),
        (torch.tensor([0.1]), torch.tensor([0.2])),
        (torch.tensor([-0.1]), torch.tensor([0.1])),
    )
    torch.testing.assert_close(score, torch.tensor([4.0]))


def test_normalisation_takes_down_recordings_that_are_like_everybody():
    """All voices have a part in common; recordings with more of it score high with
    every stranger, by their own side's mean at least."""
    common = torch.eye(16)[0]

    def voices(share, seed):
        return subtract_mean(unit(200, 16, seed=seed) + share * common, torch.zeros(16))

    cohort, others = voices(0.5, 2), voices(0.5, 3)
    plain, hubs = voices(0.5, 4), voices(2.0, 4)
    raw, normalised = [], []
    for vectors in (plain, hubs):
        scores = (vectors * others).sum(dim=-1)
        statistics = (
            cohort_statistics(vectors, cohort),
            cohort_statistics(others, cohort),
        )
        raw.append(scores)
        normalised.append(normalise_scores(scores, *statistics))

    def gap(scores):
        low, high = scores
        return float((high.mean() - low.mean()) / low.std())

    assert gap(raw) > 0.8
    assert gap(normalised) < 0.6 * gap(raw)


def test_sides_of_a_normalised_score_can_be_exchanged():
    scores = torch.linspace(-1, 1, 9)
    one = torch.linspace(0, 0.3, 9), torch.linspace(0.1, 0.2, 9)
    other = torch.linspace(-0.2, 0.1, 9), torch.linspace(0.3, 0.1, 9)
    assert torch.equal(
        normalise_scores(scores, one, other), normalise_scores(scores, other, one)
    )


def test_enrolment_is_the_mean_of_embeddings(embeddings):
    members = [[0], [1, 2, 3], [4, 4]]
    enrolled = enrol(embeddings, members)
    for row, rows in enumerate(members):
        normed = [embeddings[r] / embeddings[r].norm() for r in rows]
        mean = torch.stack(normed).mean(dim=0)
        torch.testing.assert_close(enrolled[row], mean / mean.norm())
    # A loud utterance counts no more than a quiet one.
    scaled = embeddings * torch.linspace(0.01, 100, len(embeddings)).unsqueeze(1)
    torch.testing.assert_close(enrol(scaled, members), enrolled)


def test_speaker_means_are_enrolments(embeddings):
    speakers = torch.arange(30) % 7
    members = [torch.where(speakers == s)[0].tolist() for s in range(7)]
    torch.testing.assert_close(
        speaker_means(embeddings, speakers), enrol(embeddings, members)
    )


def test_a_subtracted_mean_is_gone(embeddings):
    shift = torch.linspace(-3, 3, 12)
    mean = embeddings.mean(dim=0)
    torch.testing.assert_close(
        subtract_mean(embeddings + shift, mean + shift),
        subtract_mean(embeddings, mean),
        rtol=0,
        atol=1e-5,
    )
    assert subtract_mean(embeddings, mean).norm(dim=-1).allclose(torch.ones(30))


def test_trials_without_an_embedding_are_left_out_and_the_others_keep_their_labels():
    vectors = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    trials = TrialList(
        np.array([True, True, False, True]),
        ["lost", "a", "a", "b"],
        ["a", "lost", "b", "b"],
    )
    target, nontarget = score_trials(vectors, trials)
    assert (target.tolist(), nontarget.tolist()) == ([1.0], [0.0])


def test_rows_of_trials_whose_enrolment_has_an_array_of_its_own():
    trials = TrialList(np.array([True, False]), ["ann", "bob"], ["x", "y"])
    kept, rows, columns = trial_rows(["y", "x"], trials, ["bob", "eve", "ann"])
    assert kept.tolist() == [0, 1]
    assert rows.tolist() == [2, 0] and columns.tolist() == [1, 0]
