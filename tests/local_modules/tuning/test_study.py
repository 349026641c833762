"""Trials whose processes are killed, in a journal and in a real PostgreSQL."""

import os
import signal
import socket
import time
from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from local_modules.errors import InputError
from local_modules.tuning import study as module
from local_modules.tuning.storage import open_study
from local_modules.tuning.study import (
    ATTEMPTS,
    MAX_ATTEMPTS,
    REASON,
    SURPLUS,
    Turnstile,
    WithoutReplaced,
    begin_attempt,
    claim,
    enqueue_defaults,
    failure_reason,
    has_ended,
    is_surplus,
    live_trials,
    put_back,
)
from tests.local_modules.tuning import quick_study
from tests.programs import Program


@pytest.fixture
def study(tmp_path):
    return open_study(None, tmp_path, "s", 1)


def start(folder, storage, n_trials, n_workers, **mishaps):
    """Starts a study of quick trainings as a process group of its own."""
    return Program(quick_study.run, folder, storage, n_trials, n_workers, mishaps)


def ends(program):
    """Waits until such a study is complete."""
    output = program.output()
    assert program.status == 0, output


def finished(*args, **mishaps):
    """Runs such a study to its end."""
    ends(start(*args, **mishaps))


def outcome(folder, storage=None):
    """Live trials by slot, and the epochs that each slot's trainings ran."""
    live = live_trials(open_study(storage, folder, "quick", 1))
    ran = {
        number: [
            int(line)
            for line in (folder / "trials" / str(number) / "epochs_run")
            .read_text()
            .split()
        ]
        for number in live
    }
    return live, ran


@pytest.mark.parametrize(
    ("view", "is_pruned"),
    # Optuna alone sees .26 twice, and .28 is no longer among the better half.
    [(WithoutReplaced, False), (lambda study: study, True)],
)
def test_a_trial_that_was_put_back_competes_once(view, is_pruned, study):
    study.pruner = optuna.pruners.SuccessiveHalvingPruner(1, 2)

    def reach(eer):
        trial = study.ask()
        begin_attempt(study, trial)
        trial.report(eer, 1)
        return trial

    def prune(trial, study):
        reported = study._storage.get_trial(trial._trial_id)
        return study.pruner.prune(study, reported)

    prune(reach(0.26), study)
    Turnstile._fail(study, study.trials[0])
    put_back(study, study.trials[0])
    for eer in (0.26, 0.30, 0.31):
        prune(reach(eer), view(study))
    assert study.trials[1].system_attrs["retry_history"] == [0]
    assert prune(reach(0.28), view(study)) == is_pruned


def test_workers_of_two_machines_share_a_database(server, tmp_path):
    """Two starts with folders of their own, as on two machines."""
    url = server.new_database()
    one = start(tmp_path / "one", url, 8, 2, seconds=0.1)
    other = start(tmp_path / "other", url, 8, 1, seconds=0.1)
    ends(one)
    ends(other)
    live = live_trials(open_study(url, tmp_path, "quick", 1))
    assert list(live) == list(range(8))
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    places = [
        len(list(tmp_path.glob(f"*/trials/{number}/epochs_run"))) for number in live
    ]
    assert places == 8 * [1]
    assert len({trial.params["lr"] for trial in live.values()}) == 8


def test_a_killed_worker_of_a_database_is_noticed_by_its_heartbeat(server, tmp_path):
    url = server.new_database()
    finished(tmp_path, url, 4, 2, kill={"1": [2], "3": [4]}, seconds=0.1)
    live, ran = outcome(tmp_path, url)
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    assert list(live) == [0, 1, 2, 3]
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())


def test_a_database_restarted_in_mid_study(server, tmp_path):
    url = server.new_database()
    process = start(tmp_path, url, 6, 2, seconds=0.4)
    while not list(tmp_path.glob("trials/3/epochs_run")):
        time.sleep(0.05)
        assert process.status is None
    with server.away():
        time.sleep(3)
    ends(process)
    live, ran = outcome(tmp_path, url)
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    assert list(live) == list(range(6))
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())


def test_a_database_away_for_too_long_ends_the_study_and_costs_no_trial(
    server, tmp_path
):
    url, outage = server.new_database(), 5
    process = start(tmp_path, url, 6, 2, seconds=0.4, outage=outage)
    while not list(tmp_path.glob("trials/3/epochs_run")):
        time.sleep(0.05)
        assert process.status is None
    with server.away():
        begun = time.monotonic()
        output = process.output()
        seconds = time.monotonic() - begun
    assert process.status == 1
    told = "StorageGone: --storage: the database has been unavailable for 0 minutes ("
    last = output.strip().splitlines()[-1]
    assert told in last and last.endswith("back, the same command continues"), output
    assert seconds < 2.5 * outage  # waited for once, not by one query after the other
    for log in tmp_path.glob("logs/*.log"):
        assert "Traceback" not in log.read_text()
    finished(tmp_path, url, 6, 2)
    live, ran = outcome(tmp_path, url)
    assert list(live) == list(range(6))
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())


def test_each_trial_is_run_once_and_the_first_has_the_defaults(tmp_path):
    finished(tmp_path, None, 5, 2)
    live, ran = outcome(tmp_path)
    assert list(live) == [0, 1, 2, 3, 4]
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())
    assert live[0].params == {"lr": 0.0096}
    assert len({trial.params["lr"] for trial in live.values()}) == 5
    assert not list(tmp_path.glob("trials/*/save"))  # figures, not weights


def test_the_same_command_continues_with_new_values(tmp_path):
    finished(tmp_path, None, 3, 1)
    finished(tmp_path, None, 3, 1)  # nothing left
    finished(tmp_path, None, 6, 2)
    live, ran = outcome(tmp_path)
    assert list(live) == list(range(6))
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())
    # A sampler begun anew with the same seed would draw the first values again.
    assert len({trial.params["lr"] for trial in live.values()}) == 6


def test_a_killed_worker_costs_no_trial_and_no_epoch(tmp_path):
    finished(tmp_path, None, 6, 2, kill={"1": [2], "3": [1, 3], "5": [4]}, seconds=0.05)
    live, ran = outcome(tmp_path)
    assert list(live) == list(range(6))
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    # Each epoch once: what was done before the kill was kept.
    assert all(epochs == [1, 2, 3, 4] for epochs in ran.values())
    for trial in live.values():
        assert sorted(trial.intermediate_values) == list(range(1, 11))
    histories = [live[n].system_attrs.get("retry_history", []) for n in (0, 1, 3, 5)]
    assert [len(history) for history in histories] == [0, 1, 2, 1]


def test_a_trial_that_always_kills_its_process_fails_in_the_end(tmp_path):
    finished(tmp_path, None, 3, 1, always_kill=[1])
    live, ran = outcome(tmp_path)
    states = [live[n].state for n in range(3)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    # Its second epoch once with the first behind it, and then alone.
    assert ran[1] == [1] + (MAX_ATTEMPTS + 1) * [2]
    assert failure_reason(live[1]) == f"its process was killed {MAX_ATTEMPTS} times"


def test_a_trial_that_fails_says_why_and_the_study_goes_on(tmp_path):
    finished(tmp_path, None, 4, 1, **{"raise": [1], "nan": [2]})
    live, ran = outcome(tmp_path)
    assert [live[n].state.name for n in range(4)] == [
        "COMPLETE",
        "FAIL",
        "FAIL",
        "COMPLETE",
    ]
    assert failure_reason(live[1]) == "MemoryError: no room for this"
    assert "nan" in failure_reason(live[2])
    assert ran[1] == [1]


def test_three_failures_in_a_row_end_the_study_on_their_machine(tmp_path):
    """As where it lacks a folder; the last of them is tried again."""
    program = start(tmp_path, None, 8, 1, **{"raise": [1, 3, 4, 5]})
    output = program.output()
    assert program.status == 1
    told = f"3 trials in a row have failed on {socket.gethostname()}"
    assert output.rstrip().endswith(f"{told}: MemoryError: no room for this")
    live, ran = outcome(tmp_path)
    failed = {1: "FAIL", 3: "FAIL", 4: "FAIL"}
    states = {number: trial.state.name for number, trial in live.items()}
    assert states == {0: "COMPLETE", 2: "COMPLETE", 5: "WAITING", **failed}
    finished(tmp_path, None, 8, 1)
    live, ran = outcome(tmp_path)
    states = {number: trial.state.name for number, trial in live.items()}
    assert states == dict.fromkeys(range(8), "COMPLETE") | failed
    assert ran[5] == [1, 2, 3, 4]
    assert live[5].user_attrs[ATTEMPTS] == 1


def test_a_full_disk_ends_the_study_on_its_machine_and_costs_no_trial(tmp_path):
    program = start(tmp_path, None, 3, 1, full_disk={"1": 2})
    output = program.output()
    assert program.status == 1
    assert "rows.json: No space left on device; make room." in output.splitlines()[-1]
    live, ran = outcome(tmp_path)
    assert [trial.state.name for trial in live.values()] == ["COMPLETE", "WAITING"]
    finished(tmp_path, None, 3, 1)
    live, ran = outcome(tmp_path)
    assert [trial.state for trial in live.values()] == 3 * [TrialState.COMPLETE]
    assert ran[1] == [1, 2, 3, 4]


def test_a_trial_taken_for_dead_is_carried_on_with(tmp_path):
    """As after a sleep of the machine, or while a database was away."""
    finished(tmp_path, None, 3, 1, taken_for_dead={"1": 2})
    live, ran = outcome(tmp_path)
    assert [trial.state for trial in live.values()] == 3 * [TrialState.COMPLETE]
    assert ran[1] == [1, 2, 3, 4]


def test_a_grid_is_run_once(tmp_path):
    """Also by two, of whom one is free while the other has the last point."""
    grid = "GridSampler {search_space: {lr: [0.001, 0.0005]}}"
    for _ in range(2):
        finished(tmp_path, None, 9, 2, sampler=grid, seconds=0.3)
        live, _ = outcome(tmp_path)
        assert [t.params["lr"] for t in live.values()][0] == 0.0096
        assert sorted(t.params["lr"] for t in live.values()) == [0.0005, 0.001, 0.0096]
        assert {t.state for t in live.values()} == {TrialState.COMPLETE}


def test_a_grid_is_numbered_alike_by_all_who_draw_from_it(tmp_path):
    """Whatever seed its sampler is given by the search file."""
    points = [0.0001, 0.0002, 0.0004, 0.0008, 0.001, 0.002, 0.004]
    grid = f"GridSampler {{search_space: {{lr: {points}}}, seed: !ref <sampler_seed>}}"
    for n_trials, n_workers in ((3, 1), (5, 1), (99, 2)):
        finished(tmp_path, None, n_trials, n_workers, sampler=grid)
    own, *drawn = outcome(tmp_path)[0].values()
    assert own.params == {"lr": 0.0096}
    assert sorted(trial.params["lr"] for trial in drawn) == points


def test_all_are_compared_with_the_recipes_own_values(tmp_path):
    """Also after these have been cut off; they themselves are never pruned."""
    grid = "GridSampler {search_space: {lr: [0.0001]}}"
    halving = "SuccessiveHalvingPruner {min_resource: 2, reduction_factor: 2}"
    options = {"sampler": grid, "pruner": halving, "kill": {"0": [2]}}
    finished(tmp_path, None, 2, 1, **options)
    (own, other), _ = (list(live.values()) for live in outcome(tmp_path))
    assert own.system_attrs["retry_history"] == [0]
    assert own.state == TrialState.COMPLETE and other.state == TrialState.PRUNED
    assert other.last_step == 2  # where it is .0004 worse


def test_after_its_time_a_study_begins_no_trial_but_the_first(tmp_path):
    for _ in range(2):
        finished(tmp_path, None, 9, 1, late=True)
        live, _ = outcome(tmp_path)
        assert [trial.state for trial in live.values()] == [TrialState.COMPLETE]


def test_fewer_trials_and_more_again(tmp_path):
    """What was under way beyond the smaller number waits, and is carried on with."""
    start(tmp_path, None, 5, 1, interrupt={"3": 2}).output()
    live, ran = outcome(tmp_path)
    assert live[3].state == TrialState.WAITING and ran[3] == [1, 2]
    finished(tmp_path, None, 3, 1)
    live, ran = outcome(tmp_path)
    assert live[3].state == TrialState.WAITING and ran[3] == [1, 2]
    finished(tmp_path, None, 5, 1)
    live, ran = outcome(tmp_path)
    assert list(live) == [0, 1, 2, 3, 4]
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    assert ran[3] == [1, 2, 3, 4]


def test_ctrl_c_puts_the_trial_back_and_is_no_kill(tmp_path):
    process = start(tmp_path, None, 3, 1, interrupt={"1": 2})
    process.output()
    assert process.status != 0
    live, ran = outcome(tmp_path)
    assert live[1].state == TrialState.WAITING
    assert ran[1] == [1, 2]
    finished(tmp_path, None, 3, 1)
    live, ran = outcome(tmp_path)
    assert [trial.state for trial in live.values()] == 3 * [TrialState.COMPLETE]
    assert ran[1] == [1, 2, 3, 4]
    assert live[1].user_attrs[ATTEMPTS] == 1


@pytest.mark.parametrize("n_workers", [1, 3])
def test_everything_killed_at_once(n_workers, tmp_path):
    """SIGKILL to the whole process group, again and again."""
    # On a slow machine a trial may not get through an epoch between two of them.
    mishaps = {"seconds": 0.1, "attempts": 99}

    def n_epochs():
        paths = tmp_path.glob("trials/*/epochs_run")
        return sum(len(path.read_text().split()) for path in paths)

    for n_kills in range(4):
        wanted = n_epochs() + 3
        process = start(tmp_path, None, 8, n_workers, **mishaps)
        while n_epochs() < wanted:
            assert process.status is None, process.output()
            time.sleep(0.01)
        time.sleep(0.037 * n_kills)
        os.killpg(process.pid, signal.SIGKILL)
        process.output()
    finished(tmp_path, None, 8, n_workers, attempts=99)
    live, ran = outcome(tmp_path)
    assert list(live) == list(range(8))
    assert {trial.state for trial in live.values()} == {TrialState.COMPLETE}
    for epochs in ran.values():
        # A kill between an epoch and its saving repeats that epoch, no other.
        assert sorted(set(epochs)) == [1, 2, 3, 4] and epochs == sorted(epochs)


def test_a_trial_killed_before_its_first_heartbeat(server, tmp_path, monkeypatch):
    """The first one, another, and one that was put back: all may just have begun."""
    study = open_study(server.new_database(), tmp_path, "s", 1)
    enqueue_defaults(study, {"lr": 0.5})
    put_back_once = running(study)  # the first
    study.tell(put_back_once, state=TrialState.FAIL)
    Turnstile(tmp_path).recover(study)
    study.ask(), study.ask()
    turnstile = Turnstile(tmp_path)
    turnstile.recover(study)
    states = [trial.state for trial in live_trials(study).values()]
    assert states == 2 * [TrialState.RUNNING]
    monkeypatch.setattr(module, "BEGINNING_SECONDS", 0.0)
    # What another machine's clock says of their age counts for nothing.
    Turnstile(tmp_path).recover(study)
    states = [trial.state for trial in live_trials(study).values()]
    assert states == 2 * [TrialState.RUNNING]
    turnstile.recover(study)
    states = [trial.state for trial in live_trials(study).values()]
    assert states == 2 * [TrialState.WAITING]
    begun = running(study)  # has noted so, and is left to its heartbeat
    turnstile.recover(study), turnstile.recover(study)
    state = {t.number: t.state for t in study.trials}[begun.number]
    assert state == TrialState.RUNNING


def test_a_trial_about_to_be_put_back_has_not_ended(study):
    trial = running(study)
    study.tell(trial, state=TrialState.FAIL)
    assert not has_ended(study.trials[0])
    trial = running(study)
    trial.set_user_attr(REASON, "it was too hot")
    study.tell(trial, state=TrialState.FAIL)
    assert has_ended(study.trials[1])
    trial = running(study)
    trial.set_user_attr(ATTEMPTS, MAX_ATTEMPTS)
    study.tell(trial, state=TrialState.FAIL)
    assert has_ended(study.trials[2])


def running(study):
    """A trial under way, as a process that is gone has left it."""
    trial = study.ask()
    trial.suggest_float("lr", 0.0, 1.0)
    begin_attempt(study, trial)
    return trial


def test_a_trial_with_its_lock_held_is_left_alone(study, tmp_path):
    alive, dead = running(study), running(study)
    turnstile = Turnstile(tmp_path)
    with turnstile.trial_lock(alive.number):
        Turnstile(tmp_path).recover(study)
    live = live_trials(study)
    assert live[alive.number].state == TrialState.RUNNING
    assert live[dead.number].state == TrialState.WAITING
    assert live[dead.number].params == dead.params
    assert len(live) == 2


def test_recovering_twice_puts_back_once(study, tmp_path):
    running(study)
    Turnstile(tmp_path).recover(study)
    Turnstile(tmp_path).recover(study)
    assert Counter(trial.state.name for trial in study.trials) == {
        "FAIL": 1,
        "WAITING": 1,
    }


def test_failed_but_not_yet_put_back(study, tmp_path):
    """As a process leaves it that is killed between the two."""
    trial = running(study)
    study.tell(trial, state=TrialState.FAIL)
    Turnstile(tmp_path).recover(study)
    assert live_trials(study)[trial.number].state == TrialState.WAITING


def test_failed_with_a_reason_stays_so(study, tmp_path):
    trial = running(study)
    trial.set_user_attr(REASON, "it was too hot")
    study.tell(trial, state=TrialState.FAIL)
    Turnstile(tmp_path).recover(study)
    (live,) = live_trials(study).values()
    assert live.state == TrialState.FAIL
    assert failure_reason(live) == "it was too hot"


def test_one_trial_too_many_is_noticed(study):
    first, second = running(study), running(study)
    assert not is_surplus(study, first, 2) and not is_surplus(study, second, 2)
    assert not is_surplus(study, first, 1) and is_surplus(study, second, 1)
    second.set_user_attr(REASON, SURPLUS)
    study.tell(second, state=TrialState.FAIL)
    assert list(live_trials(study)) == [0]


def test_a_trial_put_back_by_two_is_run_by_one(study):
    dead = running(study)
    study.tell(dead, state=TrialState.FAIL)
    frozen = study.trials[0]
    module.put_back(study, frozen)
    module.put_back(study, frozen)
    one, other = study.ask(), study.ask()
    assert not is_surplus(study, one, 5) and is_surplus(study, other, 5)


def test_another_search_under_the_same_name_is_refused(study):
    claim(study, "settings", {"recipe": {"lr": 0.1, "seed": 1}, "objectives": ("eer",)})
    claim(study, "settings", {"recipe": {"lr": 0.1, "seed": 1}, "objectives": ("eer",)})
    with pytest.raises(InputError, match="recipe.lr 0.1, not 0.2"):
        claim(
            study,
            "settings",
            {"recipe": {"lr": 0.2, "seed": 1}, "objectives": ("eer",)},
        )
    with pytest.raises(InputError, match="recipe.seed 1, not nothing"):
        claim(study, "settings", {"recipe": {"lr": 0.1}, "objectives": ("eer",)})
    with pytest.raises(InputError, match="recipe.trials nothing, not None"):
        claim(
            study,
            "settings",
            {"recipe": {"lr": 0.1, "seed": 1, "trials": None}, "objectives": ("eer",)},
        )
    with pytest.raises(InputError, match="objectives"):
        claim(
            study,
            "settings",
            {"recipe": {"lr": 0.1, "seed": 1}, "objectives": ("min_dcf",)},
        )


def test_defaults_are_enqueued_once(study):
    enqueue_defaults(study, {"lr": 0.3})
    enqueue_defaults(study, {"lr": 0.3})
    trial = study.ask()
    assert trial.suggest_float("lr", 0.0, 1.0) == 0.3
    assert len(study.trials) == 1
