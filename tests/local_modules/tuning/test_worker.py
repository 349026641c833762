"""What a worker tells Optuna of a trial, and which trials its pruner sees."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from local_modules.errors import RunError, is_disk_full
from local_modules.training.checkpoints import WholeCheckpointer
from local_modules.tuning import storage
from local_modules.tuning import worker as module
from local_modules.tuning.storage import StorageGone
from local_modules.tuning.study import (
    ATTEMPTS,
    REASON,
    Turnstile,
    begin_attempt,
    live_trials,
    put_back,
)
from local_modules.tuning.worker import Worker
from tests.local_modules.tuning import quick_study
from tests.programs import Program

METRICS = {
    "valid": {"eer": 0.1, "min_dcf": 0.4},
    "n_parameters": 7,
    "train_seconds": 3.5,
}
ROWS = [
    {
        "epoch": epoch,
        "valid_eer": 0.2 / epoch,
        "valid_min_dcf": 0.8 - 0.1 * epoch,
        "train_accuracy": 0.5,
        "seconds": 30.0 * epoch,
        "budget_used": epoch / 2,
    }
    for epoch in (1, 2)
]


def train(hparams_file, run_opts, overrides, cache, on_epoch, test):
    """Two epochs, of half of the budget each."""
    for epoch in (1, 2):
        on_epoch(ROWS[:epoch])
    return METRICS


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function of a study's mishaps that begins it."""
    monkeypatch.setenv("MISHAPS", "")  # restored at the end
    return lambda **mishaps: quick_study.begin(tmp_path, None, 1, mishaps)


@pytest.mark.parametrize(
    ("objective", "value", "untrained", "by_epoch"),
    [
        ("eer", 0.1, 0.5, (0.2, 0.1)),
        ("min_dcf", 0.4, 1.0, (0.7, 0.6)),
        ("train_seconds", 3.5, 0.0, (30.0, 60.0)),
        ("n_parameters", 7.0, None, None),
    ],
)
def test_the_pruner_is_told_of_the_objective(
    objective, value, untrained, by_epoch, begun
):
    """At each tenth of the budget what was known then; nothing, where epochs don't
    tell."""
    job = begun()
    job = replace(job, search=replace(job.search, objectives=(objective,)))
    assert len(list(Worker(job, 0, train).run())) == 1
    (trial,) = live_trials(job.open_study()).values()
    assert trial.state == TrialState.COMPLETE and trial.value == value
    told = {}
    if by_epoch is not None:
        first, second = by_epoch
        told = dict.fromkeys(range(1, 5), untrained)
        told |= dict.fromkeys(range(5, 10), first) | {10: second}
    assert trial.intermediate_values == pytest.approx(told)


def test_a_trial_that_was_put_back_competes_once(begun):
    """With it and what it has been carried on with, .28 would not be among the better
    half."""
    halving = "SuccessiveHalvingPruner {min_resource: 1, reduction_factor: 2}"
    worker = Worker(begun(pruner=halving), 0, train)
    study = worker.study

    def is_pruned(eer):
        trial = study.ask()
        begin_attempt(study, trial)
        trial.report(eer, 1)
        return worker._should_prune(trial)

    is_pruned(0.26)
    Turnstile._fail(study, study.trials[0])
    put_back(study, study.trials[0])
    for eer in (0.26, 0.30, 0.31):
        is_pruned(eer)
    assert study.trials[1].system_attrs["retry_history"] == [0]
    assert not is_pruned(0.28)


def test_what_waits_beyond_a_smaller_number_of_trials_is_kept(begun):
    """Also where Optuna would have it before the others."""
    job = begun()
    study, space = job.open_study(), job.search.space
    for slot in (0, 1):
        assert begin_attempt(study, study.ask(space)) == slot
    for slot in (1, 0):
        Turnstile._fail(study, study.trials[slot])
        put_back(study, study.trials[slot])
    params = live_trials(study)[1].params
    checkpoint = job.folder / "trials" / "1" / "save" / "CKPT"
    checkpoint.mkdir(parents=True)
    list(Worker(job, 0, train).run())
    live = live_trials(study)
    assert [trial.state.name for trial in live.values()] == ["COMPLETE", "WAITING"]
    assert live[1].params == params and checkpoint.exists()
    list(Worker(replace(job, n_trials=2), 0, train).run())
    live = live_trials(study)
    assert [trial.state.name for trial in live.values()] == 2 * ["COMPLETE"]
    # Neither its killed process nor its turn too early is held against it twice.
    assert live[1].params == params and live[1].user_attrs[ATTEMPTS] == 2


def test_a_trial_that_another_process_does_not_let_go_of(begun, monkeypatch):
    """As one on a machine that is gone, whose file server keeps the lock."""
    monkeypatch.setattr(module, "SECONDS_TO_LET_GO", 0.1)
    job = begun()
    told = "trials/0: another process is training"
    with Turnstile(job.folder).trial_lock(0), pytest.raises(RunError, match=told):
        list(Worker(job, 0, train).run())
    (trial,) = live_trials(job.open_study()).values()
    assert trial.state == TrialState.WAITING
    assert len(list(Worker(job, 0, train).run())) == 1


def test_a_trial_is_not_to_blame_for_a_database_that_is_gone(
    server, tmp_path, monkeypatch
):
    """Also where it is back before the trial ends, as under torchrun."""
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 0.5)
    monkeypatch.setenv("MISHAPS", "")  # restored at the end

    def train_meanwhile(*args, on_epoch, **kwargs):
        with server.away():
            on_epoch(ROWS[:1])

    job = quick_study.begin(tmp_path, server.new_database(), 1)
    with pytest.raises(StorageGone, match="once it is back, the same command"):
        list(Worker(job, 0, train_meanwhile).run())
    (trial,) = live_trials(job.open_study()).values()
    assert trial.state == TrialState.WAITING


def test_a_database_gone_at_the_end_of_a_trial_and_back_soon(
    server, tmp_path, monkeypatch
):
    """Optuna then looks for an outcome that it could not get."""
    monkeypatch.setattr(storage, "OUTAGE_SECONDS", 0.5)
    monkeypatch.setenv("MISHAPS", "")  # restored at the end
    outage, recover = ExitStack(), Turnstile.recover

    def train_then_lose_it(*args, on_epoch, **kwargs):
        on_epoch(ROWS)
        outage.enter_context(server.away())
        return METRICS

    def recover_when_it_is_back(*args):
        outage.close()
        recover(*args)

    job = quick_study.begin(tmp_path, server.new_database(), 1)
    monkeypatch.setattr(Turnstile, "recover", recover_when_it_is_back)
    with pytest.raises(StorageGone, match="once it is back, the same command"):
        list(Worker(job, 0, train_then_lose_it).run())
    (trial,) = live_trials(job.open_study()).values()
    # Without a heartbeat, a later start puts it back.
    assert trial.state == TrialState.RUNNING and REASON not in trial.user_attrs


def save_on_a_full_disk(folder):
    (folder / "CKPT+full").mkdir()
    (folder / "CKPT+full" / "net.ckpt").symlink_to("/dev/full")
    checkpointer = WholeCheckpointer(folder, {"net": torch.nn.Linear(300, 300)})
    try:
        checkpointer.save_checkpoint(name="full")
    except RunError as error:
        return 0 if is_disk_full(error) else 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_checkpoint_without_room_is_no_doing_of_its_trial(tmp_path):
    program = Program(save_on_a_full_disk, tmp_path)
    output = program.output()
    assert program.status == 0, output
    assert not is_disk_full(RunError("the loss is not finite"))
