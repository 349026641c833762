import errno
import os

import pytest

from local_modules.errors import InputError
from local_modules.files import (
    check_writable,
    put_on_disk,
    remove_parts,
    replacing,
    writing_to,
)


def test_half_a_file_is_never_visible(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("binary", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path, binary):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path, binary) as file:
        file.write(b"new" if binary else "new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_kill_has_left_of_a_file_is_removed(tmp_path):
    names = [".a[1].txt.0f.part", ".a1.txt.0f.part", ".b.txt.0f.part", "a[1].txt"]
    for name in names:
        (tmp_path / name).write_text("")
    remove_parts(tmp_path / "a[1].txt")
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as slow:
        slow.write("slow")
        with replacing(path) as fast:
            fast.write("fast")
        assert path.read_text() == "fast"
    assert path.read_text() == "slow"


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.txt"):
        pass
    modes = {(tmp_path / name).stat().st_mode for name in ("plain", "a.txt")}
    assert len(modes) == 1


def test_it_is_on_the_disk_before_it_takes_its_place(tmp_path, unsynced):
    with replacing(tmp_path / "a.txt") as file:
        file.write("whole")
    assert unsynced == []


def test_a_file_of_others_is_on_the_disk_when_asked_for(tmp_path, unsynced):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    put_on_disk(tmp_path / "a")
    for name in ("a", "b"):
        os.replace(tmp_path / name, tmp_path / f"{name}.txt")
    assert unsynced == [tmp_path / "b"]


def test_a_folder_that_is_made_and_left_empty(tmp_path):
    check_writable(tmp_path / "new" / "folder")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "folder"]
    assert not any((tmp_path / "new" / "folder").iterdir())


def test_places_that_take_no_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    expected = f"{file}/a: can't be written: Not a"
    with pytest.raises(InputError, match=expected):
        check_writable(file / "a")
    with (
        pytest.raises(InputError, match=expected),
        writing_to(file / "a"),
        replacing(file / "a"),
    ):
        pass
    assert file.read_text() == "kept"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_mistake_of_a_persons(number, tmp_path):
    """And is told as such, with the place, by whoever started the program."""
    with pytest.raises(OSError) as error, writing_to(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert error.value.errno == number
    assert error.value.filename == f"{tmp_path / 'a'}"
