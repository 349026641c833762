"""speaker.py as a person runs it, on a small trained model."""

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

import speaker
from local_modules.inference import embedding_files, verification
from local_modules.inference.embedding_store import EmbeddingStore
from local_modules.inference.speech import read_speech
from local_modules.inference.verification import ListeningModel, Verifier
from local_modules.page import server
from tests.programs import Program

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def words(voices_folder):
    """Recordings of the test speakers by name."""
    folders = sorted((voices_folder / "test").iterdir())
    return {folder.name: sorted(map(str, folder.iterdir())) for folder in folders}


@pytest.fixture
def here(tmp_path, monkeypatch, trained_run):
    """A folder to work in, with the model where it is looked for."""
    shutil.copytree(trained_run / "model", tmp_path / "results" / "run" / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return speaker.main([f"{argument}" for argument in arguments])


def answer(capsys, *arguments):
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_verify_says_what_the_verifier_says(here, words, capsys):
    one, other = words["test0"][:2]
    found = answer(capsys, "verify", one, other, "--prior", "0.2")
    verdict = Verifier("results/run/model").verify(one, other, prior=0.2)
    assert found == pytest.approx(vars(verdict), abs=1e-5)
    odds = np.exp(verdict.llr) * 0.2 / 0.8
    assert found["probability"] == pytest.approx(odds / (1 + odds), abs=1e-6)
    assert found["same"] == (found["probability"] >= 0.5)
    assert run("verify", one, other, "--prior", "0.2") == 0
    text = capsys.readouterr().out
    assert text.startswith(("same speaker, ", "different speakers, "))
    assert f"log-likelihood ratio {verdict.llr:.2f}" in text


def test_how_sure_it_is_is_said_of_the_answer(here, words, capsys):
    """With such priors that afterwards the odds are e to one, for either."""
    files = words["test0"][:2]
    llr = Verifier("results/run/model").verify(*files).llr
    for log_odds, headline in ((-1.0, "different speakers"), (1.0, "same speaker")):
        prior = 1 / (1 + math.exp(llr - log_odds))
        assert run("verify", *files, "--prior", prior) == 0
        first, _ = capsys.readouterr().out.splitlines()
        told = f"prior {prior:g}"
        assert first == f"{headline}, 73.1 % sure ({told})"


def test_a_long_recording_is_the_mean_of_its_windows(here, words, monkeypatch):
    monkeypatch.setattr(verification, "WINDOW_SECONDS", 0.25)
    monkeypatch.setattr(verification, "WINDOWS_AT_A_TIME", 2)
    verifier, path = Verifier("results/run/model"), words["test0"][0]
    speech = read_speech(path, 16000).samples
    windows = speech.tensor_split(math.ceil(len(speech) / 4000))
    assert len(windows) >= 3
    expected = torch.cat([verifier.model.embed([window]) for window in windows])
    found = torch.from_numpy(verifier.listen(path).vector)
    torch.testing.assert_close(found, expected.mean(dim=0), atol=1e-5, rtol=1e-5)


def test_a_model_without_calibration_decides_by_the_cosine(
    here, trained_run, words, capsys
):
    (here / "results/run/model/calibration.json").unlink()
    found = answer(capsys, "verify", *words["test0"][:2])
    metrics = json.loads((trained_run / "metrics.json").read_text())
    threshold = metrics["valid"]["eer_threshold"]
    assert found["llr"] is None and found["same"] == (found["score"] >= threshold)
    assert run("verify", *words["test0"][:2]) == 0
    assert f"the threshold is {threshold:.3f}" in capsys.readouterr().out


def test_enroll_identify_list_remove(here, words, capsys):
    assert run("identify", words["test1"][3]) == 2
    error = capsys.readouterr().err
    assert "model  results/run/model\n" in error
    path = Path("results/run/voices.db").resolve()
    assert error.endswith(
        f"nobody is enrolled in {path}: there is no such file; --voices FILE names "
        "another\n"
    )
    assert run("list", "--voices", "typo.db") == run("remove", "ann") == 2
    assert not path.exists() and not Path("typo.db").exists()
    capsys.readouterr()
    for name, files in words.items():
        found = answer(capsys, "enroll", name, *files[:3])
        assert found["n_recordings"] == 3 and found["name"] == name
    listed = answer(capsys, "list")["voices"]
    assert [voice["name"] for voice in listed] == sorted(words)
    for name, files in words.items():
        found = answer(capsys, "identify", files[0], "--prior", "0.9")
        assert found["candidates"][0]["name"] == name  # it has heard this very file
        shares = [candidate["probability"] for candidate in found["candidates"]]
        assert sum(shares) + found["nobody"] == pytest.approx(1)
        assert shares == sorted(shares, reverse=True)
        for candidate in found["candidates"]:
            odds = math.exp(candidate["llr"]) * (0.9 / 3) / (1 - 0.9)
            assert candidate["probability"] == pytest.approx(odds * found["nobody"])
    assert run("identify", words["test1"][3], "--top", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[-1].endswith("nobody enrolled")
    assert answer(capsys, "enroll", "test0", words["test0"][3])["n_recordings"] == 4

    vector = Verifier("results/run/model").listen(words["test1"][0]).vector
    octets = vector.astype("<f4").tobytes()
    assert octets in Path("results/run/voices.db").read_bytes()
    assert answer(capsys, "remove", "test1") == {"removed": "test1"}
    assert octets not in Path("results/run/voices.db").read_bytes()
    assert run("remove", "test1") == 2
    assert "test1: is not enrolled" in capsys.readouterr().err


def test_a_recording_unlike_those_before_is_told(here, words, capsys):
    """By what the verifier says of it."""
    verifier, first = Verifier("results/run/model"), words["test0"][0]
    others = [file for files in words.values() for file in files]
    unlike = [other for other in others if not verifier.verify(first, other).same]
    assert 0 < len(unlike) < len(others)
    assert run("enroll", "ann", first) == 0
    assert "does not sound like" not in capsys.readouterr().err
    assert run("enroll", "ann", *others) == 0
    told = capsys.readouterr().err.splitlines()
    told = [line for line in told if "does not sound like ann did before" in line]
    assert [line.partition(": ")[0] for line in told] == unlike


def test_a_model_of_synthetic_voices_says_so(here, words, capsys):
    path = here / "results/run/model/hyperparams.yaml"
    assert path.read_text().count("corpus: folder") == 1
    for corpus, is_told in (("folder", False), ("demo", True)):
        text = path.read_text().replace("corpus: folder", f"corpus: {corpus}")
        path.write_text(text)
        assert run("verify", *words["test0"][:2]) == 0
        told = "This model was trained on synthetic voices: " in capsys.readouterr().err
        assert told is is_told


def test_a_model_at_a_rate_where_no_speech_is_found(here, words, capsys):
    path = here / "results/run/model/hyperparams.yaml"
    text = path.read_text().replace("sample_rate: 16000", "sample_rate: 22050")
    path.write_text(text)
    assert run("verify", *words["test0"][:2]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == (
        "speaker.py: results/run/model: is a model for 22050 Hz; speech detection "
        "needs 8000, 16000, 32000 or 48000 Hz"
    )


def test_another_models_voices_are_refused(here, words, trained_run, capsys):
    run("enroll", "ann", words["test0"][0])
    other = here / "other" / "model"
    shutil.copytree(trained_run / "model", other)
    text = (other / "hyperparams.yaml").read_text()
    (other / "hyperparams.yaml").write_text(f"{text}\nnote: 1\n")
    arguments = ["--model", other, "--voices", "results/run/voices.db"]
    assert run("identify", words["test0"][0], *arguments) == 2
    assert "enrolled with another model, results/run/model" in capsys.readouterr().err
    assert run("enroll", "bob", words["test1"][0], *arguments) == 2


def test_whose_model_is_gone_can_be_removed(here, words, capsys):
    answer(capsys, "enroll", "ann", words["test0"][0])
    answer(capsys, "enroll", "bob", words["test1"][0])
    shutil.rmtree("results/run/model")
    file = ("--voices", "results/run/voices.db")
    assert answer(capsys, "remove", "ann", *file) == {"removed": "ann"}
    (voice,) = answer(capsys, "list", *file)["voices"]
    assert voice["name"] == "bob"
    answer(capsys, "remove", "bob", *file)
    assert answer(capsys, "list", *file) == {"voices": []}


def test_voices_are_never_in_the_models_folder(here, words, monkeypatch, capsys):
    monkeypatch.chdir("results/run/model")
    answer(capsys, "enroll", "ann", words["test0"][0], "--model", ".")
    assert (here / "results/run/voices.db").exists()
    assert not Path("voices.db").exists()


def test_each_model_on_a_hub_has_voices_of_its_own(here, words, monkeypatch, capsys):
    """Two of one owner, from what is kept here of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", f"{here / 'hub'}")
    for name in ("one", "two"):
        kept = here / "hub" / f"models--owner--{name}"
        shutil.copytree("results/run/model", kept / "snapshots" / ("0" * 40))
        with open(kept / "snapshots" / ("0" * 40) / "hyperparams.yaml", "a") as file:
            file.write(f"\nname: {name}\n")
        if name == "two":
            (kept / "snapshots" / ("0" * 40) / "calibration.json").unlink()
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("0" * 40)
        of_model = "--model", f"owner/{name}"
        answer(capsys, "enroll", f"ann {name}", words["test0"][0], *of_model)
        # With all that a folder has, and without what this one never had.
        for trust in ([], ["--trust"]):
            found = answer(capsys, "verify", *words["test0"][:2], *of_model, *trust)
            assert (found["llr"] is None) is (name == "two")
        (voice,) = answer(capsys, "list", *of_model)["voices"]
        assert voice["name"] == f"ann {name}"
    found = sorted(path.name for path in Path("results").glob("*.db"))
    assert found == ["owner--one.voices.db", "owner--two.voices.db"]
    assert not Path("owner").exists()


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_embed_folders_files_and_lists(suffix, here, words, voices_folder, capsys):
    soundfile.write("silence.wav", np.zeros(16000), 16000)
    Path("list.txt").write_text(f"silence.wav\n{words['test1'][0]}\n\nnothing.wav\n")
    Path("out.txt").write_text("a list of one's own")
    output = f"out{suffix}"
    folder = voices_folder / "test" / "test0"
    assert run("embed", folder, words["test0"][0], "@list.txt", "-o", output) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == f"5 embeddings in {output}; 2 left out"
    assert "silence.wav: 1.0 s of silence" in shown.err
    assert "nothing.wav: is not a regular file" in shown.err
    expected = [*words["test0"], words["test1"][0]]
    if suffix == ".npy":
        paths, vectors = Path("out.npy.txt").read_text().splitlines(), np.load(output)
    else:
        paths, vectors = zip(*sorted(load_file(output).items()), strict=True)
    assert list(paths) == expected
    assert Path("out.txt").read_text() == "a list of one's own"
    verifier = Verifier("results/run/model")
    for path, vector in zip(paths, vectors, strict=True):
        np.testing.assert_allclose(vector, verifier.listen(path).vector, atol=1e-4)
    assert not list(here.glob(".*"))  # nothing half done is left


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="argparse reads any name")
def test_a_list_with_a_name_that_is_not_utf8_is_one_line(here, capsys):
    Path("list.txt").write_bytes(b"caf\xe9.wav\n")
    assert run("embed", "@list.txt", "-o", "out.npy") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("speaker.py: list.txt: has a name that is not UTF-8: ")


def test_a_file_of_many_names_is_embedded_under_each(here, words, capsys):
    Path("recordings").mkdir()
    shutil.copy(words["test0"][0], "recordings/a.wav")
    Path("recordings/broken.wav").write_text("no sound at all")
    for name in ("a", "broken"):
        Path(f"recordings/link to {name}.wav").symlink_to(f"{name}.wav")
    Path("elsewhere").mkdir()
    shutil.copy(words["test0"][0], "elsewhere/b.wav")
    Path("recordings/folder").symlink_to("../elsewhere")
    absolute = here / "recordings" / "a.wav"
    names = ["recordings/a.wav", absolute, "recordings", absolute]
    assert run("embed", *names, "-o", "out.npy") == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == "4 embeddings in out.npy; 2 left out"
    assert "left out: recordings/broken.wav: " in shown.err
    assert "left out: recordings/link to broken.wav: " in shown.err
    expected = ["recordings/a.wav", f"{absolute}", "recordings/folder/b.wav"]
    expected.append("recordings/link to a.wav")
    assert Path("out.npy.txt").read_text().splitlines() == expected
    first, again, other, linked = np.load("out.npy")
    for vector in (again, linked):
        np.testing.assert_array_equal(vector, first)
    np.testing.assert_allclose(other, first, atol=1e-4)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_embeddings_are_on_the_disk_first(suffix, tmp_path, unsynced):
    vectors = {Path("a.wav"): np.zeros(3, np.float32)}
    embedding_files._write(vectors, tmp_path / f"out{suffix}")
    assert not unsynced


def embed_and_die(folder):
    """After the first batch."""
    os.chdir(folder)
    put = EmbeddingStore.put

    def put_and_die(store, *args):
        put(store, *args)
        os.kill(os.getpid(), signal.SIGKILL)

    EmbeddingStore.put = put_and_die
    return run("embed", "@list.txt", "-o", "out.npy")


def test_killed_while_embedding_it_continues(here, words, monkeypatch):
    files = []
    for number in range(120):  # two batches
        shutil.copy(words["test0"][number % 4], here / f"{number}.wav")
        files.append(f"{number}.wav")
    Path("list.txt").write_text("".join(f"{file}\n" for file in files))
    killed = Program(embed_and_die, here)
    output = killed.output()
    assert killed.status == -signal.SIGKILL, output
    assert not Path("out.npy").exists()
    with contextlib.closing(sqlite3.connect(".out.npy.db")) as database:
        (n_kept,) = database.execute("SELECT count(*) FROM embeddings").fetchone()
    n_read, read = 0, ListeningModel.read

    def counted(model, path):
        nonlocal n_read
        n_read += 1
        return read(model, path)

    monkeypatch.setattr(ListeningModel, "read", counted)
    assert run("embed", "@list.txt", "-o", "out.npy") == 0
    assert 0 < n_kept < 120 and n_read == 120 - n_kept
    vectors = np.load("out.npy")
    assert len(vectors) == 120
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-4)


def write_until_operation(vectors, output, last_operation):
    """Writes embeddings, and dies before the given file operation."""
    n_seen = 0

    def seen(event, args):
        nonlocal n_seen
        if event in ("open", "os.rename", "os.remove"):
            n_seen += 1
            if n_seen == last_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(seen)
    embedding_files._write(vectors, output)
    os._exit(0)


def test_killed_while_writing_vectors_never_stand_beside_others_paths(tmp_path):
    output = tmp_path / "out.npy"
    old = {Path("a.wav"): np.zeros(3), Path("b.wav"): np.zeros(3)}
    new = {Path("c.wav"): np.ones(3), Path("d.wav"): np.ones(3)}
    for operation in range(1, 20):
        embedding_files._write(old, output)
        process = multiprocessing.get_context("fork").Process(
            target=write_until_operation, args=(new, output, operation)
        )
        process.start()
        process.join(60)
        if output.exists():
            paths = output.with_name("out.npy.txt").read_text().split()
            expected = old if paths == ["a.wav", "b.wav"] else new
            assert paths == [str(path) for path in expected]
            np.testing.assert_array_equal(np.load(output), list(expected.values()))
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert operation > 3 and expected is new


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "a.wav", "b.wav"], "a.wav: No such file"),
        (["verify", "a.wav"], "required: B"),
        (["verify", "a.wav", "b.wav", "--prior", "1"], "--prior 1.0: has to be"),
        (["identify", "a.wav", "--top", "0"], "--top 0: has to be"),
        (["embed", "a.wav", "-o", "out.txt"], "out.txt: the name has to end in .npy"),
        (["embed", "empty", "-o", "out.npy"], "folder empty: holds no audio"),
        (["enroll", " ", "good.wav"], "' ': is not a name"),
        (["list", "--voices", "broken.db"], "broken.db: is not a voices file"),
        (["serve", "--model", "nowhere"], "nowhere: is not a speaker model: there is"),
        (
            ["serve", "--host", "0.0.0.0"],
            "--host 0.0.0.0: others can reach the page there",
        ),
        (["serve", "--host", "no.such"], "--host no.such: is not an address"),
        (["serve", "--port", "65536"], "--port 65536: has to be from 0 to 65535"),
        (["serve", "--voices", "broken.db"], "broken.db: is not a voices file"),
        (["sing"], "invalid choice: 'sing'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, here, capsys, voices_folder):
    (here / "empty").mkdir()
    (here / "broken.db").write_text("no database, but a text that is long enough" * 9)
    shutil.copy(voices_folder / "test" / "test0" / "0.wav", "good.wav")
    try:
        status = run(*arguments)
    except SystemExit as end:  # argparse's own
        status = end.code
    assert status == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert words in error[-1] and "Traceback" not in "".join(error)


def test_the_page_is_served_as_the_command_line_says(here, words, monkeypatch):
    served = []
    monkeypatch.setattr(server, "serve", lambda *arguments: served.append(arguments))
    recording = words["test0"][0]
    assert run("enroll", "ann", recording) == 0
    place = ("--host", "127.0.0.2", "--port", "8123")
    assert run("serve", "--prior", "1e-9", *place) == 0
    ((answers, *told),) = served
    assert told == ["results/run/model", "127.0.0.2", 8123]
    # Not even this very recording is likely to be of one of those enrolled.
    assert "Nobody who is enrolled" in answers.identify(recording)[0]


def test_a_port_in_use_is_one_line(here, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("serve", "--port", port) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"--port {port}: can't listen there: Address already in use" in line


def test_the_latest_model_is_the_one_written_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, seconds in (("a/1", 1000), ("b/2/c", 3000), ("d/3", 2000)):
        model = Path("results", path, "model")
        model.mkdir(parents=True)
        (model / "hyperparams.yaml").touch()
        os.utime(model, (seconds, seconds))
    assert speaker.latest_model() == "results/b/2/c/model"


def test_no_model_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("list") == 2
    assert "--model: there is none under results/" in capsys.readouterr().err


def test_every_command_shows_an_example(capsys):
    for name in ("verify", "embed", "enroll", "identify", "list", "remove", "serve"):
        with pytest.raises(SystemExit) as end:
            run(name, "--help")
        assert end.value.code == 0
        assert f"example: python speaker.py {name}" in capsys.readouterr().out


def test_help_waits_for_no_model():
    """PyTorch takes seconds, of which a person who asks for help has none."""
    program = (
        "import contextlib, speaker, sys\n"
        "with contextlib.suppress(SystemExit):\n"
        "    speaker.main(['verify', '--help'])\n"
        "assert not {'torch', 'numpy', 'speechbrain'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def enrol(folder, *arguments):
    os.chdir(folder)
    return run("enroll", *arguments)


def test_two_processes_enrol_at_once(here, words, capsys):
    programs = [Program(enrol, here, name, *files) for name, files in words.items()]
    for program in programs:
        output = program.output()
        assert program.status == 0, output
    voices = answer(capsys, "list")["voices"]
    assert {v["name"]: v["n_recordings"] for v in voices} == dict.fromkeys(words, 4)
