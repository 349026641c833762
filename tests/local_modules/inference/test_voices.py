"""The file of enrolled voices under a kill, and what tells that it has changed."""

import multiprocessing
import os
import signal
import sqlite3
import time
from datetime import date
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from local_modules.errors import InputError, RunError
from local_modules.inference import voices
from local_modules.inference.speech import Quality
from local_modules.inference.verification import Voice
from local_modules.inference.voices import VoiceStore

N_RECORDINGS = 5
# Of several pages of the file, so that a voice is written in many pieces.
VOICE = Voice(np.ones(5000, np.float32), Quality(3.0, 2.5, -20.0, 0.0))


def enrol_for_ever(path, report):
    """Says how many voices are enrolled, after each."""
    store = VoiceStore(path, "f", "m")
    for number in count():
        store.add(f"p{number:04}", [VOICE] * N_RECORDINGS)
        os.write(report, b".")


def test_killed_while_enrolling_nothing_reported_is_lost(tmp_path):
    rng = np.random.default_rng(0)
    for attempt in range(8):
        path = tmp_path / f"{attempt}" / "voices.db"
        reading, writing = os.pipe()
        process = multiprocessing.get_context("fork").Process(
            target=enrol_for_ever, args=(path, writing)
        )
        process.start()
        os.close(writing)
        reported = len(os.read(reading, 1))  # it is at work
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with os.fdopen(reading, "rb") as rest:
            reported += len(rest.read())
        store = VoiceStore(path, "f", "m")
        voices = store.enrolled()
        # The last may have been done and not yet reported.
        assert len(voices) in (reported, reported + 1)
        assert {voice.n_recordings for voice in voices} == {N_RECORDINGS}
        store.add("last", [VOICE])
        store.close()
        check = sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone()
        assert check == ("ok",)
        # The journal of what was cut off is gone.
        assert [file.name for file in path.parent.iterdir()] == ["voices.db"]


def test_voices_are_nobody_elses_to_read(tmp_path):
    store = VoiceStore(tmp_path / "voices.db", "f", "m")
    store.add("ann", [VOICE])
    assert [file.stat().st_mode & 0o077 for file in tmp_path.iterdir()] == [0]
    store.close()


def test_a_file_without_voices_is_any_models(tmp_path):
    """Also where they are gone; and whoever had it open adds no voices to others'."""
    path = tmp_path / "voices.db"
    early = VoiceStore(path, "f", "m")
    with VoiceStore(path, "g", "n") as store:
        store.add("ann", [VOICE])
        with pytest.raises(InputError, match="with another model, n as it was then"):
            early.add("bob", [VOICE])
        with pytest.raises(InputError, match="with another model, n as it was then"):
            VoiceStore(path, "f", "m")
        assert [voice.name for voice in store.enrolled()] == ["ann"]
        store.remove("ann")
    early.add("bob", [VOICE])
    early.close()
    with pytest.raises(InputError, match="with another model, m as it was then"):
        VoiceStore(path, "g", "n")


def test_who_only_looks_claims_no_file(tmp_path):
    path = tmp_path / "voices.db"
    with pytest.raises(InputError, match="is not a voices file: unable to open"):
        VoiceStore(path)
    assert not path.exists()
    with VoiceStore(path, "f", "m") as store:
        store.add("ann", [VOICE])
        assert "ann" in store and "bob" not in store
    with VoiceStore(path) as store:
        with pytest.raises(ValueError, match="of which model"):
            store.add("bob", [VOICE])
        store.remove("ann")
    with VoiceStore(path) as store:
        assert store.enrolled() == []


@pytest.mark.parametrize("of_model", [(), ("f", "m")])
def test_another_programs_file_is_refused_and_not_changed(of_model, tmp_path):
    path = tmp_path / "bookmarks.db"
    other = sqlite3.connect(path)
    with other:
        other.execute("CREATE TABLE bookmarks (address TEXT)")
    other.close()
    octets = path.read_bytes()
    with pytest.raises(InputError, match="bookmarks.db: is not a voices file: it has"):
        VoiceStore(path, *of_model)
    assert path.read_bytes() == octets


def test_who_only_looks_waits_for_nobody_who_writes(tmp_path):
    path = tmp_path / "voices.db"
    with VoiceStore(path, "f", "m") as store:
        store.add("ann", [VOICE])
        store._database.execute("BEGIN IMMEDIATE")
        start = time.monotonic()
        with VoiceStore(path) as other:
            assert [voice.name for voice in other.enrolled()] == ["ann"]
        assert time.monotonic() - start < 30  # a lock is waited for for a minute


def test_every_change_is_another_state(tmp_path):
    one, other = (VoiceStore(tmp_path / "voices.db", "f", "m") for _ in range(2))
    states = [one.state()]
    for change in (
        lambda: one.add("ann", [VOICE]),
        lambda: other.add("bob", [VOICE]),
        lambda: one.add("ann", [VOICE]),
        lambda: other.remove("ann"),
        lambda: one.remove("bob"),
    ):
        change()
        assert one.state() == other.state()
        states.append(one.state())
    assert len(set(states)) == len(states)
    assert one.matrix()[0] == []
    for store in (one, other):
        store.close()


def test_a_broken_disk_is_one_line(tmp_path):
    path = tmp_path / "voices.db"
    with VoiceStore(path, "f", "m") as store:
        for number in range(20):
            store.add(f"p{number}", [VOICE])
    with open(path, "r+b") as file:  # all but the first page, which says what it is
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    problem = pytest.raises(InputError, match="voices.db: ")
    with problem as error, VoiceStore(path, "f", "m") as store:
        store.matrix()
    assert "\n" not in str(error.value)


def test_a_full_disk_is_a_run_that_failed(tmp_path):
    """Made so by a limit on the file, of which SQLite says the same."""
    full = pytest.raises(RunError, match="voices.db: .*disk is full; make room$")
    with full as error, VoiceStore(tmp_path / "voices.db", "f", "m") as store:
        store._database.execute("PRAGMA max_page_count = 4")
        store.add("ann", [VOICE] * N_RECORDINGS)
    assert error.value.exit_status == 1


def test_a_place_for_no_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a voices file"):
        VoiceStore(tmp_path / "file" / "voices.db", "f", "m")


def test_a_voice_was_enrolled_when_it_last_was(tmp_path, monkeypatch):
    with VoiceStore(tmp_path / "voices.db", "f", "m") as store:
        for day in (date(2026, 1, 2), date(2026, 3, 4)):
            today = SimpleNamespace(today=lambda day=day: day)
            monkeypatch.setattr(voices, "date", today)
            quality = Quality(3.0, 2.5, -20.0, 0.0)
            store.add("ann", [Voice(np.ones(4, np.float32), quality)])
        (ann,) = store.enrolled()
    assert (ann.enrolled_on, ann.n_recordings) == ("2026-03-04", 2)
