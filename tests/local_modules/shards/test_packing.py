"""Packing: against tarfile, the source files and a run that nobody disturbs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from itertools import groupby
from pathlib import Path

import pytest

from local_modules.errors import InputError
from local_modules.shards.index import read_index
from local_modules.shards.packing import pack
from recipes import make_shards

ROOT = Path(__file__).parents[3]


def shards_of(packed):
    return read_index(packed.folder / "train.json", "index")[1]


def arguments(packed, folder):
    """Of the command line that packs the same."""
    command = [folder, "--manifests", packed.manifest, "--data_folder", packed.data]
    return [*map(str, command), "--per_shard", "6"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def test_the_index_finds_what_tarfile_finds(packed):
    found = []
    for shard in shards_of(packed):
        with tarfile.open(packed.folder / shard.name) as tar:
            # WebDataset: a sample is a run of files of one name up to its first dot.
            samples = groupby(tar.getmembers(), lambda m: m.name.partition(".")[0])
            for _, (about, audio) in samples:
                about = json.load(tar.extractfile(about))
                found.append((about["id"], about["spk_id"], about["duration"]))
                content = shard.members[about["id"]].read(packed.folder / shard.name)
                assert content == tar.extractfile(audio).read()
    given = [(u.id, u.speaker, u.duration) for u in packed.utterances]
    assert sorted(found) == sorted(given)
    assert [row[0] for row in found] != sorted(u.id for u in packed.utterances)


def test_flac_where_nothing_is_lost_and_original_bytes_on_demand(packed, tmp_path):
    whole = {u.id: u for u in packed.utterances if u.id.endswith("-0")}
    originals = pack(packed.manifest, packed.data, tmp_path, 100, original=True)
    for folder, shards in ((packed.folder, shards_of(packed)), (tmp_path, originals)):
        n_kept = 0
        for shard in shards:
            for utt_id in whole.keys() & shard.members.keys():
                content = shard.members[utt_id].read(folder / shard.name)
                source = (packed.data / whole[utt_id].path).read_bytes()
                n_kept += content == source
                assert content == source or content[:4] == b"fLaC"
        # Two kinds of six become FLAC, unless it's forbidden.
        assert n_kept == (len(whole) if folder == tmp_path else len(whole) * 4 // 6)


def test_the_command_in_a_process_of_its_own(packed, tmp_path):
    """Beside it lies a folder called csv, which is not Python's."""
    script = ROOT / "recipes" / "make_shards.py"
    command = [sys.executable, str(script), *arguments(packed, tmp_path / "shards")]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert {path.name for path in (tmp_path / "shards").glob("*.tar")} == {
        path.name for path in packed.folder.glob("*.tar")
    }


KILLS_ITSELF = """
import os, signal, sys, tarfile
from recipes import make_shards

n_left = int(sys.argv.pop(1))
add = tarfile.TarFile.addfile

def add_and_die(self, *args):
    global n_left
    n_left -= 1
    if not n_left:
        self.fileobj.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, *args)

tarfile.TarFile.addfile = add_and_die
make_shards.main(sys.argv[1:])
"""


def test_a_killed_packer_continues_to_the_same_bytes(packed, tmp_path, capsys):
    folder = tmp_path / "shards"
    killed = subprocess.run(
        [sys.executable, "-c", KILLS_ITSELF, "30", *arguments(packed, folder)],
        cwd=ROOT,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    kept = sorted(path.name for path in folder.glob("*.tar"))
    assert kept == ["train-000000.tar", "train-000001.tar"]
    assert make_shards.main([str(folder), "--verify"]) == 2
    assert "not finished" in capsys.readouterr().err
    times = [os.stat(folder / name).st_mtime_ns for name in kept]
    assert list(folder.glob(".*.part"))
    assert make_shards.main(arguments(packed, folder)) == 0
    assert not list(folder.glob(".*.part"))
    assert times == [os.stat(folder / name).st_mtime_ns for name in kept]
    assert contents(folder) == contents(packed.folder)


@pytest.mark.parametrize("where", ["audio", "end"])
def test_verify_finds_a_flipped_bit(where, packed, tmp_path, capsys):
    folder = tmp_path / "shards"
    shutil.copytree(packed.folder, folder)
    assert make_shards.main([str(folder), "--verify"]) == 0
    shard = shards_of(packed)[2]
    utt_id, member = list(shard.members.items())[3]
    content = bytearray((folder / shard.name).read_bytes())
    content[member.offset + member.size // 2 if where == "audio" else -1] ^= 1
    (folder / shard.name).write_bytes(content)
    capsys.readouterr()
    assert make_shards.main([str(folder), "--verify"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(folder / shard.name))
    assert (utt_id in line) == (where == "audio")
    (folder / shards_of(packed)[0].name).unlink()
    assert make_shards.main([str(folder), "--verify"]) == 1
    assert "No such file" in capsys.readouterr().out
    # Packing again makes what is missing, and takes no damage for the truth.
    assert make_shards.main(arguments(packed, folder)) == 0
    assert contents(folder) == contents(packed.folder)


def test_shards_of_another_manifest_are_not_mixed(packed, capsys):
    other = [*arguments(packed, packed.folder), "--seed", "1"]
    assert make_shards.main(other) == 2
    assert "train.json: shards of another manifest" in capsys.readouterr().err


def test_an_unreadable_recording_is_named_and_left_out(packed, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(packed.data, data)
    broken = packed.utterances[-1]
    (data / broken.path).write_bytes(b"no audio")
    shards = tmp_path / "shards"
    command = [str(shards), "--manifests", str(packed.manifest)]
    command += ["--data_folder", str(data)]
    assert make_shards.main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert broken.path in error and "max_bad_share" in error
    assert make_shards.main([*command, "--max_bad_share", "0.05"]) == 0
    _, (shard,) = read_index(shards / "train.json", "index")
    assert {u.id for u in packed.utterances} - shard.members.keys() == {broken.id}


def test_recordings_that_are_repaired_are_packed(packed, tmp_path, capsys):
    data, broken = tmp_path / "data", packed.utterances[0]
    shutil.copytree(packed.data, data)
    (data / broken.path).write_bytes(b"no audio")
    shards = tmp_path / "shards"
    command = [str(shards), "--manifests", str(packed.manifest), "--per_shard", "7"]
    command += ["--data_folder", str(data)]
    assert make_shards.main(command) == 1
    kept = {path: path.stat().st_mtime_ns for path in shards.glob("*.tar")}
    assert len(kept) > 1  # what lacks none
    shutil.copy(packed.data / broken.path, data / broken.path)
    assert make_shards.main(command) == 0
    _, found = read_index(shards / "train.json", "index")
    members = [utt_id for shard in found for utt_id in shard.members]
    assert sorted(members) == sorted(u.id for u in packed.utterances)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "not an index"),
        ('{"settings": {}, "shards": [{"name": "a"}]}', "sha256"),
        ('{"settings": {}, "shards": [{"name": "a.tar", "sha256": "../x", '
         '"members": {}}]}', "not a SHA-256"),
    ],
)  # fmt: skip
def test_what_is_no_index_is_one_line(content, words, tmp_path):
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_index(tmp_path / "train.json", "train.json")
