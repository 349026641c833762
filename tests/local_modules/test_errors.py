"""What a person is told."""

from pathlib import Path

import pytest

from local_modules.errors import InputError, RunError, exit_status


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_one_line(capsys):
    def write():
        with open("/dev/full", "w") as file:
            file.write("much")

    assert exit_status("sing.py", write, "Sing again.") == 1
    assert capsys.readouterr().err == (
        "sing.py: No space left on device; make room. Sing again.\n"
    )


def test_what_is_no_mistake_of_a_persons_is_a_traceback():
    with pytest.raises(IsADirectoryError):
        exit_status("sing.py", lambda: Path("/").read_text())


@pytest.mark.parametrize("stopped", ["Sing again.", ""])
def test_ctrl_c_is_one_line_and_status_130(stopped, capsys):
    def sing():
        raise KeyboardInterrupt

    assert exit_status("sing.py", sing, stopped) == 130
    shown = capsys.readouterr()
    assert shown.err == f"\nStopped. {stopped}".rstrip() + "\n" and not shown.out


@pytest.mark.parametrize(
    ("error", "n_lines"), [(InputError, 1), (RunError, 3), (KeyboardInterrupt, 2)]
)
def test_what_all_ranks_of_a_machine_meet_is_told_once(
    error, n_lines, monkeypatch, capsys
):
    """But not how a run has failed, which may be one rank's alone."""

    def sing():
        raise error("hoarse")

    for rank in ("0", "1", "2"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert exit_status("sing.py", sing) > 0
    shown = capsys.readouterr().err
    assert shown.count("\n") == n_lines and ("hoarse" in shown) == (n_lines != 2)
