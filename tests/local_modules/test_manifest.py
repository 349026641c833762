import csv
import os

import pytest
from speechbrain.dataio.dataio import load_data_csv

from local_modules.errors import InputError
from local_modules.manifest import (
    Utterance,
    check_splits,
    read_manifest,
    spread_utterances,
    write_manifest,
)

ODD_NAMES = ['an, n/a "b".wav', "ünal/x y.wav", "李/一.flac", "o'neil/#1.ogg"]


def utterance(path, speaker=None, duration=1.5, stop=24000):
    speaker = speaker or path.split("/")[0]
    return Utterance(os.path.splitext(path)[0], duration, path, 0, stop, speaker)


def message_of(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def test_reads_what_it_wrote(tmp_path):
    rows = [utterance(name, duration=1 / 3) for name in ODD_NAMES]
    write_manifest(tmp_path / "a.csv", rows)
    assert read_manifest(tmp_path / "a.csv") == sorted(rows, key=lambda u: u.id)


def test_speechbrain_reads_it(tmp_path):
    write_manifest(tmp_path / "a.csv", [utterance(name) for name in ODD_NAMES])
    data = load_data_csv(tmp_path / "a.csv", {"data_root": "/data"})
    assert {row["wav"] for row in data.values()} == {f"/data/{n}" for n in ODD_NAMES}
    assert data["ünal/x y"] == {
        "duration": 1.5,
        "wav": "/data/ünal/x y.wav",
        "start": "0",
        "stop": "24000",
        "spk_id": "ünal",
    }


def test_order_does_not_depend_on_input(tmp_path):
    rows = [utterance(name) for name in ODD_NAMES]
    write_manifest(tmp_path / "a.csv", rows)
    write_manifest(tmp_path / "b.csv", reversed(rows))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    write_manifest(path, [utterance("ann/1.wav")])
    before = path.read_bytes()

    def rows():
        yield utterance("bob/1.wav")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(path, rows())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.csv"]


GOOD_ROW = ["ann/1", "1.5", "$data_root/ann/1.wav", "0", "24000", "ann"]


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        (1, "long", "duration 'long'"),
        (3, "", "start ''"),
        (4, "1.5", "stop '1.5'"),
        (2, "/data/ann/1.wav", "wav is '/data/ann/1.wav'; it must begin with $data_"),
    ],
)
def test_malformed_row(tmp_path, column, value, named):
    path = tmp_path / "a.csv"
    bad = [*GOOD_ROW[:column], value, *GOOD_ROW[column + 1 :]]
    bad[0] = "ann/2"
    with open(path, "w", newline="") as file:
        header = ["ID", "duration", "wav", "start", "stop", "spk_id"]
        csv.writer(file).writerows([header, GOOD_ROW, bad])
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert f"{path}:3" in message_of(error)
    assert named in message_of(error)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("ID,duration,wav,start,stop\n", "has no column spk_id"),
        ("", "has no column ID, duration"),
        ("ID,duration,wav,start,stop,spk_id\nann/1,1.5\n", "wav is ''"),
        (
            "ID,duration,wav,start,stop,spk_id\n" + (",".join(GOOD_ROW) + "\n") * 2,
            "repeats ID ann/1",
        ),
        (b"\xff\xfe", "cannot be read as a manifest"),
    ],
)
def test_no_manifest(tmp_path, text, named):
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert str(path) in message_of(error)
    assert named in message_of(error)


def test_missing_manifest(tmp_path):
    with pytest.raises(InputError) as error:
        read_manifest(tmp_path / "none.csv")
    assert "none.csv: cannot be read" in message_of(error)


ANN, BOB, CAY, DAN = (utterance(f"{name}/1.wav") for name in ("ann", "bob", "cay", "d"))


def test_splits_that_are_fit():
    check_splits({"train": [ANN, BOB], "valid": [CAY, DAN]})


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (
            {"train": [ANN, BOB], "valid": [CAY, DAN], "test": [DAN, ANN]},
            "speaker ann is in both train and test",
        ),
        ({"train": [ANN, BOB], "valid": [CAY, CAY]}, "valid has one speaker, cay"),
        ({"train": [ANN, BOB], "test": []}, "test has no utterances"),
    ],
)
def test_splits_that_are_not(splits, expected):
    with pytest.raises(InputError) as error:
        check_splits(splits)
    assert expected in message_of(error)


def test_spread_utterances_do_not_depend_on_the_order():
    speaker_of = {f"{s}/{n}": s for s in "ab" for n in range(9)}
    found = spread_utterances(speaker_of, 3)
    assert found == {f"{s}/{n}" for s in "ab" for n in (0, 3, 6)}
    assert spread_utterances(dict(reversed(speaker_of.items())), 3) == found


def test_spaces_behind_commas_are_no_part_of_a_manifest(tmp_path):
    """As SpeechBrain reads them."""
    path = tmp_path / "train.csv"
    path.write_text(
        "ID, duration, wav, start, stop, spk_id\n"
        "a, 1.5, $data_root/a.wav, 0, 24000, ann\n"
    )
    (row,) = read_manifest(path)
    assert (row.path, row.speaker, row.stop) == ("a.wav", "ann", 24000)
