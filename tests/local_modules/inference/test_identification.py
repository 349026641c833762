"""Whose voice it is, against Bayes' rule worked by hand."""

from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from local_modules.inference import identification
from local_modules.inference.identification import Identifier
from local_modules.inference.nearest import NearestVectors
from local_modules.inference.speech import Quality
from local_modules.inference.verification import Verdict, Verifier, Voice
from local_modules.inference.voices import VoiceStore

QUALITY = Quality(2.0, 2.0, -20.0, 0.0)


@pytest.fixture(scope="module")
def verifier(trained_run):
    return Verifier(trained_run / "model")


def voice(rng, centre, spread=0.1):
    noise = spread * rng.standard_normal(len(centre))
    return Voice((centre + noise).astype(np.float32), QUALITY)


@pytest.fixture
def people(tmp_path, verifier):
    """Twenty voices, of one recording or two, in a store."""
    rng = np.random.default_rng(0)
    dim = len(verifier.backend.mean)
    centres = {f"p{number:02}": rng.standard_normal(dim) for number in range(20)}
    store = VoiceStore(tmp_path / "voices.db", "f", "m")
    for number, (name, centre) in enumerate(centres.items()):
        store.add(name, [voice(rng, centre) for _ in range(1 + number % 2)])
    yield store, centres
    store.close()


@pytest.mark.parametrize("exact_up_to", [0, 100])
def test_it_is_the_nearest_by_brute_force(verifier, people, monkeypatch, exact_up_to):
    # Twenty are few; searched as many are, the answer has to be the same.
    search = partial(NearestVectors, exact_up_to=exact_up_to)
    monkeypatch.setattr(identification, "NearestVectors", search)
    store, centres = people
    rng = np.random.default_rng(1)
    for name in ("p03", "p10"):
        heard = voice(rng, centres[name])
        answer = Identifier(verifier).identify(store, heard, top=20)
        ratios = {
            person: verifier.compare(store.voices([person]), heard)[0].llr
            for person in centres
        }
        assert answer.candidates[0].name == name == max(ratios, key=ratios.get)
        weights = {n: 0.5 / 20 * np.exp(ratio) for n, ratio in ratios.items()}
        whole = 0.5 + sum(weights.values())
        assert answer.nobody == pytest.approx(0.5 / whole, rel=1e-3, abs=1e-9)
        for candidate in answer.candidates:
            assert candidate.probability == pytest.approx(
                weights[candidate.name] / whole, rel=1e-3, abs=1e-9
            )
        cut = Identifier(verifier).identify(store, heard, top=3)
        assert [c.name for c in cut.candidates][0] == name and len(cut.candidates) == 3


def test_the_prior_decides_where_the_voice_does_not(verifier, people):
    store, centres = people
    heard = voice(np.random.default_rng(2), centres["p05"], spread=1.0)
    shares = [
        Identifier(verifier).identify(store, heard, prior=p).nobody
        for p in (0.01, 0.5, 0.99)
    ]
    assert shares == sorted(shares, reverse=True)
    assert Identifier(verifier).identify(store, heard, prior=1e-9).name is None


def test_how_many_are_named_changes_no_probability(verifier, people):
    store, centres = people
    enrolled = store.voices(["p05"]) + store.voices(["p06"])

    def between(share):
        centre = share * centres["p05"] + (1 - share) * centres["p06"]
        return voice(np.random.default_rng(4), centre, spread=0.0)

    def lead(share):
        one, other = verifier.compare(enrolled, between(share))
        return one.llr - other.llr

    heard = between(brentq(lead, 0.0, 1.0))
    few, many = (
        Identifier(verifier).identify(store, heard, top=top) for top in (1, 20)
    )
    assert many.candidates[1].probability > 1e-4  # it is of weight
    assert few.candidates == many.candidates[:1] and few.nobody == many.nobody


def test_who_is_removed_in_the_meantime_is_no_candidate(verifier, people):
    store, centres = people
    heard = voice(np.random.default_rng(5), centres["p05"])
    identifier = Identifier(verifier)
    assert identifier.identify(store, heard).name == "p05"

    class Removing(VoiceStore):
        """In which somebody is forgotten when the shortlist is made."""

        def voices(self, names):
            if "p05" in names:
                self.remove("p05")
            return super().voices(names)

    other = Removing(store.path, "f", "m")
    answer = identifier.identify(other, heard)
    other.close()
    assert "p05" not in [candidate.name for candidate in answer.candidates]
    assert len(answer.candidates) == 5


def test_who_is_not_weighed_has_a_share_of_the_prior_too(verifier, people, monkeypatch):
    """Of more voices than are weighed, each is as probable beforehand as the others."""
    monkeypatch.setattr(identification, "N_WEIGHED", 3)
    store, centres = people
    heard = voice(np.random.default_rng(5), centres["p05"])
    answer = Identifier(verifier).identify(store, heard, top=3)
    assert answer.name == "p05" and len(answer.candidates) == 3
    shares = [candidate.probability for candidate in answer.candidates]
    assert sum(shares) + answer.nobody == pytest.approx(1)
    for candidate, share in zip(answer.candidates, shares, strict=True):
        odds = np.exp(candidate.llr) * (0.5 / 20) / 0.5
        assert share == pytest.approx(odds * answer.nobody)


def test_without_a_calibration_the_threshold_on_the_cosine_decides(verifier, tmp_path):
    """Also where another one is nearer after the mean is taken out."""
    axes = np.eye(len(verifier.backend.mean), dtype=np.float32)
    plain = copy(verifier)
    mean = torch.from_numpy(2 * axes[0])
    plain.backend = replace(verifier.backend, mean=mean, calibration=None)
    plain.threshold = 0.5
    store = VoiceStore(tmp_path / "voices.db", "f", "m")
    for name, axis in (("ann", 0), ("bob", 1)):
        store.add(name, [Voice(axes[axis], QUALITY)])
    for vector, name in (
        (0.9 * axes[0] + 0.3 * axes[1], "ann"),
        (0.3 * axes[0] + 0.9 * axes[1], "bob"),
        (axes[2], None),
    ):
        answer = Identifier(plain).identify(store, Voice(vector, QUALITY))
        assert (answer.name, answer.nobody) == (name, None)
        cosines = vector[:2] / np.linalg.norm(vector)
        found = {candidate.name: candidate.score for candidate in answer.candidates}
        assert found == pytest.approx({"ann": cosines[0], "bob": cosines[1]}, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert all(c.llr is c.probability is None for c in answer.candidates)
    store.close()


def test_nobody_is_enrolled(verifier, tmp_path):
    store = VoiceStore(tmp_path / "voices.db", "f", "m")
    heard = Voice(np.ones(len(verifier.backend.mean), np.float32), QUALITY)
    answer = Identifier(verifier).identify(store, heard)
    assert (answer.name, answer.nobody, answer.candidates) == (None, 1.0, [])


def test_who_comes_and_goes_is_noticed(verifier, people, tmp_path):
    store, centres = people
    rng = np.random.default_rng(3)
    new = rng.standard_normal(len(verifier.backend.mean))
    heard, identifier = voice(rng, new), Identifier(verifier)

    def first(store):
        return identifier.identify(store, heard).candidates[0].name

    assert first(store) != "new"
    other = VoiceStore(tmp_path / "voices.db", "f", "m")  # as another process has it
    other.add("new", [voice(rng, new)])
    assert first(store) == "new"
    other.remove("new")
    assert first(store) != "new"
    other.close()
    another = VoiceStore(tmp_path / "others.db", "f", "m")
    another.add("new", [voice(rng, new)])
    assert first(another) == "new"
    another.close()


def test_of_two_alike_the_likelier_is_named(verifier, people, monkeypatch):
    """Though neither is likelier than not."""
    store, centres = people

    def compare(recordings, tested, prior=0.5):
        return [Verdict(0.5, 5.0 if n < 2 else -9.0, 0.9, True) for n in range(20)]

    monkeypatch.setattr(verifier, "compare", compare)
    heard = voice(np.random.default_rng(3), centres["p05"])
    answer = Identifier(verifier).identify(store, heard)
    assert answer.candidates[0].probability < 0.5
    assert answer.name == answer.candidates[0].name
