import csv

import pytest

from local_modules.errors import RunError
from recipes.csv.prepare import prepare

COLUMNS = ("ID", "duration", "wav", "start", "stop", "spk_id")


def write(path, rows, columns=COLUMNS):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def rows(*speakers, root="$data_root", n=2):
    """As SpeechBrain's VoxCeleb recipe writes them, two stretches of each file."""
    return [
        (f"{s}--{u}_{a}", 0.6, f"{root}/wav/{s}/{u}.wav", a * 9600, (a + 1) * 9600, s)
        for s in speakers
        for u in range(n)
        for a in range(2)
    ]


@pytest.fixture
def filled(corpus):
    names = [f"s{n}" for n in range(8)]
    corpus.add(*[f"wav/{s}/{u}.wav" for s in names for u in range(2)], seconds=1.5)
    return corpus


@pytest.mark.parametrize("root", ["$data_root", "{data_root}", "${data_folder}", None])
def test_variables_and_absolute_paths(filled, root):
    root = root or str(filled.data)
    write(filled.data / "train.csv", rows(*[f"s{n}" for n in range(8)], root=root))
    prepare(str(filled.data), str(filled.save))
    splits = filled.splits()
    train = splits["train"]
    assert len(train) == 4 * 4
    assert {(row.start, row.stop) for row in train} == {(0, 9600), (9600, 19200)}
    assert all(row.path == f"wav/{row.speaker}/{row.id[4]}.wav" for row in train)
    assert len(splits["test"]) == 2 * 2  # one stretch of each file


def test_a_manifest_that_a_spreadsheet_has_marked_as_utf8(filled):
    write(filled.data / "train.csv", rows(*[f"s{n}" for n in range(8)]))
    text = (filled.data / "train.csv").read_bytes()
    (filled.data / "train.csv").write_bytes(b"\xef\xbb\xbf" + text)
    prepare(str(filled.data), str(filled.save))
    assert len(filled.splits()["train"]) == 4 * 4


def test_manifests_elsewhere_and_speechbrains_names(filled, tmp_path, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "manifests"
    folder.mkdir()
    whole = [
        (f"{s}--{u}", 1.5, f"$data_root/wav/{s}/{u}.wav", 0, 24000, s)
        for s in ("s6", "s7")
        for u in range(2)
    ]
    write(folder / "train.csv", rows(*[f"s{n}" for n in range(7)]))
    write(folder / "enrol.csv", whole[:3])
    write(folder / "test.csv", whole[1:])
    (folder / "trials.txt").write_text("1 s6--0 s6--1\n0 s6--0 wav/s7/1.wav\n")
    prepare(str(filled.data), str(filled.save), csv_folder=str(folder))
    assert {row.id for row in filled.splits()["test"]} == {row[0] for row in whole}
    assert filled.trials("test").test == ["wav/s6/1.wav", "wav/s7/1.wav"]
    assert "train: leaves 1 speakers, with 4 utterances, to test" in caplog.text


def test_other_columns_and_no_stretches(filled):
    write(
        filled.data / "train.csv",
        [(s, f"wav/s{s}/{u}.wav", f"{s}-{u}") for s in range(8) for u in range(2)],
        ("spk_id", "wav", "ID"),
    )
    prepare(str(filled.data), str(filled.save))
    row = filled.splits()["train"][0]
    assert (row.start, row.stop, row.duration) == (0, 24000, 1.5)


@pytest.mark.parametrize("last", ["tuesday", "", "monday"])
def test_drawn_targets_are_across_sessions_where_there_are_two(corpus, caplog, last):
    some = [
        (f"{s}-{u}", f"wav/{s}-{u}.wav", f"{s}", last if u == 2 else "monday")
        for s in range(6)
        for u in range(3)
    ]
    corpus.add(*[path for _, path, _, _ in some])
    write(corpus.data / "train.csv", some, ("ID", "wav", "spk_id", "session"))
    prepare(str(corpus.data), str(corpus.save))
    corpus.check_sessions(caplog, n_within=2 if last == "monday" else 0)


def test_own_valid_trials_choose_the_speakers_held_out(filled, tmp_path):
    folder = tmp_path / "manifests"
    folder.mkdir()
    write(folder / "train.csv", rows(*[f"s{n}" for n in range(8)]))
    text = "1 wav/s3/0.wav wav/s3/1.wav\n0 wav/s3/0.wav wav/s5/1.wav\n"
    (folder / "valid_trials.txt").write_text(text)
    prepare(str(filled.data), str(filled.save), csv_folder=str(folder))
    assert filled.speakers()["valid"] == {"s3", "s5"}
    assert (filled.save / "valid_trials.txt").read_text() == text


@pytest.mark.parametrize(
    ("longest", "stretches"),
    [(0, [(0, 12800), (12800, 17600)]), (1, [(0, 9600), (9600, 24000)])],
)
def test_a_trial_list_of_paths_means_the_longest_of_a_file(filled, longest, stretches):
    test = [
        (f"{s}--{u}_{a}", 0.6, f"$data_root/wav/{s}/{u}.wav", *stretch, s)
        for s in ("s6", "s7")
        for u in range(2)
        for a, stretch in enumerate(stretches)
    ]
    write(filled.data / "train.csv", rows(*[f"s{n}" for n in range(6)]))
    write(filled.data / "test.csv", test)
    text = "1 wav/s6/0.wav wav/s6/1.wav\n0 wav/s6/0.wav wav/s7/0.wav\n"
    (filled.data / "trials.txt").write_text(text)
    prepare(str(filled.data), str(filled.save), min_seconds=0.1)
    assert filled.trials("test").enrol == 2 * ["wav/s6/0.wav"]
    assert {row.id[-1] for row in filled.splits()["test"]} == {f"{longest}"}


@pytest.mark.parametrize(
    ("header", "row", "named"),
    [
        ("ID,wav", "1,2", "train.csv: has no column spk_id"),
        ("ID,wav,spk_id", "1,,2", "train.csv:2: lacks ID, wav or spk_id"),
        ("ID,wav,spk_id,start,stop", "1,a.wav,2,x,9", "start 'x' and stop '9' must be"),
        ("ID,wav,spk_id,start,stop", "1,a.wav,2,0,nan", "stop 'nan' must be samples"),
        ("ID,wav,spk_id,start,stop", "1,a.wav,2,inf,9", "start 'inf' and stop '9'"),
    ],
)
def test_bad_manifest(filled, header, row, named):
    (filled.data / "train.csv").write_text(f"{header}\n{row}\n")
    assert named in filled.failure(prepare)


def test_stretch_beyond_the_end_is_skipped(filled):
    some = rows(*[f"s{n}" for n in range(8)])
    some[0] = (*some[0][:3], 20000, 30000, "s0")
    write(filled.data / "train.csv", some)
    prepare(str(filled.data), str(filled.save), max_bad_share=0.1)
    (line,) = (filled.save / "skipped.csv").read_text().splitlines()[1:]
    assert "has no samples 20000 to 30000 (s0--0_0), only 24000" in line


def test_a_split_of_which_nothing_is_left_is_not_replaced(filled):
    """Even where that is little of the whole."""
    write(filled.data / "train.csv", rows(*[f"s{n}" for n in range(6)]))
    lost = rows("s6", "s7")
    write(
        filled.data / "test.csv",
        [(*row[:2], "$data_root/lost.wav", *row[3:]) for row in lost],
    )
    message = filled.failure(prepare, RunError, max_bad_share=1)
    assert "none of the recordings of the test split can be used" in message
    assert str(filled.save / "skipped.csv") in message


def test_ids_are_those_of_their_file(filled):
    """Such as the numbers of its rows."""
    for name, speakers in (("train", "012345"), ("test", "67")):
        some = rows(*[f"s{n}" for n in speakers])
        numbered = [(str(n), *row[1:]) for n, row in enumerate(some)]
        write(filled.data / f"{name}.csv", numbered)
    prepare(str(filled.data), str(filled.save))
    assert filled.speakers()["test"] == {"s6", "s7"}


def test_no_manifest(corpus):
    assert "has no train.csv" in corpus.failure(prepare)
