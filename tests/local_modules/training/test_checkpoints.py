"""Checkpoints under kills: of every file operation, and at moments of chance."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from local_modules.errors import exit_status
from local_modules.training.checkpoints import WholeCheckpointer
from local_modules.training.history import RunHistory
from tests.programs import Program

FORK = multiprocessing.get_context("fork")


def parts(size=8):
    """A checkpointer's recoverables whose state is one number."""
    net = torch.nn.Linear(size, size)
    return {"net": net, "other": torch.nn.Linear(2, 2), "history": RunHistory()}


def fill(recoverables, number):
    for part in ("net", "other"):
        torch.nn.init.constant_(recoverables[part].weight, number)
        torch.nn.init.constant_(recoverables[part].bias, number)
    recoverables["history"].epochs = [{"epoch": number, "valid_eer": 0.5}]


def save(checkpointer, recoverables, number):
    fill(recoverables, number)
    checkpointer.save_and_keep_only(
        meta={"number": number, "eer": 0.5}, min_keys=["eer"], importance_keys=[]
    )


def recovered(folder, size=8):
    """The number that a restart finds; fails unless all parts agree on it."""
    recoverables = parts(size)
    fill(recoverables, -1)
    checkpoint = WholeCheckpointer(folder, recoverables).recover_if_possible()
    number = checkpoint.meta["number"]
    for part in ("net", "other"):
        for value in recoverables[part].state_dict().values():
            assert torch.equal(value, torch.full_like(value, number))
    assert recoverables["history"].epochs[0]["epoch"] == number
    return number


def folders(folder):
    return sorted(path for path in folder.iterdir() if path.is_dir())


def run_killed(target, *args):
    """Whether a process of its own was killed in `target`."""
    process = FORK.Process(target=target, args=args)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def save_until_operation(folder, number, last_operation):
    """Saves once more, and dies before the given change of the folder."""
    recoverables = parts()
    checkpointer = WholeCheckpointer(folder, recoverables)
    n_seen = 0

    def count(event, args):
        nonlocal n_seen
        writes = event == "open" and str(folder) in str(args[0]) and args[1] == "w"
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            n_seen += 1
            if n_seen == last_operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    save(checkpointer, recoverables, number)


def test_killed_before_any_change(tmp_path):
    """Walks through one save, from its first change of the folder to its last, with
    a kill before each."""
    start = tmp_path / "start"
    recoverables = parts()
    checkpointer = WholeCheckpointer(start, recoverables)
    save(checkpointer, recoverables, 1)
    fill(recoverables, 99)  # an earlier kill's
    half = checkpointer.save_checkpoint(name="half")
    (half.path / "other.ckpt").unlink()

    found, n_broken = [], 0
    for operation in range(1, 100):
        folder = tmp_path / str(operation)
        shutil.copytree(start, folder)
        was_killed = run_killed(save_until_operation, folder, 2, operation)
        n_broken += len(folders(folder)) - len(
            WholeCheckpointer(folder).list_checkpoints()
        )
        found.append(recovered(folder))
        # Whatever a kill has left is gone after the next save.
        fill(recoverables, 3)
        save(WholeCheckpointer(folder, recoverables), recoverables, 3)
        assert recovered(folder) == 3
        assert len(folders(folder)) == 1
        if not was_killed:
            break
    assert len(found) > 15  # the walk was one
    assert found == sorted(found) and set(found) == {1, 2}
    assert n_broken > 5


def save_for_ever(folder, size):
    recoverables = parts(size)
    checkpointer = WholeCheckpointer(folder, recoverables)
    checkpoint = checkpointer.recover_if_possible()
    number = checkpoint.meta["number"] if checkpoint else 0
    while True:
        number += 1
        save(checkpointer, recoverables, number)


def test_killed_at_random_moments(tmp_path):
    """Also within the writing of a file, which is the longer the larger it is."""
    size = 700
    recoverables = parts(size)
    save(WholeCheckpointer(tmp_path, recoverables), recoverables, 1)
    latest = 1
    for repeat in range(12):
        process = FORK.Process(target=save_for_ever, args=(tmp_path, size))
        process.start()
        time.sleep(0.08 + 0.0137 * repeat)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        number = recovered(tmp_path, size)
        assert number >= latest
        latest = number
    assert latest > 1


@pytest.fixture
def checkpointer(tmp_path):
    return WholeCheckpointer(tmp_path, parts())


def test_every_file_has_to_be_there(checkpointer, tmp_path):
    older = checkpointer.save_checkpoint(meta={"n": 1})
    newer = checkpointer.save_checkpoint(meta={"n": 2})
    names = sorted(path.name for path in newer.path.iterdir())
    assert {"net.ckpt", "other.ckpt", "history.ckpt", "CKPT.yaml"} < set(names)
    for name in names:
        copy = tmp_path / "CKPT+copy"
        shutil.copytree(newer.path, copy)
        shutil.rmtree(newer.path)
        assert checkpointer.find_checkpoint().path == copy
        (copy / name).unlink()
        assert checkpointer.find_checkpoint().path == older.path
        (copy / name).touch()
        shutil.rmtree(copy)
        newer = checkpointer.save_checkpoint(meta={"n": 2})


def test_broken_folders_go_with_the_next_save(checkpointer, tmp_path):
    first = checkpointer.save_checkpoint(name="first")
    empty = tmp_path / "CKPT+empty"
    empty.mkdir()
    half = checkpointer.save_checkpoint(name="half")
    (half.path / "net.ckpt").unlink()
    (tmp_path / "plots").mkdir()  # no checkpoint: not ours to delete
    assert [c.path for c in checkpointer.list_checkpoints()] == [first.path]
    second = checkpointer.save_checkpoint(name="second")
    assert set(folders(tmp_path)) == {first.path, second.path, tmp_path / "plots"}


def test_keeps_the_best_and_the_latest(checkpointer):
    for number, eer in enumerate([0.4, 0.1, 0.3, 0.2], start=1):
        checkpointer.save_and_keep_only(
            meta={"number": number, "eer": eer}, min_keys=["eer"], importance_keys=[]
        )
        time.sleep(0.002)
    # What save_and_keep_only keeps on its own beside min_keys is SpeechBrain's affair:
    # `importance_keys=[]` and one checkpoint to keep.
    kept = {c.meta["number"] for c in checkpointer.list_checkpoints()}
    assert kept == {2, 4}
    assert checkpointer.find_checkpoint(min_key="eer").meta["number"] == 2
    assert checkpointer.find_checkpoint().meta["number"] == 4


def test_a_clock_that_is_behind_costs_no_checkpoint(checkpointer, monkeypatch):
    """Such as that of another machine, where a run is continued."""

    def save(number, **kind):
        checkpointer.save_and_keep_only(meta={"number": number, **kind})
        latest = WholeCheckpointer(checkpointer.checkpoints_dir).find_checkpoint()
        assert latest.meta["number"] == number

    save(1)
    with monkeypatch.context() as behind:
        behind.setattr(time, "time", lambda: 1e9)
        save(2)
        save(3)
        for number in (4, 5):  # within an epoch, as in SpeechBrain's Brain
            checkpointer.save_and_keep_only(
                meta={"number": number, "within": True},
                end_of_epoch=False,
                ckpt_predicate=lambda checkpoint: "within" in checkpoint.meta,
            )
            assert checkpointer.find_checkpoint().meta["number"] == number
    assert {c.meta["number"] for c in checkpointer.list_checkpoints()} == {3, 5}
    save(6)


def test_marker_lists_what_is_there(checkpointer):
    checkpoint = checkpointer.save_checkpoint()
    listed = json.loads((checkpoint.path / "complete.json").read_text())
    present = {path.name for path in checkpoint.path.iterdir()}
    assert set(listed) == present - {"complete.json"}


@pytest.mark.parametrize("name", ["net.ckpt", "complete.json"])
def test_what_a_power_cut_has_emptied_is_not_whole(checkpointer, name):
    older = checkpointer.save_checkpoint()
    newer = checkpointer.save_checkpoint()
    assert checkpointer.find_checkpoint().path == newer.path
    (newer.path / name).write_bytes(b"")
    assert checkpointer.find_checkpoint().path == older.path


def test_all_of_it_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """What comes last is the file that makes a folder a checkpoint."""
    on_disk, found, fsync, replace = set(), [], os.fsync, os.replace

    def noted_fsync(file):
        fsync(file)
        on_disk.add(os.fstat(file).st_ino)

    def noted_replace(source, target):
        files = Path(target).parent.iterdir()
        found.extend(path for path in files if path.stat().st_ino not in on_disk)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    WholeCheckpointer(tmp_path, parts()).save_checkpoint()
    assert on_disk and not found


def save_on_a_full_disk(folder):
    """Of the weights, which are more than a buffer holds; all else has room."""
    (folder / "CKPT+full").mkdir()
    (folder / "CKPT+full" / "net.ckpt").symlink_to("/dev/full")
    checkpointer = WholeCheckpointer(folder, parts(size=300))
    save = partial(checkpointer.save_checkpoint, name="full")
    return exit_status("train.py", save)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line_and_no_checkpoint(tmp_path):
    """In a process of its own: what fails is not Python's."""
    older = WholeCheckpointer(tmp_path, parts()).save_checkpoint()
    program = Program(save_on_a_full_disk, tmp_path)
    output = program.output()
    assert program.status == 1 and "Traceback" not in output, output
    (line,) = output.splitlines()
    assert line.startswith(f"train.py: {tmp_path}: a checkpoint can't be written: the ")
    assert line.endswith("); make room, and the same command continues")
    assert WholeCheckpointer(tmp_path).find_checkpoint().path == older.path
