"""A model that can't be loaded, and where what belongs to one is kept."""

import os
from pathlib import Path

import pytest

from local_modules.errors import InputError
from local_modules.inference import trust
from local_modules.inference.speaker_model import SpeakerModel, kept_beside
from tests.random_models import write_model


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_no_model_is_one_line(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a speaker model") as error:
        SpeakerModel(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_a_wrong_device_is_not_the_models_fault(tmp_path):
    with pytest.raises(InputError, match="^--device gpu: Expected one of cpu"):
        SpeakerModel(str(write_model(tmp_path / "model")[0]), device="gpu")


def test_what_is_kept_of_a_model_in_a_place_that_cannot_be_written_to(
    tmp_path, monkeypatch
):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    assert kept_beside(folder, "voices.db") == tmp_path / "run" / "voices.db"
    # Root may write anywhere, so the system's answer is made up.
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder.parent)
    kept = kept_beside(folder, "voices.db")
    assert kept.parent == Path("results")
    assert kept.name == f"{str(folder)[1:].replace('/', '--')}.voices.db"
    assert kept_beside("owner/x", "a.db") == Path("results/owner--x.a.db")
    # Somebody else's file in a place that others may write to.
    theirs = tmp_path / "run" / "voices.db"
    theirs.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: path != theirs)
    assert kept_beside(folder, "voices.db") == kept
    assert kept_beside(folder, "other.db").parent == tmp_path / "run"
    # Nor where SQLite could not make its journal.
    monkeypatch.setattr(os, "access", lambda path, mode: path != theirs.parent)
    assert kept_beside(folder, "voices.db") == kept


def test_a_runs_folder_is_not_its_model(tmp_path):
    write_model(tmp_path / "run" / "model")
    (tmp_path / "run" / "hyperparams.yaml").write_text("seed: !apply:os.getpid []")
    with pytest.raises(InputError) as error:
        SpeakerModel(str(tmp_path / "run"))
    assert str(error.value) == (
        f"{tmp_path / 'run'}: is a run; its model is {tmp_path / 'run' / 'model'}"
    )


@pytest.mark.parametrize("name", ["results/typo", "a/b/c", "typo", "/typo", "./typo"])
def test_no_hub_is_asked_for_a_folder_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(trust, "fetch", None)
    with pytest.raises(InputError, match=f"^{name}: .* there is no such folder"):
        SpeakerModel(name)
