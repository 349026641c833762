"""The processes of a study: what they find when they begin, and that the last one's
death is no end."""

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch
from optuna.trial import TrialState

from local_modules.errors import RunError
from local_modules.tuning import supervisor
from tests.local_modules.tuning import quick_study


@pytest.mark.parametrize(
    ("n_cores", "n_workers", "n_threads"), [(16, 3, "5"), (2, 4, "1")]
)
def test_workers_share_the_cores(n_cores, n_workers, n_threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(supervisor, "cpu_count", lambda: n_cores)
    with supervisor._environment(0, n_workers, True):
        assert os.environ["OMP_NUM_THREADS"] == n_threads
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # a person's own wish
    with supervisor._environment(0, n_workers, True):
        assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("named", "deals", "expected"),
    [
        (None, True, ["0", "1", "0", "1"]),
        ("4,6", True, ["4", "6", "4", "6"]),
        ("4,6", False, ["4,6"] * 4),
    ],
)
def test_gpus_are_dealt_round(named, deals, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for index in range(4):
        with supervisor._environment(index, 4, deals):
            found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == expected
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == named


def test_the_only_worker_dies_while_its_study_is_shown(tmp_path, monkeypatch):
    """Between two looks, when nobody watches the process."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(supervisor, "CONTEXT", fork)
    monkeypatch.setenv("MISHAPS", "")  # restored at the end
    job = quick_study.begin(tmp_path, None, 3, {"seconds": 0.2})
    running = supervisor.run_workers(job, 1, quick_study.train)
    killed = False
    for live in running:
        is_running = any(t.state == TrialState.RUNNING for t in live.values())
        if is_running and not killed:
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
            killed = True
    assert killed
    assert [trial.state for trial in live.values()] == 3 * [TrialState.COMPLETE]


@pytest.mark.parametrize(
    ("end", "status", "n_deaths"),
    [
        # Killed, as where memory is short, it is replaced, but not for ever.
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9, supervisor.MAX_DEATHS + 1),
        (lambda: os._exit(130), 130, supervisor.MAX_DEATHS + 1),
        (lambda: os._exit(3), 3, 1),
    ],
    ids=["killed", "told to stop", "by itself"],
)
def test_workers_that_die_before_they_begin_a_trial_end_the_study(
    end, status, n_deaths, tmp_path, monkeypatch
):
    deaths = tmp_path / "deaths"

    def die(job, index, train, stop):
        with open(deaths, "a") as file:
            file.write("x")
        end()

    monkeypatch.setattr(supervisor, "CONTEXT", multiprocessing.get_context("fork"))
    monkeypatch.setattr(supervisor, "SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(supervisor, "run_process", die)
    monkeypatch.setenv("MISHAPS", "")  # restored at the end
    job = quick_study.begin(tmp_path / "study", None, 3)
    running = supervisor.run_workers(job, 1, quick_study.train)
    with pytest.raises(RunError) as error:
        for _ in running:
            assert len(deaths.read_text() if deaths.exists() else "") <= n_deaths
    log = supervisor.log_file(job, 0)
    assert log.parent == job.folder / "logs"
    told = f"worker 0 has ended (status {status}); {log} says why"
    assert str(error.value) == f"{job.folder}: {told}"
    assert len(deaths.read_text()) == n_deaths


def test_a_second_ctrl_c_waits_for_no_worker(capsys):
    fork = multiprocessing.get_context("fork")
    worker = fork.Process(target=time.sleep, args=(60,))
    with supervisor._interrupts_ignored():
        worker.start()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        supervisor._end([worker])
    assert worker.exitcode == -signal.SIGKILL
    assert capsys.readouterr().err.startswith("Stopping at a checkpoint; ")
