import pytest

from local_modules.errors import RunError
from recipes.librispeech.prepare import prepare


def utterances(subset, *speakers, home=""):
    """Two chapters of two utterances for each speaker."""
    return [
        f"{home}{subset}/{s}/{s}{c}/{s}-{s}{c}-{u:04d}.flac"
        for s in speakers
        for c in (1, 2)
        for u in (0, 1)
    ]


def prepared(corpus, **settings):
    prepare(str(corpus.data), str(corpus.save), **settings)
    return corpus.speakers()


@pytest.mark.parametrize("home", ["", "LibriSpeech/"])
def test_subsets(corpus, home):
    corpus.add(*utterances("train-clean-100", 103, 1034, home=home))
    corpus.add(*utterances("train-other-500", 20, 25, home=home))
    corpus.add(*utterances("dev-clean", 84, home=home))
    corpus.add(*utterances("dev-clean-2", 174, home=home))
    corpus.add(*utterances("dev-other", 116, home=home))
    corpus.add(*utterances("test-clean", 61, 121, home=home))
    (corpus.data / home / "SPEAKERS.TXT").write_text(";ID |SEX\n")
    assert prepared(corpus) == {
        "train": {"103", "1034", "20", "25"},
        "valid": {"84", "174"},
        "test": {"61", "121"},
    }
    row = corpus.splits()["test"][0]
    assert row.id == "121-1211-0000"
    for split in ("valid", "test"):
        trials = corpus.trials(split)
        assert trials.labels.sum() == 2 * 4
        for a, b, same in zip(trials.enrol, trials.test, trials.labels, strict=True):
            assert not same or a.split("/")[-2] != b.split("/")[-2]


def test_speakers_are_held_out_of_training_alone(corpus):
    corpus.add(*utterances("train-clean-100", *range(10, 20)))
    speakers = prepared(corpus, test_share=0.3)
    assert {split: len(found) for split, found in speakers.items()} == {
        "train": 5,
        "valid": 2,
        "test": 3,
    }


def test_a_speaker_in_both_parts(corpus, caplog):
    caplog.set_level("INFO")
    corpus.add(*utterances("train-clean-100", *range(10, 20), 61))
    corpus.add(*utterances("dev-clean", 84, 174))
    # Another chapter than that of training, as a chapter is in one subset only.
    corpus.add("test-clean/61/70968/61-70968-0000.flac")
    corpus.add("test-clean/61/70970/61-70970-0000.flac")
    corpus.add(*utterances("test-clean", 121))
    assert prepared(corpus)["test"] == {"61", "121"}
    assert "train: leaves 1 speakers, with 4 utterances, to test" in caplog.text


def test_one_session_each(corpus, caplog):
    corpus.add(*[f"train-clean-5/{s}/1/{s}-1-{u}.flac" for s in range(8) for u in "01"])
    prepared(corpus)
    assert "no speaker was recorded in two sessions" in caplog.text
    assert corpus.trials("test").labels.sum() == 2


def test_strangers(corpus):
    corpus.add(*utterances("train-clean-100", *range(10, 20)), "train-clean-100/x.wav")
    assert "x.wav, is not named train-" in corpus.failure(prepare, RunError)


def test_no_training_part(corpus):
    corpus.add(*utterances("dev-clean", 84, 174))
    assert "holds no train-*/" in corpus.failure(prepare)
