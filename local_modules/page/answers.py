"""The page's answers, as HTML. Names and messages are untrusted: the templates escape
them."""

import base64
import functools
import math
from collections.abc import Callable

from local_modules.errors import InputError
from local_modules.inference.identification import Identifier
from local_modules.inference.verification import (
    Verdict,
    Verifier,
    Voice,
    certainty,
)
from local_modules.inference.voices import VoiceStore
from local_modules.metrics import bayes_threshold
from local_modules.page import figures
from local_modules.page.hearing import Heard, hear
from local_modules.templates import page_template

ADVICE = (
    "What works: five seconds of speech or more, a hand's width from the microphone, "
    "with nobody else talking."
)
SURE = 0.75  # below this, the answer is said to be unsure
MAX_NAME = 80  # characters
FEWEST, MOST = 3, 5000  # recordings on a map


def told(answer):
    """Makes a method that returns HTML and perhaps a voice report an `InputError` as
    HTML instead."""

    @functools.wraps(answer)
    def guarded(self, *arguments):
        try:
            return answer(self, *arguments)
        except InputError as error:
            return self.parts.problem(str(error), ADVICE), None

    return guarded


class Answers:
    """Answers the page's requests.

    Arguments
    ---------
    verifier : Verifier
        The model.
    open_store : callable
        Gives a `with` the voices that are enrolled; called for each request, because
        each has its own thread.
    prior : float
        Prior probability that it is the same person, or one of those
        enrolled.
    """

    def __init__(
        self,
        verifier: Verifier,
        open_store: Callable[[], VoiceStore],
        prior: float = 0.5,
    ):
        self.verifier = verifier
        self.identifier = Identifier(verifier)
        self.open_store = open_store
        self.prior = prior
        self.parts = page_template("page.html").module

    @told
    def compare(self, one: str | None, other: str | None) -> tuple[str, Voice | None]:
        """Whether two recordings are of one person, and the second's voice."""
        names = "First recording", "Second recording"
        heard = [
            hear(self.verifier, path, name)
            for path, name in zip((one, other), names, strict=True)
        ]
        (verdict,) = self.verifier.compare(
            [[heard[0].voice]], heard[1].voice, self.prior
        )
        scale, explanation = self._scale(verdict)
        rate = self.verifier.model.sample_rate
        html = self.parts.verdict(
            _headline(verdict),
            verdict.same,
            self._reasons(verdict),
            [each.warning for each in heard],
            _image(scale),
            explanation,
            [
                (
                    name,
                    _quality(each),
                    _image(figures.draw_recording(each.samples, rate)),
                )
                for name, each in zip(names, heard, strict=True)
            ],
        )
        return html, heard[1].voice

    @told
    def identify(self, path: str | None) -> tuple[str, Voice | None]:
        """Which enrolled person it is, and the recording's voice."""
        heard = hear(self.verifier, path, "The recording")
        with self.open_store() as store:
            answer = self.identifier.identify(store, heard.voice, prior=self.prior)
        rows = []
        for found in answer.candidates:
            if found.probability is None:
                share, text = max(0.0, found.score), f"cosine {found.score:.2f}"
            else:
                share, text = found.probability, f"{100 * found.probability:.1f} %"
            rows.append((found.name, f"{100 * share:.1f}", text))
        if answer.nobody is not None:
            share = f"{100 * answer.nobody:.1f}"
            rows.append(("nobody enrolled", share, f"{share} %"))
        known = answer.name is not None
        headline = answer.name if known else "Nobody who is enrolled"
        html = self.parts.candidates(headline, known, rows, [heard.warning])
        return html, heard.voice

    @told
    def enrol(
        self, path: str | None, name: str, consent: bool
    ) -> tuple[str, Voice | None]:
        """Stores a recording of a person who has consented; returns its voice, too."""
        name = name.strip()
        if not name or len(name) > MAX_NAME:
            raise InputError(f"The name: must have 1 to {MAX_NAME} characters.")
        if not consent:
            raise InputError(
                "The consent: a voice identifies a person; it is stored only if that "
                "person has agreed. Tick the box if so."
            )
        heard = hear(self.verifier, path, "The recording")
        with self.open_store() as store:
            known = store.voices([name])[0] if name in store else []
            store.add(name, [heard.voice])
        told, warnings = f"{name} is enrolled", [heard.warning]
        if known:
            told = f"Added to {name}, who now has {len(known) + 1} recordings"
            (verdict,) = self.verifier.compare([known], heard.voice, self.prior)
            if not verdict.same:
                warnings.append(
                    f"It does not sound like {name} did before. If it is another "
                    f"person, remove {name} and enrol each under a name of their own."
                )
        html = self.parts.note(f"{told}: {_quality(heard)}.")
        return html + self.parts.warnings(warnings), heard.voice

    @told
    def remove(self, name: str | None) -> tuple[str, None]:
        """Removes a person."""
        if not name:
            raise InputError("Choose a name to remove.")
        with self.open_store() as store:
            store.remove(name)
        return self.parts.note(f"{name} is removed, and overwritten in the file."), None

    def names(self) -> list[str]:
        """The names of the enrolled people."""
        with self.open_store() as store:
            return [voice.name for voice in store.enrolled()]

    def people(self) -> str:
        """A table of the enrolled people."""
        with self.open_store() as store:
            return self.parts.people(store.enrolled())

    def map(self, last: Voice | None) -> str:
        """A map of all enrolled recordings and the last recording."""
        with self.open_store() as store:
            names, vectors = store.matrix()
        if len(names) + (last is not None) < FEWEST:
            return self.parts.note(
                f"A map needs {FEWEST} recordings, counting the last recording; "
                f"{len(names)} are enrolled."
            )
        if len(names) > MOST:
            return self.parts.note(
                f"A map shows up to {MOST} recordings; {len(names)} are enrolled."
            )
        directions = self.verifier.directions
        vectors = directions(vectors).numpy()
        last = None if last is None else directions(last.vector[None]).numpy()[0]
        picture = figures.draw_map(names, vectors, last)
        return self.parts.picture(_image(picture), "map of the voices")

    def _reasons(self, verdict: Verdict) -> list[str]:
        if verdict.llr is None:
            return [
                f"Cosine {verdict.score:.2f}; the threshold is "
                f"{self.verifier.threshold:.2f}. The model has no calibration, so "
                "there is no probability."
            ]
        kinds = ["one person", "two"]
        if verdict.llr < 0:
            kinds.reverse()
        sure = certainty(verdict.probability).capitalize()
        return [
            f"{sure}, with a prior of {100 * self.prior:g} %.",
            f"Recordings like these are {_times(abs(verdict.llr))} likelier from "
            f"{kinds[0]} than from {kinds[1]}: log-likelihood ratio {verdict.llr:.2f}, "
            f"cosine {verdict.score:.2f}.",
        ]

    def _scale(self, verdict: Verdict) -> tuple[bytes, str]:
        """The figure of where a verdict lies, and its caption."""
        if verdict.llr is None:
            picture = figures.draw_scale(
                verdict.score, self.verifier.threshold, "Cosine"
            )
            return picture, "Right of the dotted line, it is the same person."
        densities = self.verifier.backend.calibration.densities
        picture = figures.draw_scale(
            verdict.llr, bayes_threshold(self.prior), "Log-likelihood ratio", densities
        )
        if densities is None:
            return picture, "Right of the dotted line, it is the same person."
        return picture, (
            "In the background: the ratios of pairs of recordings of one person and of "
            "two people, from the speakers that the calibration is fitted to."
        )


def _headline(verdict: Verdict) -> str:
    headline = "The same person" if verdict.same else "Two people"
    probability = verdict.probability
    if probability is not None and max(probability, 1 - probability) < SURE:
        return f"Hard to say; more likely {headline[0].lower()}{headline[1:]}"
    return headline


def _times(llr: float) -> str:
    """A ratio above 1 in words.

    Example
    -------
    >>> _times(0.7), _times(3.0), _times(30.0)
    ('2.0 times', '20 times', 'more than a million times')
    """
    if llr > math.log(1e6):
        return "more than a million times"
    ratio = math.exp(llr)
    return f"{ratio:,.0f} times" if ratio >= 10 else f"{ratio:.1f} times"


def _quality(heard: Heard) -> str:
    quality = heard.voice.quality
    return (
        f"{quality.speech_seconds:.1f} s of speech in {quality.seconds:.1f} s, at "
        f"{quality.level_db:.0f} dB"
    )


def _image(svg: bytes) -> str:
    # As an image, not as elements: nothing in it can run.
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
