"""The search file: what it gives, and every mistake in it."""

from pathlib import Path

import optuna
import pytest

from local_modules.errors import InputError
from local_modules.tuning.search import (
    make_sampler_and_pruner,
    read_search,
    search_file_of,
    suggest,
)
from local_modules.tuning.study import enqueue_defaults

ROOT = Path(__file__).parents[3]
RECIPE = str(ROOT / "hparams" / "conformer.yaml")
SEARCH = ROOT / "hparams" / "search" / "conformer.yaml"
HEAD = "n_trials: 3\nobjective: eer\nproxy: {number_of_epochs: 2}\n"
TAIL = """
sampler_seed: !PLACEHOLDER
sampler: !new:optuna.samplers.RandomSampler
    seed: !ref <sampler_seed>
pruner: !new:optuna.pruners.NopPruner
"""


def written(path, space="{lr: {type: float, low: 0.001, high: 0.01}}", **changes):
    text = HEAD + f"space: {space}" + TAIL
    for before, after in changes.items():
        start = text.index(f"{before}:")
        text = text[:start] + after + text[text.index("\n", start) :]
    path.write_text(text)
    return path


def test_the_default_space_holds_what_the_reference_system_searched():
    search = read_search(SEARCH, RECIPE, {})
    powers = {2**n for n in range(4, 12)}
    assert powers <= set(search.space["emb_dim"].choices)
    margin = search.space["angular_margin"]
    assert (margin.low, margin.high, margin.log) == (0.1, 0.9, True)
    scale = search.space["angular_scale"]
    assert (scale.low, scale.high) == (16.0, 64.0)
    assert search.space["lr"].low <= 1e-4 and search.space["lr"].high >= 1e-3
    wider = {"n_blocks", "d_model", "kernel_size", "dropout", "subsampling"}
    assert wider | {"weight_decay", "warmup_share"} < set(search.space)
    assert not {"n_mels", "sample_rate"} & set(search.space)  # features are shared
    assert search.n_trials == 50
    assert search.objectives == ("eer",)


@pytest.mark.parametrize("search_file", sorted(SEARCH.parent.glob("*.yaml")), ids=str)
def test_a_space_holds_its_recipes_own_values(search_file):
    recipe = str(ROOT / "hparams" / search_file.name)
    assert search_file_of(recipe) == str(search_file)
    found = read_search(search_file, recipe, {})
    assert found.defaults.keys() == found.space.keys()
    make_sampler_and_pruner(search_file, seed=1)


def test_the_defaults_are_the_recipes_own_values():
    search = read_search(SEARCH, RECIPE, {})
    assert search.defaults["lr"] == 0.0096
    assert search.defaults["emb_dim"] == 256
    assert search.defaults.keys() == search.space.keys()


def test_every_combination_of_the_default_space_makes_a_model():
    """The corners and some draws; a choice that can't be built would fail trials."""
    from local_modules import config

    search = read_search(SEARCH, RECIPE, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    draws = [suggest(study.ask(), search.space) for _ in range(3)]
    for end in (0, -1):
        draws.append(
            {
                key: d.choices[end] if hasattr(d, "choices") else (d.low, d.high)[end]
                for key, d in search.space.items()
            }
        )
    for values in draws:
        hparams = config.load_hparams(RECIPE, {**values, "n_speakers": 2})
        assert hparams["embedding_model"].encoder.output_size > 0


def test_a_key_set_for_every_trial_is_not_searched():
    search = read_search(SEARCH, RECIPE, {"lr": 0.5, "n_blocks": 3})
    assert not {"lr", "n_blocks"} & set(search.space)


def test_the_proxy_counts_before_the_command_line(tmp_path):
    path = written(tmp_path / "s.yaml")
    assert read_search(path, RECIPE, {"number_of_epochs": 9}).proxy == {
        "number_of_epochs": 2
    }


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("{emb_dmi: {type: int, low: 1, high: 2}}", ["emb_dmi", "emb_dim"]),
        ("{loss: {type: int, low: 1, high: 2}}", ["loss", "object"]),
        ("{lr: {type: real, low: 1, high: 2}}", ["lr", "'real'", "float", "int"]),
        ("{lr: [1, 2]}", ["lr", "categorical"]),
        ("{lr: {type: float, low: 0.1}}", ["lr", "high", "missing"]),
        ("{lr: {type: float, low: 0.1, hihg: 1}}", ["lr", "hihg", "high"]),
        ("{lr: {type: float, low: 0.1, high: 0.01}}", ["lr", "0.1", "0.01"]),
        ("{lr: {type: float, low: 0.1, high: x}}", ["lr", "high", "'x'"]),
        ("{lr: {type: float, low: 0, high: 1, log: True}}", ["lr", "low"]),
        ("{n_blocks: {type: int, low: 1.5, high: 3}}", ["n_blocks", "low", "1.5"]),
        ("{emb_dim: {type: categorical, choices: 3}}", ["emb_dim", "3", "list"]),
        ("{emb_dim: {type: categorical, choices: []}}", ["emb_dim"]),
        ("{emb_dim: {type: categorical, choices: [16]}}", ["emb_dim", "256", "16"]),
        ("{n_blocks: {type: int, low: 5, high: 9}}", ["n_blocks", "3", "5 to 9"]),
        (
            "{n_blocks: {type: int, low: 2, high: 8, step: 2}}",
            ["n_blocks", "3", "steps of 2"],
        ),
        ("{number_of_epochs: {type: int, low: 1, high: 9}}", ["proxy"]),
        ("{lr: {type: float, low: 0.001, high: 1, log: no}}", ["log", "'no'"]),
        ("{lr: {type: float, low: 0.001, high: .inf}}", ["high", "inf", "finite"]),
        ("{lr: {type: [float], low: 0.001, high: 1}}", ["type ['float']"]),
        ("{n_blocks: {type: float, low: 2, high: 6}}", ["n_blocks", "an integer"]),
        ("{emb_dim: {type: categorical, choices: [256, big]}}", ["big", "an integer"]),
        ("{emb_dim: {type: categorical, choices: abc}}", ["'abc'", "not a list"]),
        ("{lr: {type: float, low: -0.1, high: 0.1}}", ["lr -0.1", "0 or more"]),
        (
            "{crop_seconds: {type: categorical, choices: [2.0, 0.01]}}",
            ["space: crop_seconds", "0.01", "0.1 or more"],
        ),
        ("{}", ["nothing"]),
        ("[lr]", ["space", "mapping"]),
    ],
)
def test_a_wrong_space_is_named(space, words, tmp_path):
    path = written(tmp_path / "s.yaml", space)
    with pytest.raises(InputError) as caught:
        read_search(path, RECIPE, {})
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_trials": "n_trials: 0"}, ["n_trials", "0"]),
        ({"n_trials": "n_trials: many"}, ["n_trials", "many"]),
        ({"n_trials": "trials: 3"}, ["s.yaml: trials: ", "nearest are n_trials"]),
        ({"objective": "objective: eerr"}, ["eerr", "min_dcf"]),
        ({"objective": "objective: [[eer]]"}, ["['eer']", "min_dcf"]),
        ({"objective": "objective: {eer: 1}"}, ["min_dcf"]),
        ({"objective": "objective: []"}, ["objective None", "min_dcf"]),
        ({"objective": "objective: [eer, min_dcf, eer]"}, ["objective eer", "once"]),
        (
            {"proxy": "proxy: {num_epochs: 2}"},
            ["proxy", "num_epochs", "number_of_epochs"],
        ),
        ({"pruner": "extra: 1"}, ["extra"]),
        ({"n_trials": "n_trials: [3"}, []),
    ],
)
def test_a_wrong_search_file_is_named(changes, words, tmp_path):
    path = written(tmp_path / "s.yaml", **changes)
    with pytest.raises(InputError) as caught:
        read_search(path, RECIPE, {})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_search_file_is_named():
    with pytest.raises(InputError, match="/no/such.yaml: No such file"):
        read_search("/no/such.yaml", RECIPE, {})


def test_the_objectives_of_the_command_line_count_first(tmp_path):
    path = written(tmp_path / "s.yaml")
    search = read_search(path, RECIPE, {}, ["eer", "n_parameters"])
    assert search.objectives == ("eer", "n_parameters")


SPACE = {
    "lr": optuna.distributions.FloatDistribution(0.0001, 0.01, log=True),
    "dropout": optuna.distributions.FloatDistribution(0.0, 0.3),
    "emb_dim": optuna.distributions.CategoricalDistribution((16, 64)),
}
GRID = "{lr: [0.001, 0.002], dropout: [0.0, 0.2, 0.3], emb_dim: [16, 64]}"


@pytest.mark.parametrize(
    "sampler",
    [
        "TPESampler {seed: !ref <sampler_seed>, multivariate: True}",
        "GPSampler {seed: !ref <sampler_seed>}",
        "CmaEsSampler {seed: !ref <sampler_seed>}",
        "RandomSampler {}",
        "GridSampler {search_space: " + GRID + "}",
    ],
)
@pytest.mark.parametrize(
    "pruner", ["MedianPruner {}", "HyperbandPruner {}", "NopPruner {}"]
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_and_pruners_of_optuna_learn_from_trials(sampler, pruner, tmp_path):
    """As many trials as they need to, the first with the defaults."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "sampler_seed: !PLACEHOLDER\n"
        f"sampler: !new:optuna.samplers.{sampler}\npruner: !new:optuna.pruners.{pruner}"
    )
    sampler, pruner = make_sampler_and_pruner(path, 1)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    enqueue_defaults(study, {"lr": 0.003, "dropout": 0.1, "emb_dim": 64})

    def objective(trial):
        values = suggest(trial, SPACE)
        error = abs(values["lr"] - 0.002) + values["dropout"] + values["emb_dim"] / 1000
        for epoch in (1, 2, 3):
            trial.report(error / epoch, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return error

    study.optimize(objective, n_trials=13)
    trials = study.trials
    assert trials[0].params == {"lr": 0.003, "dropout": 0.1, "emb_dim": 64}
    assert len(trials) == 13
    assert {t.state.name for t in trials} <= {"COMPLETE", "PRUNED"}
    assert len({tuple(t.params.values()) for t in trials}) == 13
    assert all(trial.distributions == SPACE for trial in trials)


def test_a_grid_of_one_beside_the_defaults(tmp_path):
    """Optuna's sampler takes every trial for one of its grid."""
    path = tmp_path / "s.yaml"
    path.write_text(
        "sampler_seed: 1\npruner: !new:optuna.pruners.NopPruner\n"
        "sampler: !new:optuna.samplers.GridSampler {search_space: {lr: [0.001]}}"
    )
    study = optuna.create_study(sampler=make_sampler_and_pruner(path, 1)[0])
    enqueue_defaults(study, {"lr": 0.003})
    for expected in (0.003, 0.001):
        study.optimize(lambda trial: suggest(trial, {"lr": SPACE["lr"]})["lr"], 1)
        assert study.trials[-1].params == {"lr": expected}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("n_trials: !ref <n>", "not JSON serializable"),
        ("n_trials: 2024-01-05", "not JSON serializable"),
        ("objective: null", "objective None: choose from eer"),
        ("objective: 3", "objective 3: choose from eer"),
    ],
)
def test_what_is_no_plain_value_is_one_line(line, words, tmp_path):
    path = written(tmp_path / "s.yaml", "{lr: {type: float, low: 0.001, high: 1.0}}")
    key = line.partition(":")[0]
    lines = [line if x.startswith(key) else x for x in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        read_search(path, RECIPE, {})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="s.yaml: is not UTF-8 text"):
        read_search(path, RECIPE, {})


@pytest.mark.parametrize("choice", ["[1, 2]", "{a: 1}"])
def test_choices_are_plain_values(choice, tmp_path):
    space = f"{{lr: {{type: categorical, choices: [0.002, {choice}]}}}}"
    path = written(tmp_path / "s.yaml", space)
    with pytest.raises(InputError, match="choices: .* is not a plain value"):
        read_search(path, RECIPE, {})


@pytest.mark.parametrize(
    "line",
    [
        "sampler: !new:optuna.samplers.TPESamplre {}",
        "sampler: !new:optuna.samplers.TPESampler {sed: 1}",
        "sampler: 3",
    ],
)
def test_a_wrong_sampler_is_one_line(line, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(f"sampler_seed: 1\n{line}\npruner: 3\n")
    with pytest.raises(InputError) as caught:
        make_sampler_and_pruner(path, 1)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
