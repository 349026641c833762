"""What README.md says of a trained model works as it stands there."""

import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import speaker

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## Using the model\n(.*?)^## ", README, re.M | re.S)[1]
# Commands, block by block.
BLOCKS = [
    [shlex.split(line)[1:] for line in block.splitlines()]
    for block in re.findall(r"(?:^    python .+\n)+", SECTION, re.M)
]
(PYTHON,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.M | re.S)


@pytest.fixture(scope="module")
def here(tmp_path_factory, trained_run, voices_folder):
    """A folder with a model and with recordings of the names that README uses."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(trained_run / "model", here / "results/conformer/1234/model")
    one, other = sorted((voices_folder / "test").iterdir())[:2]
    for name, source in {
        "one.wav": one / "0.wav",
        "two.wav": one / "1.wav",
        "monday.wav": one / "2.wav",
        "tuesday.wav": one / "3.wav",
        "unknown.wav": one / "2.wav",
    }.items():
        shutil.copy(source, here / name)
    shutil.copytree(other, here / "recordings")
    return here


def test_there_are_five_blocks():
    assert len(BLOCKS) == 4  # and one in Python
    assert [block[0][0] for block in BLOCKS[2:]] == ["speaker.py", "export.py"]


def test_compare_and_identify(here, monkeypatch, capsys):
    monkeypatch.chdir(here)
    said = {}
    for _, command, *arguments in BLOCKS[0] + BLOCKS[1]:
        assert speaker.main([command, *arguments]) == 0, command
        said[command] = capsys.readouterr().out
    assert said.keys() == {"verify", "embed", "enroll", "identify", "list", "remove"}
    assert said["verify"].startswith(("same speaker", "different speakers"))
    assert re.search(r"cosine \d\.\d+  ann", said["identify"])
    assert said["list"].startswith("ann: 2 recording(s)")
    assert len(np.load(here / "vectors.npy")) == 4


def test_python(here, monkeypatch, tmp_path):
    monkeypatch.chdir(here)
    samples, rate = soundfile.read("one.wav", dtype="float32")
    assert rate == 16000
    block = tmp_path / "block.py"
    block.write_text(PYTHON, encoding="utf-8")
    found = runpy.run_path(block, {"waveform": torch.from_numpy(samples)[None]})
    verifier, (score,) = found["verifier"], found["score"].tolist()
    assert found["same_speaker"].item() == (score > verifier.hparams.threshold)
    again, _ = verifier.verify_batch(
        *(
            torch.from_numpy(soundfile.read(f, dtype="float32")[0])[None]
            for f in ("one.wav", "two.wav")
        )
    )
    assert again.item() == pytest.approx(score, abs=1e-5)
    assert found["embedding"].shape == (1, 1, 16)
