"""Small trees with the layout and the names of real corpora."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from local_modules.errors import InputError
from local_modules.manifest import check_splits, read_manifest
from local_modules.trials import read_trials


@pytest.fixture
def corpus(tmp_path):
    """A data folder to fill, a save folder, and means to look at what is written."""
    data, save = tmp_path / "data", tmp_path / "save"
    data.mkdir()

    def add(*paths, seconds=0.6, rate=16000):
        """Writes noise to each path below the data folder."""
        noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
        written = {}
        for path in paths:
            path = data / path
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in written:
                os.link(written[path.suffix], path)
            else:
                soundfile.write(path, noise, rate)
                written[path.suffix] = path

    def splits():
        found = {
            s: read_manifest(save / f"{s}.csv") for s in ("train", "valid", "test")
        }
        check_splits(found)
        for rows in found.values():
            assert all((data / row.path).is_file() for row in rows)
        return found

    def speakers():
        return {s: {row.speaker for row in rows} for s, rows in splits().items()}

    def trials(split):
        return read_trials(
            save / f"{split}_trials.txt", {row.path for row in splits()[split]}
        )

    def targets(split):
        """The pairs of one speaker in a trial list."""
        found = trials(split)
        pairs = zip(found.labels, found.enrol, found.test, strict=True)
        return {frozenset(pair) for label, *pair in pairs if label}

    def check_sessions(caplog, n_within):
        """That of each held-out speaker's three recordings, the pairs with the last are
        targets, and those within one session only where nobody has two."""
        for split in ("valid", "test"):
            pairs = targets(split)
            across = {pair for pair in pairs if any("-2" in path for path in pair)}
            assert len(across) == 2 * 2
            assert len(pairs - across) == n_within
            warning = f"{split}: no speaker was recorded in two sessions"
            assert (warning in caplog.text) == (n_within > 0)

    def failure(prepare, kind=InputError, **settings):
        """Runs `prepare` and returns the one line that it fails with."""
        with pytest.raises(InputError) as error:
            prepare(str(data), str(save), **settings)
        assert type(error.value) is kind
        assert "\n" not in str(error.value)
        return str(error.value)

    return SimpleNamespace(
        data=data,
        save=save,
        add=add,
        splits=splits,
        speakers=speakers,
        trials=trials,
        targets=targets,
        check_sessions=check_sessions,
        failure=failure,
    )
