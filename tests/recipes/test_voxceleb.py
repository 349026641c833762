"""The names are those of the archives: vox1_dev_wav, vox1_test_wav, vox2_dev_aac and
vox2_test_aac, unpacked into folders of their own."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from local_modules.errors import RunError
from recipes.voxceleb.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = ("1zcIwhmdeo4", "7gWzIy6yIIk")
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="ffmpeg is not installed"
)
LIST = """\
1 id10270/1zcIwhmdeo4/00001.wav id10270/7gWzIy6yIIk/00002.wav
0 id10270/1zcIwhmdeo4/00001.wav id10309/1zcIwhmdeo4/00001.wav
1 id10309/7gWzIy6yIIk/00001.wav id10309/1zcIwhmdeo4/00002.wav
0 id10309/7gWzIy6yIIk/00002.wav id10270/7gWzIy6yIIk/00001.wav
"""


def utterances(folder, *numbers, suffix="wav"):
    """Two videos with two utterances for each speaker."""
    return [
        f"{folder}/id{number:05d}/{video}/{utterance:05d}.{suffix}"
        for number in numbers
        for video in VIDEOS
        for utterance in (1, 2)
    ]


@pytest.fixture
def vox(corpus):
    """Eight training speakers of VoxCeleb1 and two test speakers."""
    corpus.add(*utterances("vox1/dev/wav", *range(10001, 10009)))
    corpus.add(*utterances("vox1/test/wav", 10270, 10309))
    (corpus.data / "veri_test2.txt").write_text(LIST)
    return corpus


def prepared(corpus, **settings):
    prepare(str(corpus.data), str(corpus.save), **settings)
    return corpus.speakers()


def test_voxceleb1(vox):
    speakers = prepared(vox)
    assert speakers["test"] == {"id10270", "id10309"}
    assert speakers["train"] | speakers["valid"] == {f"id1000{n}" for n in range(1, 9)}
    assert len(speakers["valid"]) == 2
    row = vox.splits()["test"][0]
    assert row.id == "id10270/1zcIwhmdeo4/00001"
    assert row.path == "vox1/test/wav/id10270/1zcIwhmdeo4/00001.wav"
    trials = vox.trials("test")
    assert trials.labels.tolist() == [True, False, True, False]
    assert trials.enrol[0] == row.path
    assert trials.test[0] == "vox1/test/wav/id10270/7gWzIy6yIIk/00002.wav"


def test_targets_of_validation_join_different_videos(vox):
    prepared(vox)
    trials = vox.trials("valid")
    targets = [
        (a.split("/")[-2], b.split("/")[-2])
        for a, b, same in zip(trials.enrol, trials.test, trials.labels, strict=True)
        if same
    ]
    assert len(targets) == 8  # of each speaker, two of one video by two of the other
    assert all(a != b for a, b in targets)


def test_one_folder_for_all_and_the_count_of_those_removed(vox, caplog):
    shutil.copytree(vox.data / "vox1/test/wav", vox.data / "wav")
    shutil.rmtree(vox.data / "vox1/test")
    with caplog.at_level("INFO"):
        speakers = prepared(vox)
    assert speakers["test"] == {"id10270", "id10309"}
    assert "train: leaves 2 speakers, with 8 utterances, to test" in caplog.text


def test_test_speakers_that_no_list_names_are_not_trained_on(vox):
    vox.add(*utterances("vox1/dev/wav", 10280))
    speakers = prepared(vox)
    assert "id10280" in speakers["test"]


def test_without_a_list_trials_are_drawn(vox):
    (vox.data / "veri_test2.txt").unlink()
    assert prepared(vox)["test"] == {"id10270", "id10309"}
    trials = vox.trials("test")
    assert trials.labels.sum() == 8


HARD = LIST + "0 id10001/1zcIwhmdeo4/00001.wav id10002/1zcIwhmdeo4/00001.wav\n"


def test_e_and_h_leave_nothing_of_voxceleb1_to_train_on(vox, tmp_path):
    vox.add(*utterances("vox2/dev/aac", *range(12, 20), suffix="flac"))
    path = tmp_path / "list_test_hard2.txt"
    path.write_text(HARD)
    message = vox.failure(prepare, trials=str(path))
    assert message.startswith(f"{path}: tests on speakers of all VoxCeleb1")
    for parts in ("2", "1+2"):
        speakers = prepared(vox, trials=str(path), parts=parts)
        assert speakers["test"] == {"id10270", "id10309"} | {
            f"id1000{n}" for n in range(1, 9)
        }
        assert speakers["train"] | speakers["valid"] == {
            f"id000{n}" for n in range(12, 20)
        }


def test_parts(vox, caplog):
    caplog.set_level("INFO")
    vox.add(*utterances("vox2/dev/aac", *range(12, 20), suffix="flac"))
    vox.add(*utterances("vox2/test/aac", 17, 61, suffix="flac"))
    of_1 = {f"id1000{n}" for n in range(1, 9)}
    of_2 = {f"id000{n}" for n in range(12, 20)}
    for parts, expected in ((1, of_1), (2, of_2), ("1+2", of_1 | of_2)):
        speakers = prepared(vox, parts=parts, max_bad_share=0.1)
        assert speakers["train"] | speakers["valid"] == expected
        assert speakers["test"] == {"id10270", "id10309"}
    assert "left out 4 utterances of VoxCeleb2's test" in caplog.text
    assert vox.failure(prepare, parts=3) == "parts is 3; it must be 1, 2 or 1+2"


def test_a_part_of_which_nothing_is_there(vox):
    vox.add(*utterances("vox2/test/aac", 17, 61, suffix="flac"))
    message = vox.failure(prepare, parts="1+2")
    assert "parts is 1+2, and there is nothing of VoxCeleb2 to train on" in message
    assert "only 8 utterances in a folder of its test; add VoxCeleb2 dev" in message
    shutil.rmtree(vox.data / "vox1/dev")
    assert "parts is 1, and there is nothing of VoxCeleb1" in vox.failure(prepare)


def test_the_test_of_voxceleb2_is_told_by_its_own_folder(vox):
    vox.add(*utterances("disk_test_1/vox2/dev/aac", 12, 13, 14, 15, suffix="flac"))
    vox.add(*utterances("disk_test_1/vox2_test_aac", 17, suffix="flac"))
    speakers = prepared(vox, parts=2)
    assert speakers["train"] | speakers["valid"] == {f"id000{n}" for n in range(12, 16)}


def test_a_recording_of_the_list_is_missing(vox, caplog):
    (vox.data / "vox1/test/wav/id10309/7gWzIy6yIIk/00002.wav").unlink()
    message = vox.failure(prepare, RunError)
    assert "veri_test2.txt: 1 of its 7 recordings can't be used" in message
    assert "id10309/7gWzIy6yIIk/00002.wav" in message
    prepared(vox, max_bad_share=0.2)
    assert len(vox.trials("test")) == 3
    assert "1 of 4 trials are left out" in caplog.text


def test_a_duplicate_and_a_stranger_are_named(vox):
    vox.add("copy/id10001/1zcIwhmdeo4/00001.wav", "musan/noise.wav")
    message = vox.failure(prepare, RunError)
    assert "2 of 42 audio files" in message
    prepared(vox, max_bad_share=0.1)
    skipped = (vox.save / "skipped.csv").read_text().splitlines()[1:]
    assert skipped == [
        "musan/noise.wav,is not named id10001/<video>/00001.wav",
        "vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav,"
        "has the ID of copy/id10001/1zcIwhmdeo4/00001.wav",
    ]


def test_names_of_the_first_release(vox):
    path = vox.data / "veri_test2.txt"
    path.write_text(
        "1 Eartha_Kitt/x6uYqmx31kE/0000001.wav Eartha_Kitt/8jEAjG6SegY/0000008.wav\n"
        "0 Eartha_Kitt/x6uYqmx31kE/0000001.wav Ezra_Miller/cnjBWJGk2yM/0000001.wav\n"
    )
    message = vox.failure(prepare)
    assert message.startswith(f"{path}: names Eartha_Kitt/")
    assert "use veri_test2.txt" in message


def test_no_test_speaker(corpus):
    corpus.add(*utterances("dev/aac", *range(12, 20), suffix="flac"))
    message = corpus.failure(prepare, parts=2)
    assert "id10270 to id10309" in message and "add vox1_test_wav" in message


def m4a(folder, source, *names):
    """Real AAC in MP4, as VoxCeleb2 has it."""
    made = folder / "made.m4a"
    command = ["ffmpeg", "-loglevel", "error", "-i", source, "-c:a", "aac", made]
    subprocess.run(command, check=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(made, folder / name)
    made.unlink()


@pytest.fixture
def vox2(vox):
    names = utterances("vox2/dev/aac", *range(12, 17), suffix="m4a")
    source = vox.data / "vox1/dev/wav/id10001/1zcIwhmdeo4/00001.wav"
    m4a(vox.data, source, *names)
    return vox


@needs_ffmpeg
def test_m4a_is_converted_once(vox2):
    broken = vox2.data / "vox2/dev/aac/id00012/1zcIwhmdeo4/00002.m4a"
    broken.unlink()  # the others are the same file
    broken.write_bytes(b"no MP4")
    original = utterances("vox2/dev/aac", 13)[0]
    vox2.add(original)  # somebody has converted this one already
    prepared(vox2, parts=2, max_bad_share=0.1)
    rows = {row.id: row for part in vox2.splits().values() for row in part}
    assert len(rows) == 8 + 19
    assert rows["id00013/1zcIwhmdeo4/00001"].path == original
    assert "id00012/1zcIwhmdeo4/00002" not in rows
    row = rows["id00012/1zcIwhmdeo4/00001"]
    assert row.path == "converted/id00012/1zcIwhmdeo4/00001.flac"
    header = soundfile.info(vox2.data / row.path)
    assert (header.samplerate, header.channels, header.format) == (16000, 1, "FLAC")
    assert row.duration == pytest.approx(0.6, abs=0.1)
    (skipped,) = (vox2.save / "skipped.csv").read_text().splitlines()[1:]
    assert skipped.startswith(
        "vox2/dev/aac/id00012/1zcIwhmdeo4/00002.m4a,cannot be converted: "
    )
    before = {p: p.stat().st_mtime_ns for p in vox2.data.rglob("*.flac")}
    written = (vox2.save / "prepared.json").stat().st_mtime_ns
    prepared(vox2, parts=2, max_bad_share=0.1)
    assert before == {p: p.stat().st_mtime_ns for p in vox2.data.rglob("*.flac")}
    assert (vox2.save / "prepared.json").stat().st_mtime_ns == written


@needs_ffmpeg
def test_m4a_that_decodes_in_part_is_skipped(vox2):
    path = vox2.data / "vox2/dev/aac/id00012/1zcIwhmdeo4/00002.m4a"
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 3
    content[middle : middle + 500] = 500 * b"\xff"
    path.unlink()  # the others are the same file
    path.write_bytes(content)
    prepared(vox2, parts=2, max_bad_share=0.1)
    (skipped,) = (vox2.save / "skipped.csv").read_text().splitlines()[1:]
    assert "00002.m4a,cannot be converted: " in skipped
    assert not (vox2.data / "converted/id00012/1zcIwhmdeo4/00002.flac").exists()


@needs_ffmpeg
def test_a_full_disk_is_no_bad_recording(vox2):
    part = vox2.data / "converted/id00013/1zcIwhmdeo4/.00001.flac.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(OSError) as error:
        prepared(vox2, parts=2)
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename.endswith("id00013/1zcIwhmdeo4/00001.flac")
    prepared(vox2, parts=2)  # the same command continues
    assert len(list(vox2.data.glob("converted/**/*.flac"))) == 20


@needs_ffmpeg
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_conversion_that_was_stopped_continues(vox2, how):
    command = (
        "from recipes.voxceleb.prepare import prepare;"
        f"prepare({str(vox2.data)!r}, {str(vox2.save)!r}, parts=2)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(vox2.data.glob("converted/**/*.flac")):
        assert run.poll() is None
        time.sleep(0.01)
    os.killpg(run.pid, how)  # as Ctrl-C does: no ffmpeg goes on writing
    assert run.wait() != 0
    done = {p: p.stat().st_ino for p in vox2.data.glob("converted/**/*.flac")}
    assert all(soundfile.info(path).frames for path in done)
    prepared(vox2, parts=2)
    after = {p: p.stat().st_ino for p in vox2.data.glob("converted/**/*.flac")}
    assert len(after) == 20
    assert done.items() <= after.items()
    assert not list(vox2.data.glob("converted/**/*.part"))


def test_no_ffmpeg(vox, monkeypatch):
    path = vox.data / utterances("vox2/dev/aac", 12, suffix="m4a")[0]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"AAC")
    monkeypatch.setenv("PATH", str(vox.data))
    message = vox.failure(prepare, parts=2)
    assert "1 recordings, such as vox2/dev/aac/id00012/" in message
    assert "ffmpeg is not on the PATH; install it" in message
    prepared(vox, parts=1)
