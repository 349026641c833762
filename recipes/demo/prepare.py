"""Synthesise the demo corpus and write its manifests."""

import csv
import functools
import io
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from filelock import FileLock
from joblib import cpu_count
from tqdm import tqdm

from local_modules.errors import InputError, RunError
from local_modules.files import put_on_disk, replacing
from local_modules.manifest import Utterance, write_manifest
from local_modules.trials import draw_trials, write_trials
from recipes.demo.espeak import Espeak
from recipes.demo.sentences import SPLITS, draw_sentence
from recipes.demo.session import draw_session
from recipes.demo.voices import SAMPLE_RATE, Voice, add_breath, draw_voice, fit_tract

VERSION = 1  # raised whenever the same settings would give different audio
SECONDS = (2.0, 4.5)  # an utterance outside is drawn again

_SETTINGS = "corpus.json"
_TRANSCRIPT = "transcript.csv"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Speaker:
    """A speaker to synthesise: the key of its random streams, and its number of
    utterances."""

    seed: int
    split: str
    index: int
    utterances: int

    @property
    def name(self) -> str:
        """The name in the manifests, the same in every corpus of this seed."""
        return f"{self.split}{self.index:04d}"

    def stream(self, *utterance: int) -> np.random.Generator:
        """The random generator of the speaker, or of one utterance (from 1)."""
        key = (self.seed, SPLITS.index(self.split), self.index, *utterance)
        return np.random.default_rng(key)

    def voice(self) -> Voice:
        """How the speaker sounds."""
        return draw_voice(self.stream())


def prepare(
    data_folder: str,
    save_folder: str,
    corpus_seed: int = 1986,
    train_speakers: int = 400,
    valid_speakers: int = 40,
    test_speakers: int = 40,
    utterances: int = 20,
    skip_prep: bool = False,
) -> None:
    """Synthesise the demo corpus where it is missing, and write its manifests.

    The same settings give the same bytes, whatever the number of processes and of
    interruptions: a speaker's folder appears complete or not at all, and existing
    folders are kept.

    Arguments
    ---------
    data_folder : str
        Where the audio goes, as `<split>/<speaker>/<utterance>.wav`, 16 kHz mono
        16 bit, and beside it `transcript.csv` (`ID,text,samples`).
    save_folder : str
        Where `train.csv`, `valid.csv`, `test.csv` and `metadata.csv`
        (`speaker,split,sex`) go.
    corpus_seed : int
        Each seed gives a different corpus.
    train_speakers : int
        Speakers of the training split. Those of the other splits do not depend
        on it.
    valid_speakers : int
        Speakers of the validation split.
    test_speakers : int
        Speakers of the test split.
    utterances : int
        Utterances of each speaker.
    skip_prep : bool
        True does nothing.

    Raises
    ------
    InputError
        If `data_folder` holds a corpus with other settings, or a number of
        speakers or utterances is below two.
    RunError
        If the audio cannot be written.
    """
    if skip_prep:
        return
    counts = {
        "train_speakers": train_speakers,
        "valid_speakers": valid_speakers,
        "test_speakers": test_speakers,
        "utterances": utterances,
    }
    for key, count in counts.items():
        if count < 2:
            raise InputError(
                f"{key}: {count} is too few for the demo corpus; the minimum is 2"
            )
    settings = {"version": VERSION, "seed": corpus_seed, **counts}
    speakers = [
        Speaker(corpus_seed, split, index, utterances)
        for split in SPLITS
        for index in range(counts[f"{split}_speakers"])
    ]
    data, save = Path(data_folder), Path(save_folder)
    try:
        data.mkdir(parents=True, exist_ok=True)
        save.mkdir(parents=True, exist_ok=True)
        _claim(data, settings)
        if _missing(data, speakers):
            # A second run in the same folder waits here, and then finds all done.
            with FileLock(data / ".lock"):
                _synthesise(data, speakers)
        _write_manifests(data, save, speakers, corpus_seed)
    except OSError as error:
        place = error.filename or data
        raise RunError(f"{place}: cannot be written: {error.strerror}") from error


def _claim(data: Path, settings: dict[str, int]) -> None:
    """Write the folder's settings to a file, or check that they are the same."""
    path = data / _SETTINGS
    if not path.exists():
        with replacing(path) as file:
            json.dump(settings, file, indent=2)
    if json.loads(path.read_text()) != settings:
        raise InputError(
            f"{data}: holds a demo corpus with other settings (see {path.name}): "
            "choose another --data_folder or delete this one"
        )


def _missing(data: Path, speakers: Iterable[Speaker]) -> list[Speaker]:
    return [one for one in speakers if not (data / one.split / one.name).is_dir()]


def _synthesise(data: Path, speakers: list[Speaker]) -> None:
    """Synthesise what is missing, with one process per core, by speaker."""
    for left_over in data.glob(f"{_PARTIAL}*"):
        shutil.rmtree(left_over)
    missing = _missing(data, speakers)
    size = speakers[0].utterances
    done = len(speakers) - len(missing)
    with (
        # Both belong to the parent: a worker ended by Ctrl-C has no time to clean up.
        tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=data) as partial,
        tempfile.TemporaryDirectory(prefix="espeak-") as voices,
        tqdm(
            desc="Synthesising the demo corpus",
            unit="utterance",
            total=len(speakers) * size,
            initial=done * size,
            smoothing=0.05,
        ) as progress,
        # Leaving the block ends the workers, when all is done or after Ctrl-C.
        multiprocessing.Pool(cpu_count(), _ignore_interrupt) as pool,
    ):
        record = functools.partial(_record_speaker, data, partial, voices)
        for _ in pool.imap_unordered(record, missing):
            progress.update(size)


def _ignore_interrupt() -> None:
    """Leave Ctrl-C to the parent, which ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _record_speaker(data: Path, partial: str, voices: str, speaker: Speaker) -> None:
    """Record all utterances of a speaker; the folder appears when all are done."""
    voice = speaker.voice()
    with Espeak(voices) as espeak:
        folder = Path(partial, speaker.name)
        folder.mkdir()
        with _csv(folder / _TRANSCRIPT, "ID", "text", "samples") as rows:
            for number in range(1, speaker.utterances + 1):
                text, wave = _record_utterance(espeak, voice, speaker, number)
                path = folder / f"{number:03d}.wav"
                # To memory first: libsndfile doesn't report a full disk.
                file = io.BytesIO()
                soundfile.write(file, wave, SAMPLE_RATE, "PCM_16", format="WAV")
                path.write_bytes(file.getvalue())
                put_on_disk(path)
                rows.writerow((f"{speaker.name}-{number:03d}", text, len(wave)))
        target = data / speaker.split / speaker.name
        target.parent.mkdir(exist_ok=True)
        os.rename(folder, target)


def _record_utterance(
    espeak: Espeak, voice: Voice, speaker: Speaker, number: int
) -> tuple[str, np.ndarray]:
    """The text and the recording of one utterance."""
    rng = speaker.stream(number)
    while True:
        text = draw_sentence(speaker.split, rng)
        today = voice.vary(rng)
        rate = round(today.rate / today.tract)
        wave = espeak.speak(text, today.variant(), today.accent, rate)
        pauses = rng.integers(SAMPLE_RATE // 20, SAMPLE_RATE // 4, 2)
        wave = add_breath(fit_tract(wave, today.tract), today.breath, rng)
        speech = np.pad(wave, pauses)
        if SECONDS[0] <= len(speech) / SAMPLE_RATE <= SECONDS[1]:
            return text, draw_session(rng).record(speech, rng)


def _write_manifests(
    data: Path, save: Path, speakers: list[Speaker], corpus_seed: int
) -> None:
    """Write the manifests, once the transcripts of all speakers are read."""
    transcripts = {one: _read_transcript(data, one) for one in speakers}
    with _csv(save / "metadata.csv", "speaker", "split", "sex") as rows:
        rows.writerows((one.name, one.split, one.voice().sex) for one in speakers)
    for split in SPLITS:
        utterances = [
            utterance
            for speaker in speakers
            if speaker.split == split
            for utterance in _utterances(speaker, transcripts[speaker])
        ]
        if split != "train":
            speaker_of = {one.path: one.speaker for one in utterances}
            trials = draw_trials(speaker_of, corpus_seed)
            write_trials(save / f"{split}_trials.txt", trials)
        write_manifest(save / f"{split}.csv", utterances)


def _read_transcript(data: Path, speaker: Speaker) -> list[dict[str, str]]:
    path = data / speaker.split / speaker.name / _TRANSCRIPT
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read: {error.strerror}; delete its folder, and the "
            "same command makes it again"
        ) from None


def _utterances(speaker: Speaker, transcript: list[dict[str, str]]) -> Iterator:
    for number, one in enumerate(transcript, start=1):
        samples = int(one["samples"])
        path = f"{speaker.split}/{speaker.name}/{number:03d}.wav"
        seconds = samples / SAMPLE_RATE
        yield Utterance(one["ID"], seconds, path, 0, samples, speaker.name)


@contextmanager
def _csv(path: Path, *header: str) -> Iterator:
    with replacing(path) as file:
        rows = csv.writer(file)
        rows.writerow(header)
        yield rows
