"""The benchmark of training steps, with little to do."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_small_run_fills_the_table(tmp_path):
    subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "throughput.py")]
        + ["--rows", "conformer", "torchaudio", "ecapa_tdnn", "--modes", "fp32", "bf16"]
        + ["--device", "cpu", "--seconds", "0.1", "--speakers", "20"]
        + ["--batch_size", "2", "--crop_seconds", "0.3"],
        cwd=tmp_path,
        check=True,
        timeout=300,
    )
    folder = tmp_path / "results" / "benchmarks" / "throughput"
    head, table = (folder / "throughput.md").read_text().split("\n\n")
    assert "TFLOP/s: bf16 " in head and ", fp32 " in head
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()[2:]
    ]
    assert [line[1] for line in lines] == ["fp32", "bf16"] * 3
    assert "SpeechBrain" in lines[4][0] and "torchaudio" in lines[2][0]
    assert all(line[2] == "2 x 0.3 s" and float(line[5]) > 0 for line in lines)
    # Operations are of the crop, whatever the precision; ECAPA-TDNN's 20.8 M weights
    # take more than our 1 M.
    assert all(
        one[3:5] == two[3:5] for one, two in zip(lines[::2], lines[1::2], strict=True)
    )
    assert float(lines[4][3]) > float(lines[0][3]) > 0
