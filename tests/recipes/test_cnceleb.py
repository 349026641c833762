"""The names are those of cn-celeb_v2.tar.gz and cn-celeb2_v2.tar.gz."""

import pytest

from local_modules.errors import RunError
from recipes.cnceleb.prepare import prepare

GENRES = ("entertainment-01-001", "entertainment-01-002", "singing-01-001")
LIST = """\
id00800-enroll test/id00800-singing-01-005.wav 1
id00800-enroll test/id00801-live_broadcast-02-001.wav 0
id00801-enroll test/id00801-live_broadcast-02-001.wav 1
id00801-enroll test/id00800-singing-01-005.wav 0
"""


def write(corpus, home="CN-Celeb_flac", developers=8):
    home = corpus.data / home
    at = home.relative_to(corpus.data)
    names = [f"id{n:05d}" for n in range(developers)]
    corpus.add(*[f"{at}/data/{s}/{g}.flac" for s in names for g in GENRES])
    corpus.add(*[f"{at}/data/id0080{n}/{g}.flac" for n in (0, 1) for g in GENRES])
    corpus.add(*[f"{at}/eval/enroll/id0080{n}-enroll.flac" for n in (0, 1)])
    corpus.add(
        f"{at}/eval/test/id00800-singing-01-005.flac",
        f"{at}/eval/test/id00801-live_broadcast-02-001.flac",
    )
    (home / "dev").mkdir()
    (home / "dev/dev.lst").write_text("\n".join(names) + "\n")
    (home / "eval/lists").mkdir()
    (home / "eval/lists/trials.lst").write_text(LIST)
    (home / "eval/lists/enroll.map").write_text(
        "id00800-enroll id00800/singing-01-001.wav id00800/entertainment-01-001.wav\n"
    )


def prepared(corpus, **settings):
    prepare(str(corpus.data), str(corpus.save), **settings)
    return corpus.speakers()


@pytest.mark.parametrize("home", ["CN-Celeb_flac", "."])
def test_cnceleb1(corpus, home):
    write(corpus, home)
    speakers = prepared(corpus)
    assert speakers["test"] == {"id00800", "id00801"}
    assert speakers["train"] | speakers["valid"] == {f"id{n:05d}" for n in range(8)}
    trials = corpus.trials("test")
    assert trials.labels.tolist() == [True, False, True, False]
    assert trials.enrol[0].endswith("eval/enroll/id00800-enroll.flac")
    assert trials.test[0].endswith("eval/test/id00800-singing-01-005.flac")
    assert len(corpus.splits()["test"]) == 4  # not the raw recordings beside them


def test_a_list_with_a_byte_order_mark(corpus):
    write(corpus, ".")
    path = corpus.data / "dev/dev.lst"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    speakers = prepared(corpus)
    assert "id00000" in speakers["train"] | speakers["valid"]


def test_targets_of_validation_join_sessions(corpus):
    write(corpus)
    prepared(corpus)
    trials = corpus.trials("valid")
    assert trials.labels.sum() == 4  # of each speaker, the song with both others
    assert {
        a.split("/")[-1].split("-")[0] + b.split("/")[-1].split("-")[0]
        for a, b, same in zip(trials.enrol, trials.test, trials.labels, strict=True)
        if same
    } == {"entertainmentsinging"}


@pytest.mark.parametrize("home", ["CN-Celeb_flac", "."])
def test_with_cnceleb2(corpus, home):
    write(corpus, home)
    corpus.add(
        *[f"CN-Celeb2_flac/data/id1000{n}/{g}.flac" for n in range(4) for g in GENRES]
    )
    speakers = prepared(corpus)
    assert len(speakers["train"] | speakers["valid"]) == 12


def test_short_recordings_of_its_list_are_tested(corpus):
    write(corpus)
    path = corpus.data / "CN-Celeb_flac/eval/test/id00800-singing-01-005.flac"
    path.unlink()  # the others are the same file
    corpus.add(path.relative_to(corpus.data), seconds=0.3)
    assert prepared(corpus)["test"] == {"id00800", "id00801"}
    assert len(corpus.trials("test")) == 4


def test_a_speaker_in_both_parts(corpus, caplog):
    write(corpus)
    caplog.set_level("INFO")
    with open(corpus.data / "CN-Celeb_flac/dev/dev.lst", "a") as file:
        file.write("id00800\n")
    assert "id00800" in prepared(corpus)["test"]
    assert "train: leaves 1 speakers, with 3 utterances, to test" in caplog.text


def test_oddities(corpus):
    write(corpus)
    (corpus.data / "CN-Celeb_flac/eval/test/id00800-singing-01-005.flac").unlink()
    corpus.add("CN-Celeb_flac/data/id00003/singing-01-001.wav", "noise.wav")
    message = corpus.failure(prepare, RunError, max_bad_share=0.1)
    assert "1 of its 4 recordings can't be used" in message
    assert "test/id00800-singing-01-005.wav" in message
    prepared(corpus, max_bad_share=0.3)
    assert len(corpus.trials("test")) == 2
    skipped = (corpus.save / "skipped.csv").read_text()
    assert "id00003/singing-01-001.wav,has the ID of CN-Celeb_flac/data/id0" in skipped
    assert "noise.wav,lies in none of CN-Celeb's folders" in skipped


def test_what_is_no_cnceleb(corpus):
    corpus.add("data/id00000/singing-01-001.flac")
    assert "holds 0 files eval/lists/trials.lst" in corpus.failure(prepare)
    write(corpus)
    (corpus.data / "CN-Celeb_flac/dev/dev.lst").unlink()
    assert "dev.lst: cannot be read" in corpus.failure(prepare)
