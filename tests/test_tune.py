"""tune.py as a person runs it, with real trainings on a small corpus."""

import csv
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from optuna.trial import TrialState

import tune
from local_modules import config
from local_modules.command_line import parse_command_line
from local_modules.tuning import supervisor
from local_modules.tuning.progress import first_screen
from local_modules.tuning.storage import open_study
from local_modules.tuning.study import enqueue_defaults, failure_reason, live_trials
from tests.programs import CONTEXT, Program

ROOT = Path(__file__).parents[1]
SEARCH_FILE = "search/small.yaml"
SEARCH = """
n_trials: 4
objective: eer
proxy:
    number_of_epochs: 2
space:
    lr: {type: float, low: 0.0001, high: 0.01, log: True}
    emb_dim: {type: categorical, choices: [8, 16, 32]}
sampler_seed: !PLACEHOLDER
sampler: !new:optuna.samplers.RandomSampler
    seed: !ref <sampler_seed>
pruner: !new:optuna.pruners.NopPruner
"""
SMALL = {
    "corpus": "folder",
    "d_model": 16,
    "n_blocks": 1,
    "n_heads": 2,
    "d_ffn": 16,
    "batch_size": 8,
    "crop_seconds": 0.8,
    "emb_dim": 16,
}


@pytest.fixture
def here(tmp_path, monkeypatch, voices_folder):
    """A folder of its own with a recipe, a search file and the corpus, less the test
    recordings: nothing may read them."""
    data = tmp_path / "data"
    shutil.copytree(voices_folder, data)
    text = (ROOT / "hparams" / "conformer.yaml").read_text()
    for key, value in {**SMALL, "data_folder": data}.items():
        start = text.index(f"\n{key}: ") + 1
        text = text[:start] + f"{key}: {value}" + text[text.index("\n", start) :]
    (tmp_path / "small.yaml").write_text(text)
    (tmp_path / "search").mkdir()
    (tmp_path / SEARCH_FILE).write_text(SEARCH)
    monkeypatch.chdir(tmp_path)
    # Only where a test doesn't start tune.py as a person does.
    monkeypatch.setattr(supervisor, "CONTEXT", CONTEXT)
    return tmp_path


@pytest.fixture
def no_study_pictures(no_pictures, monkeypatch):
    """Nor are any of the study drawn."""
    monkeypatch.setattr(tune, "make_pictures", lambda study, objectives: [])


def command(*more):
    return ["small.yaml", "--device", "cpu", *more]


def start(folder, *more):
    """`tune.py` in a process group of its own."""
    return Program(run_tune, folder, command(*more))


def run_tune(folder, arguments):
    os.chdir(folder)
    return tune.main(arguments)


def rows_of(folder):
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "option",
    [
        ["--storage", "sqlite://me:s3cret@/x.db"],
        ["--storage=sqlite:///x.db?user=me&password=s3cret"],
    ],
)
def test_a_password_is_not_printed(option, monkeypatch, capsys):
    """Nor is what stands around it lost."""

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune", interrupted)
    assert tune.main(command(*option)) == 130
    (line,) = capsys.readouterr().err.strip().splitlines()
    _, _, shown = line.partition("To continue: python tune.py ")
    expected = [word.replace("s3cret", "***") for word in command(*option)]
    assert shlex.split(shown) == expected


def test_a_study_and_what_it_leaves(here):
    """With Ctrl-C in the middle, and without a byte of the test recordings."""
    program = start(here)
    folder = here / "results" / "tune" / "small"
    while not list(folder.glob("trials/1/save/CKPT*")):
        time.sleep(0.02)
        assert program.status is None, program.output()
    os.killpg(program.pid, signal.SIGINT)
    output = program.output()
    assert program.status == 130
    assert "python tune.py small.yaml --device cpu" in output.splitlines()[-1]
    assert "Traceback" not in output
    assert "Stopping at a checkpoint; " in output

    # Nothing of the test recordings is left, though they look as when scanned.
    for path in (here / "data" / "test").rglob("*.wav"):
        times = path.stat()
        path.write_bytes(b"\0" * times.st_size)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    program = start(here)
    output = program.output()
    assert program.status == 0, output
    for words in ("4 trials", "of them done", "trial 3:", "report.html", "best.yaml"):
        assert words in output

    live = live_trials(open_study(None, folder, "small", 1))
    assert [trial.state.name for trial in live.values()] == 4 * ["COMPLETE"]
    assert live[0].params == {"lr": 0.0096, "emb_dim": 16}
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    for row, trial in zip(rows, live.values(), strict=True):
        assert float(row["eer"]) == trial.value
        log = folder / "trials" / row["trial"] / "train_log.txt"
        eers = [
            float(line.split("valid EER ")[1].split(" %")[0]) / 100
            for line in log.read_text().splitlines()
        ]
        assert trial.value == pytest.approx(min(eers), abs=1e-4)
        assert len(eers) == 2

    names = {path.name for path in (folder / "plots").iterdir()}
    for name in ("optimization_history", "timeline", "intermediate_values"):
        assert {f"{name}.png", f"{name}.html"} <= names
    for name in ("eer", "accuracy", "loss", "learning_rate"):
        assert (folder / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert list(folder.glob("trials/2/tensorboard/*"))

    # best.yaml is the recipe with the best trial's values, at its full length.
    best = min(live.values(), key=lambda trial: (trial.value, trial.number))
    values = config.plain_values(str(folder / "best.yaml"), {})
    own = config.plain_values(str(here / "small.yaml"), {})
    assert values["lr"] == best.params["lr"]
    assert values["emb_dim"] == best.params["emb_dim"]
    assert values["output_folder"] == "results/tune/small/best/1234"
    changed = {key for key in own if own[key] != values[key]}
    assert {"number_of_epochs", "batch_size", "d_model"}.isdisjoint(changed)
    # It stands alone: its manifests are its own, made when it is trained.
    assert values["manifest_folder"] == "results/tune/small/best/1234/manifests"
    assert not values["skip_prep"]


def test_retraining_tests_the_best_beside_the_defaults(here, no_study_pictures, capsys):
    more = ("--n_trials", "2", "--retrain", "2", "--number_of_epochs", "1")
    assert tune.main(command(*more)) == 0
    folder = here / "results" / "tune" / "small"
    results = json.loads((folder / "retrained.json").read_text())
    study = open_study(None, folder, "small", 1)
    values = [trial.value for trial in live_trials(study).values()]
    assert results["defaults"]["trial"] == 0
    assert ("best" in results) == (values[1] < values[0])
    for row in results.values():
        assert row["seeds"] == [1234, 1235]
        for seed, eer in zip((1234, 1235), row["test_eer"], strict=True):
            run = folder / "retrained" / f"trial_{row['trial']}" / str(seed)
            metrics = json.loads((run / "metrics.json").read_text())
            assert metrics["test"]["eer"] == eer
            assert metrics["epochs"] == 1  # the full length, not the proxy's two
    assert "±" in (folder / "report.html").read_text()
    # Of an earlier best trial, they would say nothing.
    assert tune.read_retrained(folder / "retrained.json", 7) is None


def test_several_objectives_give_a_front(here):
    more = ("--n_trials", "3", "--objective", "eer,n_parameters")
    assert tune.main(command(*more)) == 0
    folder = here / "results" / "tune" / "small"
    assert (folder / "plots" / "pareto_front.png").exists()
    for row in rows_of(folder):
        assert float(row["n_parameters"]) > 100


SEARCH_OF_KERNELS = """
n_trials: 3
objective: eer
proxy: {number_of_epochs: 2}
space:
    kernel_size: {type: categorical, choices: [4, 15]}
    emb_dim: {type: int, low: 8, high: 16}
sampler_seed: !PLACEHOLDER
sampler: !new:optuna.samplers.GridSampler
    search_space: {kernel_size: [4, 15], emb_dim: [8]}
pruner: !new:optuna.pruners.ThresholdPruner {upper: -1.0}
"""


def test_torchrun_trains_each_trial_on_all_processes(here, capsys):
    """A trial that is complete, for the first is never pruned, one whose values are
    wrong, and one that is pruned."""
    (here / SEARCH_FILE).write_text(SEARCH_OF_KERNELS)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    options = ("--retrain", "1", "--number_of_epochs", "1")
    arguments = command("--distributed_backend", "gloo", *options)

    def launch(*more):
        return subprocess.run(
            [sys.executable, *launcher, str(ROOT / "tune.py"), *arguments, *more],
            cwd=here,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    process = launch()
    assert process.returncode == 0, process.stdout
    trains = "torchrun --nproc_per_node 2 train_speaker.py results/tune/small/best.yaml"
    assert f"train it  {trains} --distributed_backend gloo\n" in process.stdout
    folder = here / "results" / "tune" / "small"
    complete, *others = live_trials(open_study(None, folder, "small", 1)).values()
    assert complete.state.name == "COMPLETE"
    assert list(complete.intermediate_values) == list(range(1, 11))
    failed, pruned = sorted(others, key=lambda trial: trial.params["kernel_size"])
    assert failed.state.name == "FAIL"
    assert "kernel_size 4" in failure_reason(failed)
    assert pruned.state.name == "PRUNED"
    assert pruned.intermediate_values == {1: 0.5}
    for result in json.loads((folder / "retrained.json").read_text()).values():
        assert len(result["test_eer"]) == 1

    # It is not continued on another number of processes, nor with other values, of
    # which the first process alone knows: it lets the others end.
    assert tune.main(arguments) == 2
    assert "option.processes 2, not 1" in capsys.readouterr().err
    process = launch("--batch_size", "4")
    assert process.returncode != 0 and "batch_size 8, not 4" in process.stdout
    assert "broadcast" not in process.stdout


def test_defaults_that_fail_end_the_study(here, capsys):
    assert tune.main(command("--kernel_size", "4")) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("tune.py: the first trial, with the recipe's own values")
    assert "kernel_size 4" in error and "--study NAME" in error
    # Nor does the same command go on without them, whatever else is wrong by now.
    shutil.rmtree(here / "data")
    assert tune.main(command("--kernel_size", "4", "--retrain")) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"{error}\n")


def test_a_first_trial_that_was_pruned_is_not_shown_for_the_own_values(here, capsys):
    """Studies may have one that were begun when it still could be."""
    job, full = tune.make_job(*tune.parse(command()))
    job.folder.mkdir(parents=True)
    study = job.open_study()
    study.enqueue_trial(job.search.defaults)
    for slot, (eer, state) in enumerate(
        [(0.4, TrialState.PRUNED), (0.3, TrialState.COMPLETE)]
    ):
        trial = study.ask(job.search.space)
        trial.set_user_attr("slot", slot)
        trial.report(eer, 1)
        is_pruned = state == TrialState.PRUNED
        study.tell(trial, None if is_pruned else eer, state=state)
    tune.finish(job, study, full)
    output = capsys.readouterr().out
    assert "best      trial 1: EER 30.00 %" in output
    assert "baseline  trial 0" not in output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--emb_dmi", "3"], ["--emb_dmi", "emb_dim"]),
        (["--n_trials", "0"], ["--n_trials 0"]),
        (["--n_trials", "x"], ["--n_trials", "'x'"]),
        (["--objective", "eerr"], ["eerr", "min_dcf"]),
        (["--objective", "eer,eer"], ["objective eer", "name it once"]),
        (["--search", "none.yaml"], ["none.yaml"]),
        (["--search", "misspelt.yaml"], ["misspelt.yaml", "TPESamplre"]),
        (["--precision", "fp8"], ["--precision", "bf16"]),
        (["--device", "cpu", "--precision", "fp16"], ["--precision fp16", "GPUs"]),
        (["--save_folder", "x"], ["--save_folder", "set by the study"]),
        (["--skip_prep", "True"], ["--skip_prep", "set by the study"]),
        (["--debug"], ["--debug", "train_speaker.py"]),
        (["--test_only"], ["--test_only", "train_speaker.py"]),
        (["--seed", "-1"], ["--seed -1", "0 or more"]),
        # Hidden from the trials by the proxy, but not from what comes of them.
        (["--number_of_epochs", "0"], ["--number_of_epochs 0"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, here, capsys):
    misspelt = SEARCH.replace("RandomSampler", "TPESamplre")
    (here / "misspelt.yaml").write_text(misspelt)
    assert tune.main(command(*arguments)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("tune.py: ")
    for word in words:
        assert word in error
    assert not (here / "results").exists()


def test_a_recipe_without_a_search_file_is_told(here, capsys):
    shutil.copyfile("small.yaml", "mine.yaml")
    assert tune.main(["mine.yaml", "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mine.yaml: there is no search/mine.yaml; --search FILE" in line
    options, _ = tune.parse(["mine.yaml", "--search", SEARCH_FILE])
    assert options.search == SEARCH_FILE


def test_a_study_that_could_not_begin_leaves_its_name_free(
    here, no_study_pictures, capsys
):
    """Also one whose name is no YAML."""
    name = ("--study", "try 2: #big", "--n_trials", "1")
    assert tune.main(command(*name, "--corpus", "librispeech")) == 2
    assert tune.main(command(*name)) == 0
    best = "results/tune/try 2: #big/best.yaml"
    assert f"python train_speaker.py '{best}'\n" in capsys.readouterr().out
    values = config.plain_values(best, {})
    assert values["output_folder"] == "results/tune/try 2: #big/best/1234"


def test_the_winner_is_trained_as_it_was_searched(here, no_study_pictures, capsys):
    options = ("--grad_accumulation_factor", "2", "--remove_vector_weight_decay")
    assert tune.main(command("--n_trials", "1", *options)) == 0
    (line,) = re.findall(r"^train it  python (.*)$", capsys.readouterr().out, re.M)
    script, recipe, *rest = shlex.split(line)
    assert script == "train_speaker.py" and set(rest) == {*options}
    _, run_opts, overrides = parse_command_line([recipe, *rest])
    assert run_opts["grad_accumulation_factor"] == 2
    assert run_opts["remove_vector_weight_decay"] and not overrides
    assert html.escape(shlex.join(["python", script, recipe, *rest])) in (
        here / "results/tune/small/report.html"
    ).read_text(encoding="utf-8")


def test_a_sampler_that_has_drawn_all_ends_the_study(here, no_study_pictures):
    space = "lr: {type: categorical, choices: [0.001, 0.0096]}"
    sampler = "!new:optuna.samplers.BruteForceSampler {seed: !ref <sampler_seed>}"
    (here / SEARCH_FILE).write_text(
        f"{SEARCH[: SEARCH.index('space:')]}space: {{{space}}}\n"
        f"sampler_seed: !PLACEHOLDER\nsampler: {sampler}\n"
        "pruner: !new:optuna.pruners.NopPruner\n"
    )
    assert tune.main(command("--n_trials", "9")) == 0
    drawn = [row["lr"] for row in rows_of(here / "results/tune/small")]
    # The first has the recipe's own values, which are a point too.
    assert {"0.001", "0.0096"} == set(drawn) and len(drawn) <= 3


def test_a_study_is_not_continued_as_another(here, no_study_pictures, capsys):
    assert tune.main(command("--n_trials", "1")) == 0
    capsys.readouterr()
    assert tune.main(command("--n_trials", "2", "--batch_size", "4")) == 2
    error = capsys.readouterr().err
    assert "batch_size 8, not 4" in error
    assert tune.main(command("--n_trials", "2", "--grad_accumulation_factor", "2")) == 2
    assert "option.grad_accumulation_factor 1, not 2" in capsys.readouterr().err
    wider = SEARCH.replace("high: 0.01", "high: 0.02")
    (here / SEARCH_FILE).write_text(wider)
    assert tune.main(command("--n_trials", "2")) == 2
    told = "was begun with searched.lr {"
    assert told in capsys.readouterr().err
    (here / SEARCH_FILE).write_text(SEARCH)
    assert (here / "results/tune/small/storage.txt").read_text() == "study.journal\n"
    database = ("--storage", f"sqlite:///{here}/study.db")
    assert tune.main(command("--n_trials", "2", *database)) == 2
    error = capsys.readouterr().err
    assert "is in study.journal, not in sqlite:///" in error and error.count("\n") == 1


def test_the_time_is_in_minutes(here):
    job, _ = tune.make_job(*tune.parse(command("--timeout", "90")))
    assert job.deadline - time.time() == pytest.approx(90 * 60, abs=30)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "up to 40 min of training"),
        (("--timeout", "15"), "up to 25 min of training"),
        (("--timeout", "90", "--workers", "2"), "up to 20 min of training"),
        (("--workers", "3"), "up to 20 min of training"),
        (("--workers", "9"), "up to 10 min of training"),
    ],
)
def test_the_first_screen_says_how_long_it_takes(options, told, here):
    """A trial that has begun before the timeout goes on after it."""
    minutes = "train_time_limit_minutes: 10"
    (here / SEARCH_FILE).write_text(SEARCH.replace("number_of_epochs: 2", minutes))
    options, rest = tune.parse(command(*options))
    job, _ = tune.make_job(options, rest)
    assert told in first_screen(job, options.workers, 0)


def test_the_first_screen_of_trials_in_full(here):
    text = SEARCH.replace("proxy:\n    number_of_epochs: 2", "proxy: {}")
    (here / SEARCH_FILE).write_text(text)
    job, _ = tune.make_job(*tune.parse(command()))
    assert "\na trial    the full length; the first" in first_screen(job, 1, 0)


def test_the_best_is_retrained_with_what_was_found(here):
    job, full = tune.make_job(*tune.parse(command("--batch_size", "4")))
    job.folder.mkdir(parents=True)
    study = job.open_study()
    for slot, eer in enumerate((0.4, 0.2, 0.3)):
        study.enqueue_trial({"lr": 0.001 * (slot + 1), "emb_dim": 8 * 2**slot})
        trial = study.ask(job.search.space)
        trial.set_user_attr("slot", slot)
        study.tell(trial, eer)
    trained = []

    def train(recipe, run_opts, overrides):
        trained.append({key: overrides.get(key) for key in watched})
        row = {"eer": 0.1, "min_dcf": 0.5}
        return {"valid": row, "test": row}

    watched = ("lr", "emb_dim", "batch_size", "seed", "number_of_epochs")
    tune.retrain_best(job, study, full, 1, train)
    assert [tuple(values.values()) for values in trained] == [
        (None, None, 4, 1234, None),  # the recipe's own
        (0.002, 16, 4, 1234, None),
    ]


def test_a_second_retraining_says_what_it_waits_for(here, monkeypatch):
    job, full = tune.make_job(*tune.parse(command()))
    job.folder.mkdir(parents=True)
    study = job.open_study()
    enqueue_defaults(study, job.search.defaults)
    study.tell(study.ask(job.search.space), 0.4)
    told = []

    def train(recipe, run_opts, overrides):
        told.append("trained")
        row = {"eer": 0.1, "min_dcf": 0.5}
        return {"valid": row, "test": row}

    def tell(words, **_):
        if "another process" in words:
            told.append(words)
            lock.release()

    monkeypatch.setattr("builtins.print", tell)
    lock = FileLock(job.folder / ".retrain.lock")
    lock.acquire()
    tune.retrain_best(job, study, full, 1, train)
    assert told == [f"{job.folder}: waiting for another process to retrain", "trained"]


def test_a_study_is_not_continued_on_other_recordings(here, no_study_pictures, capsys):
    assert tune.main(command("--n_trials", "1")) == 0
    manifests = here / "results/tune/small/manifests"
    valid = (manifests / "valid.csv").read_bytes()
    recording = next((here / "data" / "valid").rglob("*.wav"))
    shutil.copy(recording, recording.with_name("again.wav"))
    assert tune.main(command("--n_trials", "2")) == 0
    assert (manifests / "valid.csv").read_bytes() == valid
    shutil.rmtree(manifests)  # as on another machine
    capsys.readouterr()
    assert tune.main(command("--n_trials", "3")) == 2
    error = capsys.readouterr().err
    assert "was begun with corpus.valid.csv " in error and error.count("\n") == 1


def test_a_trial_list_is_a_key_like_every_other(here, no_study_pictures, capsys):
    """It reaches every training of the study, and what the study is known by."""
    text = (
        "1 test/test0/0.wav test/test0/1.wav\n0 test/test0/0.wav test/test1/0.wav\n"
        "0 test/test0/1.wav test/test2/0.wav\n"
    )
    listed = here / "list.txt"
    listed.write_text(text)
    options = ("--trials", f"{listed}", "--number_of_epochs", "1")
    assert tune.main(command("--n_trials", "1", "--retrain", "1", *options)) == 0
    folder = here / "results" / "tune" / "small"
    assert (folder / "manifests" / "test_trials.txt").read_text() == text
    full = folder / "retrained" / "trial_0" / "1234"
    rates = json.loads((full / "metrics.json").read_text())
    assert (rates["test"]["n_target"], rates["test"]["n_nontarget"]) == (1, 2)
    assert rates["valid"]["n_target"] > 2

    # Without the list, the study would be another one.
    capsys.readouterr()
    assert tune.main(command("--n_trials", "2", *options[2:])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "recipe.trials of SHA-256 " in line and ", not null" in line
    # It may have moved, but not changed.
    moved = listed.rename(here / "moved.txt")
    options = ("--trials", f"{moved}", *options[2:])
    assert tune.main(command("--n_trials", "2", *options)) == 0
    moved.write_text(text + text)
    assert tune.main(command("--n_trials", "3", *options)) == 2
    assert "recipe.trials of SHA-256 " in capsys.readouterr().err
    recipes = [run / "hyperparams.yaml" for run in (full, *folder.glob("trials/?"))]
    assert len(recipes) == 3
    for recipe in (folder / "best.yaml", *recipes):
        named = config.plain_values(f"{recipe}", {})["trials"]
        assert named in (f"{listed}", f"{moved}")


def test_an_option_before_the_recipe_keeps_its_value():
    options, rest = tune.parse(["--lr", "0.1", "--n_trials", "3"])
    assert options.recipe == "hparams/conformer.yaml"
    assert options.n_trials == 3
    assert rest == ["--lr", "0.1"]
