"""The benchmark of training steps, with little to do."""

from pathlib import Path

from benchmarks import throughput, throughput_systems

FILE = Path("results/benchmarks/throughput/throughput.md")
TINY = ["--device", "cpu", "--seconds", "0.1", "--speakers", "20"]
TINY += ["--batch_size", "2", "--crop_seconds", "0.3"]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def peaks(head):
    """TFLOP/s by precision."""
    pairs = head.split("TFLOP/s: ")[1].split(", ")
    return {name: float(value) for name, value in map(str.split, pairs)}


def test_a_small_run_fills_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["--rows", "conformer", "torchaudio", "ecapa_tdnn"]
    assert throughput.main([*rows, "--modes", "fp32", *TINY]) == 0
    head, table = FILE.read_text().split("\n\n")
    assert peaks(head).keys() == {"fp32"}
    lines = [cells(line) for line in table.splitlines()[2:]]
    assert "torchaudio" in lines[1][0] and "SpeechBrain" in lines[2][0]
    assert all(line[1:3] == ["fp32", "2 x 0.3 s"] for line in lines)
    assert all(float(line[5]) > 0 for line in lines)
    # ECAPA-TDNN has 20.8 M weights, our Conformer 1 M.
    assert float(lines[2][3]) > float(lines[0][3]) > 0

    modes = ["--modes", "fp32", "bf16"]
    assert throughput.main(["--rows", "conformer", *modes, *TINY]) == 0
    head, table = FILE.read_text().split("\n\n")
    assert peaks(head).keys() == {"bf16", "fp32"}
    assert all(peak > 0 for peak in peaks(head).values())
    once, bf16 = map(cells, table.splitlines()[2:])
    assert once == lines[0]  # kept
    assert bf16[1] == "bf16" and bf16[2:5] == once[2:5] and float(bf16[5]) > 0


def test_a_changed_recipe_is_measured_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = []

    def measure(row, *_):
        done.append(row.title)
        return {"crops": 1.0, "gib": None}

    monkeypatch.setattr(throughput, "measure", measure)
    for recipe in ("conformer", "conformer", "mfa_conformer"):
        row = throughput_systems.our_row(recipe, recipe)
        monkeypatch.setitem(throughput.ROWS, "conformer", row)
        assert throughput.main(["--rows", "conformer", "--modes", "fp32", *TINY]) == 0
    assert done == ["conformer", "mfa_conformer"]


def test_operations_of_a_training_step():
    """Three times the multiply-adds of hparams/mfa_conformer.yaml, by hand."""
    n, d, ffn = 151, 256, 2048  # frames of 3 s after the subsampling
    block = 2 * 2 * d * ffn + 4 * d * d + 3 * d * d + 15 * d + 2 * n * d
    pooling = 2 * (6 * d) * 128
    subsampling = 9 * 40 * 32 + 40 * 32 * d
    once = 2 * (6 * d) * 128 + 2 * (6 * d) * 192 + 192 * 7205
    operations = 3 * 2 * (n * (6 * block + pooling + subsampling) + once)
    row = throughput.ROWS["mfa_conformer"]
    assert throughput.count(row, 7205, 3.0).operations == operations
