"""The benchmark of a model in use, with little to do."""

from pathlib import Path

from benchmarks import inference


def test_a_small_run_fills_the_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, recipe = "SpeechBrain's x-vector", inference.RIVALS["SpeechBrain's x-vector"]
    monkeypatch.setattr(inference, "RIVALS", {name: recipe})
    options = ["--seconds", "0.5", "1", "--threads", "1", "--rounds", "1"]
    options += ["--start_rounds", "1", "--files", "3", "--voices", "500"]
    assert inference.main(options) == 0
    file = Path("results/benchmarks/inference/inference.md")
    speed, start, many = file.read_text().split("\n\n")
    assert speed.startswith("| 1 thread | 0.5 s | 1 s |")
    for table in (speed, start):
        names = [line.split(" | ")[0] for line in table.splitlines()[2:]]
        assert names == [
            "| ours",
            "| SpeechBrain's x-vector",
            "| ours, ONNX",
            "| ours, ONNX int8",
        ]
    assert all(line.count(" ms, ") == 2 for line in speed.splitlines()[2:])
    assert all(line.endswith(" MiB |") for line in start.splitlines()[2:])
    assert "`embed` on 3 files" in many and "the nearest 5 of 500" in many
