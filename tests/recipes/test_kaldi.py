import os

import pytest
import soundfile

from local_modules.errors import InputError, RunError
from recipes.kaldi.prepare import prepare


def write(folder, n_speakers=8, prefix="s", lead="", n=2):
    """wav.scp and utt2spk of speakers with n recordings each."""
    folder.mkdir(exist_ok=True)
    utterances = [f"{prefix}{s}-{u}" for s in range(n_speakers) for u in range(n)]
    (folder / "wav.scp").write_text(
        "".join(f"{one} {lead}wav/{one}.wav\n" for one in utterances)
    )
    (folder / "utt2spk").write_text(
        "".join(f"{one} {one.split('-')[0]}\n" for one in utterances)
    )
    return [f"wav/{one}.wav" for one in utterances]


def test_one_folder(corpus):
    corpus.add(*write(corpus.data))
    prepare(str(corpus.data), str(corpus.save))
    rows = {row.id: row for part in corpus.splits().values() for row in part}
    assert len(rows) == 16
    row = rows["s3-1"]
    assert (row.path, row.speaker, row.stop) == ("wav/s3-1.wav", "s3", 9600)
    assert len(corpus.trials("test")) == 4


def test_files_with_a_byte_order_mark(corpus):
    corpus.add(*write(corpus.data))
    for name in ("wav.scp", "utt2spk"):
        path = corpus.data / name
        path.write_text(path.read_text(), encoding="utf-8-sig")
    prepare(str(corpus.data), str(corpus.save))
    assert "s0-0" in {row.id for part in corpus.splits().values() for row in part}


def test_recordings_that_may_not_fit_into_memory_are_told(corpus, caplog):
    corpus.add(*write(corpus.data), seconds=600, rate=400)
    prepare(str(corpus.data), str(corpus.save))
    for split, n in (("train", 8), ("valid", 4), ("test", 4)):
        told = f"{split}: {n} recordings are longer than 2 minutes, the longest has 10;"
        assert told in caplog.text


def test_absolute_paths_outside(corpus, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for path in write(corpus.data, lead=f"{elsewhere}/"):
        corpus.add(path)
        (elsewhere / path).parent.mkdir(parents=True, exist_ok=True)
        (corpus.data / path).rename(elsewhere / path)
    prepare(str(corpus.data), str(corpus.save))
    row = corpus.splits()["train"][0]
    assert row.path.startswith("../elsewhere/wav/")
    assert soundfile.info(corpus.data / row.path).frames == row.stop
    link = tmp_path / "link"
    link.symlink_to(corpus.data)
    with pytest.raises(Exception, match=f"is reached through a link.*{corpus.data}"):
        prepare(str(link), str(corpus.save))


def test_split_folders_and_their_trials(corpus, caplog):
    caplog.set_level("INFO")
    for name in ("train", "dev", "test"):
        corpus.add(*write(corpus.data / name, 3, name, f"{corpus.data}/"))
    (corpus.data / "test" / "trials").write_text(
        "test0-0 test0-1 target\ntest0-0 test1-0 nontarget\n"
    )
    prepare(str(corpus.data), str(corpus.save))
    assert corpus.speakers() == {
        "train": {"train0", "train1", "train2"},
        "valid": {"dev0", "dev1", "dev2"},
        "test": {"test0", "test1", "test2"},
    }
    trials = corpus.trials("test")
    assert trials.enrol == ["wav/test0-0.wav"] * 2
    assert trials.test == ["wav/test0-1.wav", "wav/test1-0.wav"]
    assert "train: leaves 0 speakers, with 0 utterances, to test" in caplog.text


def test_two_folders_for_one_split(corpus):
    for name in ("train", "valid", "dev"):
        corpus.add(*write(corpus.data / name, 3, name, f"{corpus.data}/"))
    with pytest.raises(InputError, match="has both valid/ and dev/; keep one of them"):
        prepare(str(corpus.data), str(corpus.save))


def test_trials_of_further_segments_of_a_file(corpus):
    for name in ("train", "dev", "test"):
        corpus.add(*write(corpus.data / name, 3, name, f"{corpus.data}/"))
    folder = corpus.data / "test"
    (folder / "segments").write_text(
        "".join(
            f"test{s}-{u}{part} test{s}-{u} {start} {stop}\n"
            for s in range(3)
            for u in range(2)
            for part, start, stop in (("a", 0.0, 0.3), ("b", 0.3, 0.55))
        )
    )
    (folder / "utt2spk").write_text(
        "".join(
            f"test{s}-{u}{part} test{s}\n"
            for s in range(3)
            for u in range(2)
            for part in "ab"
        )
    )
    (folder / "trials").write_text(
        "test0-0a test0-1b target\ntest0-0a test1-0a nontarget\n"
    )
    with pytest.raises(InputError) as error:
        prepare(str(corpus.data), str(corpus.save), min_seconds=0.1)
    assert (
        f"{folder / 'trials'}: 1 of its 3 recordings, such as test0-1b, share a file"
    ) in str(error.value)


def test_a_test_speaker_in_training_is_removed(corpus, caplog):
    caplog.set_level("INFO")
    corpus.add(*write(corpus.data / "train", 8, "s", f"{corpus.data}/"))
    corpus.add(*write(corpus.data / "test", 2, "t", f"{corpus.data}/"))
    for name, text in (("wav.scp", "t0-9 wav/t0-9.wav\n"), ("utt2spk", "t0-9 t0\n")):
        with open(corpus.data / "train" / name, "a") as file:
            file.write(text)
    corpus.add("wav/t0-9.wav")
    prepare(str(corpus.data), str(corpus.save))
    assert corpus.speakers()["test"] == {"t0", "t1"}
    assert "train: leaves 1 speakers, with 1 utterances, to test" in caplog.text


@pytest.mark.parametrize("last", ["tuesday", "monday"])
def test_drawn_targets_are_across_sessions_where_there_are_two(corpus, caplog, last):
    corpus.add(*write(corpus.data, 6, n=3))
    lines = [
        f"s{s}-{u} {last if u == 2 else 'monday'}\n" for s in range(6) for u in range(3)
    ]
    (corpus.data / "utt2session").write_text("".join(lines))
    prepare(str(corpus.data), str(corpus.save))
    corpus.check_sessions(caplog, n_within=2 if last == "monday" else 0)


def test_an_utterance_that_lacks_its_session_is_skipped(corpus):
    corpus.add(*write(corpus.data))
    path = corpus.data / "utt2session"
    path.write_text((corpus.data / "utt2spk").read_text().replace("s1-0 s1\n", ""))
    assert "1 of 16 audio files" in corpus.failure(prepare, RunError)
    prepare(str(corpus.data), str(corpus.save), max_bad_share=0.1)
    (line,) = (corpus.save / "skipped.csv").read_text().splitlines()[1:]
    assert line == f"wav/s1-0.wav,has no session: s1-0 is not in {path}"


def test_own_valid_trials_choose_the_speakers_held_out(corpus):
    corpus.add(*write(corpus.data))
    text = "1 wav/s3-0.wav wav/s3-1.wav\n0 wav/s3-0.wav wav/s5-1.wav\n"
    for own in (text, "s3-0 s3-1 target\ns3-0 s5-1 nontarget\n"):
        (corpus.data / "valid_trials.txt").write_text(own)
        prepare(str(corpus.data), str(corpus.save))
        assert corpus.speakers()["valid"] == {"s3", "s5"}
        assert (corpus.save / "valid_trials.txt").read_text() == text


def test_segments(corpus, caplog):
    """Of speakers held out, one stretch of each file is kept: trials name files."""
    corpus.add(*[f"wav/r{n}.wav" for n in range(16)], seconds=3, rate=8000)
    write(corpus.data)
    (corpus.data / "wav.scp").write_text(
        "".join(f"r{n} wav/r{n}.wav\n" for n in range(16))
    )
    lines = [
        f"s{n // 2}-{n % 2}{part} r{n} {start} {stop}\n"
        for n in range(16)
        for part, start, stop in (("a", 0.25, 1.0), ("b", 1.0, 2.5))
    ]
    (corpus.data / "segments").write_text("".join(lines))
    (corpus.data / "utt2spk").write_text(
        "".join(f"{line.split()[0]} {line.split('-')[0]}\n" for line in lines)
    )
    prepare(str(corpus.data), str(corpus.save))
    splits = corpus.splits()
    assert len(splits["train"]) == 4 * 4
    row = splits["train"][0]
    assert (row.id[-1], row.start, row.stop, row.duration) == ("a", 2000, 8000, 0.75)
    for split in ("valid", "test"):
        assert len(splits[split]) == 2 * 2
        assert all(row.id.endswith("b") for row in splits[split])
    assert "only the longest is kept: 4 of 8" in caplog.text


@pytest.mark.parametrize(
    ("name", "line", "named"),
    [
        ("wav.scp", "x sph2pipe -f wav x.sph |", "x is a command, sph2pipe -f"),
        ("wav.scp", "x data.ark:123", "x lies in an archive"),
        ("wav.scp", "x", "x has no value"),
        ("wav.scp", "s0-0 y.wav", "repeats s0-0"),
        ("utt2session", "s0-0", "s0-0 has no value"),
        ("segments", "x s0-0 0.0", "must be `utterance recording start end`"),
        ("segments", "x s0-0 0.0 nan", "must be `utterance recording start end`"),
    ],
)
def test_bad_line(corpus, name, line, named):
    corpus.add(*write(corpus.data))
    path = corpus.data / name
    n_lines = len(path.read_text().splitlines()) if path.exists() else 0
    with open(path, "a") as file:
        file.write(f"{line}\n")
    message = corpus.failure(prepare)
    assert message.startswith(f"{path}:{n_lines + 1}: ") and named in message


def test_what_is_missing_is_named(corpus):
    corpus.add(*write(corpus.data))
    os.unlink(corpus.data / "wav/s1-0.wav")
    with open(corpus.data / "wav.scp", "a") as file:
        file.write("mute wav/s0-0.wav\n")
    assert "2 of 17 audio files" in corpus.failure(prepare, RunError)
    prepare(str(corpus.data), str(corpus.save), max_bad_share=0.2)
    skipped = (corpus.save / "skipped.csv").read_text().splitlines()[1:]
    assert skipped[0] == "wav/s1-0.wav,does not exist"
    assert skipped[1].startswith("wav/s0-0.wav,has no speaker: mute is not in")


def test_what_only_utt2spk_has_is_named(corpus):
    corpus.add(*write(corpus.data))
    with open(corpus.data / "utt2spk", "a") as file:
        file.write("s0-8 s0\n")
    assert "1 of 17 audio files" in corpus.failure(prepare, RunError)
    prepare(str(corpus.data), str(corpus.save), max_bad_share=0.2)
    (line,) = (corpus.save / "skipped.csv").read_text().splitlines()[1:]
    lists = [corpus.data / name for name in ("utt2spk", "wav.scp")]
    assert line == f"s0-8,is in {lists[0]} and not in {lists[1]}"


def test_one_folder_beside_split_folders(corpus):
    corpus.add(*write(corpus.data), *write(corpus.data / "test", 3, "t"))
    message = corpus.failure(prepare)
    assert f"data_folder {corpus.data}: has wav.scp beside test/wav.scp" in message


def test_trials_of_paths_with_spaces(corpus):
    write(corpus.data)
    scp = corpus.data / "wav.scp"
    scp.write_text(scp.read_text().replace("wav/", "my wav/"))
    corpus.add(*[line.split(maxsplit=1)[1] for line in scp.read_text().splitlines()])
    text = "1 my wav/s3-0.wav my wav/s3-1.wav\n0 my wav/s3-0.wav my wav/s5-1.wav\n"
    (corpus.data / "valid_trials.txt").write_text(text)
    prepare(str(corpus.data), str(corpus.save))
    assert corpus.speakers()["valid"] == {"s3", "s5"}
    assert (corpus.save / "valid_trials.txt").read_text() == text


def test_no_kaldi_folder(corpus):
    assert "has neither wav.scp nor train/wav.scp" in corpus.failure(prepare)
    (corpus.data / "wav.scp").write_text("a b.wav\n")
    assert "utt2spk: cannot be read" in corpus.failure(prepare)
