"""What the page says, against what the model says."""

import base64
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from local_modules.inference.verification import Verdict
from local_modules.inference.voices import VoiceStore
from local_modules.page import answers as module
from local_modules.page.answers import Answers

EVIL = "<img src=x onerror=alert(1)>"


def images(html):
    """The pictures in a page, decoded."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', html)
    return [base64.b64decode(text).decode() for text in found]


def without_backend(answers, **changes):
    """The same with another backend."""
    changed = answers.verifier.backend and replace(answers.verifier.backend, **changes)
    verifier = object.__new__(type(answers.verifier))
    verifier.__dict__ |= {**vars(answers.verifier), "backend": changed}
    return Answers(verifier, answers.open_store)


def test_a_comparison_says_what_the_verifier_says(answers, words, verifier):
    one, other = words["test0"][:2]
    html, voice = answers.compare(one, other)
    verdict = verifier.verify(one, other)
    assert f"log-likelihood ratio {verdict.llr:.2f}" in html
    sure = max(verdict.probability, 1 - verdict.probability)
    assert f"{100 * sure:.1f} % sure" in html
    assert ("same person</h2>" in html) == verdict.same
    np.testing.assert_allclose(voice.vector, verifier.listen(other).vector, atol=1e-4)
    scale, *recordings = images(html)
    assert "two people" in scale and len(recordings) == 2
    assert all("kHz" in picture for picture in recordings)


def test_the_same_recording_twice_is_the_same_person(answers, words):
    html, _ = answers.compare(words["test1"][0], words["test1"][0])
    assert "he same person</h2>" in html and "100.0 %" not in html


def test_a_prior_moves_the_verdict(answers, words, verifier):
    one, other = words["test0"][:2]
    html, _ = Answers(verifier, answers.open_store, prior=1e-9).compare(one, other)
    assert "Two people</h2>" in html


def test_a_calibration_from_before_has_a_scale_without_densities(answers, words):
    old = replace(answers.verifier.backend.calibration, densities=None)
    html, _ = without_backend(answers, calibration=old).compare(*words["test0"][:2])
    scale = images(html)[0]
    assert "log-likelihood ratio" in html and "two people" not in scale


def test_without_a_calibration_the_cosine_is_shown(answers, words, verifier):
    plain = without_backend(answers, calibration=None)
    html, _ = plain.compare(*words["test0"][:2])
    assert "no calibration" in html and "% sure" not in html
    assert "Cosine" in images(html)[0]
    plain.enrol(words["test0"][0], "ann", True)
    html, _ = plain.identify(words["test0"][0])
    assert "<h2>ann</h2>" in html and "cosine 1.00" in html


@pytest.mark.parametrize("name", ["quiet", "short", "noise", "long", "broken"])
def test_a_mistake_is_told_and_nothing_is_heard(name, answers, bad, words):
    for html, voice in (
        answers.compare(words["test0"][0], bad[name]),
        answers.identify(bad[name]),
        answers.enrol(bad[name], "ann", True),
    ):
        assert 'role="alert"' in html and voice is None
        assert bad[name] not in unescape(html)
    assert answers.names() == []
    assert "Second recording: " in answers.compare(words["test0"][0], bad[name])[0]


def test_clipping_is_told_beside_the_answer(answers, bad):
    html, voice = answers.compare(bad["clipped"], bad["clipped"])
    assert "First recording: is clipped" in html and voice is not None


def test_enrol_identify_remove(answers, words, monkeypatch):
    assert "Nobody is enrolled yet" in answers.people()
    assert "A map needs 3 recordings" in answers.map(None)
    html, voice = answers.enrol(words["test0"][0], "ann", False)
    assert "The consent: " in html and voice is None and not answers.names()
    for name, files in words.items():
        html, voice = answers.enrol(files[0], f" {name} ", True)
        assert f"{name} is enrolled" in html
    assert answers.names() == sorted(words)
    html, _ = answers.identify(words["test1"][0])
    assert "<h2>test1</h2>" in html  # it has heard this very file
    (picture,) = images(answers.map(voice))
    assert "test2" in picture and "last recording" in picture
    monkeypatch.setattr(module, "MOST", 2)
    assert "A map shows up to 2 recordings; 3 are enrolled." in answers.map(voice)
    removed = answers.remove("test1")[0]
    assert "test1 is removed, and overwritten in the file." in removed
    assert "is not enrolled" in answers.remove("test1")[0]
    assert "Choose a name" in answers.remove(None)[0]
    assert answers.names() == ["test0", "test2"]


def test_who_is_enrolled_already_is_told(answers, words, verifier):
    for prior, sounds_alike in ((1 - 1e-9, True), (1e-9, False)):
        name = f"ann {prior}"
        asked = Answers(verifier, answers.open_store, prior)
        assert f"{name} is enrolled: " in asked.enrol(words["test0"][0], name, True)[0]
        html = asked.enrol(words["test0"][1], name, True)[0]
        assert f"Added to {name}, who now has 2 recordings: " in html
        assert ("does not sound like" in html) is not sounds_alike
    with answers.open_store() as store:
        assert [voice.n_recordings for voice in store.enrolled()] == [2, 2]


def test_names_are_escaped(answers, words):
    for number, name in enumerate((EVIL, "$x_2$ & ${1}{{2}}", "ann")):
        html = answers.enrol(words["test0"][number], name, True)[0]
        assert name in unescape(html)
    for html in (answers.identify(words["test0"][0])[0], answers.people()):
        assert "<img" not in html and EVIL in unescape(html)
    html = answers.remove(EVIL)[0]
    assert "<img" not in html and EVIL in unescape(html)


@pytest.mark.parametrize("name", ["", "  ", "n" * 81, "a\nb"])
def test_what_is_no_name(name, answers, words):
    html, voice = answers.enrol(words["test0"][0], name, True)
    assert 'role="alert"' in html and voice is None and not answers.names()


def test_each_question_opens_the_voices_anew(answers, words, verifier):
    """So that another process's changes are seen."""
    store = VoiceStore(
        answers.open_store().path,
        verifier.model.fingerprint,
        verifier.model.source,
    )
    store.add("bob", [verifier.listen(words["test0"][0])])
    store.close()
    assert answers.names() == ["bob"]


def test_what_is_likelier_is_said_of_the_right_one(answers):
    for llr, words in ((3.0, "one person than from two"), (-3.0, "two than from one")):
        verdict = Verdict(0.5, llr, 1 / (1 + np.exp(-llr)), llr > 0)
        assert f"20 times likelier from {words}" in answers._reasons(verdict)[1]


def test_a_prior_moves_who_it_is(answers, words, verifier):
    answers.enrol(words["test0"][0], "ann", True)
    unlikely = Answers(verifier, answers.open_store, prior=1e-9)
    assert "Nobody who is enrolled" in unlikely.identify(words["test0"][0])[0]
    likely = Answers(verifier, answers.open_store, prior=1 - 1e-9)
    assert "Nobody who is enrolled" not in likely.identify(words["test0"][0])[0]
