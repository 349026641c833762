"""The benchmark of the data path, on a small corpus."""

from tests.programs import benchmark


def test_a_small_run_fills_the_tables(tmp_path):
    options = ["--files", "60", "--rounds", "1", "--epochs", "2", "--batch_size", "10"]
    options += ["--crop_seconds", "0.5", "--d_model", "16", "--n_blocks", "1"]
    options += ["--n_heads", "2", "--d_ffn", "16", "--emb_dim", "16"]
    benchmark("data", tmp_path, *options)
    folder = tmp_path / "results" / "benchmarks" / "data"
    speed, waiting = (folder / "data.md").read_text().split("\n\n")
    rows = [line.split(" | ") for line in speed.splitlines()[2:]]
    assert [row[0] for row in rows[:2]] == [
        "| SpeechBrain's VoxCeleb recipe, files",
        "| ours, files",
    ]
    assert all(int(row[1]) > int(row[2]) > 0 for row in rows)
    assert rows[0][3] == "1.0 |"
    rows = [line.split(" | ") for line in waiting.splitlines()[2:]]
    assert [row[1] for row in rows] == ["first", "later"] * 4
    assert all(0 < float(row[3].rstrip(" %")) < 100 for row in rows)
