"""Mean normalisation, against NumPy on the unpadded part."""

import numpy as np
import torch

from local_modules.normalization import SentenceMeanNorm

COUNTS = [1, 7, 29, 40]


def padded_batch(garbage=0.0):
    rng = np.random.default_rng(2)
    feats = rng.normal(-8.0, 5.0, (len(COUNTS), 40, 6)).astype(np.float32)
    for row, count in zip(feats, COUNTS, strict=True):
        row[count:] = garbage
    return torch.from_numpy(feats), torch.tensor(COUNTS) / 40


def test_against_numpy_on_the_unpadded_part():
    feats, lens = padded_batch()
    normed = SentenceMeanNorm()(feats, lens)
    for row, out, count in zip(feats.numpy(), normed.numpy(), COUNTS, strict=True):
        speech = row[:count].astype(np.float64)
        np.testing.assert_allclose(out[:count], speech - speech.mean(0), atol=1e-5)
        assert not out[count:].any()


def test_what_is_in_the_padding_does_not_matter():
    clean, lens = padded_batch()
    for garbage in (1e4, np.nan, -np.inf):
        dirty, _ = padded_batch(garbage)
        normed = SentenceMeanNorm()
        assert torch.equal(normed(dirty, lens), normed(clean, lens))


def test_padded_equals_alone():
    feats, lens = padded_batch()
    normed = SentenceMeanNorm()(feats, lens)
    for row, out, count in zip(feats, normed, COUNTS, strict=True):
        alone = SentenceMeanNorm()(row[None, :count], torch.ones(1))
        torch.testing.assert_close(out[:count], alone[0], atol=1e-5, rtol=0)


def test_input_is_not_changed():
    feats, lens = padded_batch(3.0)
    before = feats.clone()
    SentenceMeanNorm()(feats, lens)
    assert torch.equal(feats, before)
