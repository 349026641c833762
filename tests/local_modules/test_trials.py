import os
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from local_modules.errors import InputError
from local_modules.trials import (
    TrialList,
    draw_trials,
    draw_trials_within,
    read_enrolment,
    read_trials,
    write_trials,
)

KNOWN = {"ann/1.wav", "ann/2.wav", "bob/1.wav"}
GOOD = "1 ann/1.wav ann/2.wav\n0 ann/1.wav bob/1.wav\n"
PINNED = ["a0a2", "c0c1", "c0c2", "d0d2", "a0c0", "a0d1", "b1c2", "c0d0"]


def message_of(error):
    message = str(error.value)
    assert "\n" not in message
    return message


def pairs_of(trials):
    return list(zip(trials.enrol, trials.test, strict=True))


def targets_of(trials):
    pairs = zip(pairs_of(trials), trials.labels, strict=True)
    return {frozenset(pair) for pair, label in pairs if label}


def corpus(seed, n_speakers=12, n_max=9):
    rng = random.Random(seed)
    return {
        f"s{s}/{u}.wav": f"s{s}"
        for s in range(n_speakers)
        for u in range(rng.randint(1, n_max))
    }


def test_reads_what_it_wrote(tmp_path):
    trials = draw_trials(corpus(0), seed=1)
    write_trials(tmp_path / "t.txt", trials)
    again = read_trials(tmp_path / "t.txt", corpus(0))
    assert len(again) == len(trials) == len(trials.labels)
    assert again.labels.dtype == bool
    assert np.array_equal(again.labels, trials.labels)
    assert pairs_of(again) == pairs_of(trials)


def test_format(tmp_path):
    labels = np.array([True, False])
    trials = TrialList(labels, ["ann/1.wav"] * 2, ["ann/2.wav", "bob/1.wav"])
    write_trials(tmp_path / "t.txt", trials)
    assert (tmp_path / "t.txt").read_text() == GOOD
    assert os.listdir(tmp_path) == ["t.txt"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + GOOD,
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(" ", "\t"),
        GOOD.replace("\n", " \n\n"),
        GOOD.rstrip(),
    ],
    ids=["byte order mark", "Windows line ends", "tabs", "blank lines", "no end"],
)
def test_harmless_differences(tmp_path, text):
    path = tmp_path / "t.txt"
    path.write_bytes(text.encode())
    trials = read_trials(path, KNOWN)
    assert trials.labels.tolist() == [True, False]
    assert trials.test == ["ann/2.wav", "bob/1.wav"]


def test_names_with_spaces(tmp_path):
    known = {"Ann Lee/take 1.wav", "Ann Lee/take 2.wav", "bob/1.wav"}
    labels = np.array([True, False])
    trials = TrialList(
        labels, ["Ann Lee/take 1.wav"] * 2, ["Ann Lee/take 2.wav", "bob/1.wav"]
    )
    write_trials(tmp_path / "t.txt", trials)
    assert pairs_of(read_trials(tmp_path / "t.txt", known)) == pairs_of(trials)


def test_names_with_spaces_by_what_is_a_name(tmp_path):
    (tmp_path / "t.txt").write_text("1 a b c.wav\n0 a b d\na e f nontarget\n")
    bad_lines = []
    trials = read_trials(
        tmp_path / "t.txt",
        bad_lines=bad_lines,
        is_name={"a b", "c.wav", "a", "e f"}.__contains__,
    )
    assert pairs_of(trials) == [("a b", "c.wav"), ("a", "e f")]
    (bad_line,) = bad_lines
    assert bad_line.startswith(f"{tmp_path / 't.txt'}:2: has 4 columns; ")


def test_names_with_spaces_that_can_be_parted_in_two_ways(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(GOOD + "1 a b c\n")
    with pytest.raises(InputError) as error:
        read_trials(path, KNOWN | {"a", "b c", "a b", "c"})
    assert f"{path}:3: has 4 columns" in message_of(error)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("2 ann/1.wav ann/2.wav", "label is '2'; it must be 1"),
        ("target ann/1.wav ann/2.wav", "label is 'target'"),
        ("ann/1.wav ann/2.wav 2", "label is 'ann/1.wav'"),
        ("1 ann/1.wav", "has 2 columns; it must be `label enrol_path test_path`"),
        ("1", "has 1 columns"),
        ("1 ann/1.wav ann/2.wav 0.7", "has 4 columns"),
        ("1 ann/1.wav ann/3.wav", "ann/3.wav is not in this split"),
        ("1 /data/ann/1.wav ann/2.wav", "/data/ann/1.wav is not in this split"),
        ("1 ./ann/1.wav ann/2.wav", "data folder, such as ann/1.wav"),
    ],
)
def test_bad_line(tmp_path, line, named):
    path = tmp_path / "t.txt"
    path.write_text(f"{GOOD}{line}\n")
    with pytest.raises(InputError) as error:
        read_trials(path, KNOWN)
    assert message_of(error).startswith(f"{path}:3: ")
    assert named in message_of(error)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1 ann/1.wav ann/2.wav\n", "has no non-target trial (label 0) among 1"),
        ("0 ann/1.wav bob/1.wav\n", "has no target trial (label 1) among 1"),
        ("\n", "has no target trial (label 1) among 0"),
        (b"\xff\xfe\x00", "cannot be read as a trial list"),
    ],
)
def test_useless_list(tmp_path, text, named):
    path = tmp_path / "t.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        read_trials(path, KNOWN)
    assert str(path) in message_of(error)
    assert named in message_of(error)


def test_missing_list(tmp_path):
    with pytest.raises(InputError) as error:
        read_trials(tmp_path / "none.txt", KNOWN)
    assert "none.txt: cannot be read as a trial list" in message_of(error)


@pytest.mark.parametrize("seed", range(20))
def test_drawn_trials_are_sound(seed):
    speaker_of = corpus(seed)
    trials = draw_trials(speaker_of, seed)
    unordered = [frozenset(pair) for pair in pairs_of(trials)]
    assert all(len(pair) == 2 for pair in unordered), "a recording against itself"
    assert len(set(unordered)) == len(unordered), "a pair twice"
    truth = [speaker_of[a] == speaker_of[b] for a, b in pairs_of(trials)]
    assert trials.labels.tolist() == truth
    possible = sum(
        speaker_of[a] == speaker_of[b] for a, b in combinations(speaker_of, 2)
    )
    assert trials.labels.sum() == possible
    assert (~trials.labels).sum() == possible


@pytest.mark.parametrize("seed", range(5))
def test_trials_within_groups_are_those_of_each_group_by_itself(seed):
    speaker_of = corpus(seed)
    speakers = sorted(set(speaker_of.values()))
    group_of = {path: f"{speakers.index(s) % 3}" for path, s in speaker_of.items()}
    trials = draw_trials_within(speaker_of, group_of, seed)
    assert all(group_of[a] == group_of[b] for a, b in pairs_of(trials))
    truth = [speaker_of[a] == speaker_of[b] for a, b in pairs_of(trials)]
    assert trials.labels.tolist() == truth and 0 < trials.labels.sum() < len(trials)
    for group in set(group_of.values()):
        members = {p: s for p, s in speaker_of.items() if group_of[p] == group}
        found = [pair for pair in pairs_of(trials) if group_of[pair[0]] == group]
        try:
            assert found == pairs_of(draw_trials(members, seed))
        except InputError:
            assert not found


def test_no_trials_within_groups():
    speaker_of = {"a/1": "a", "a/2": "a", "b/1": "b"}
    with pytest.raises(InputError, match="within 2 groups: none has two speakers"):
        draw_trials_within(speaker_of, speaker_of, 1)


@pytest.mark.parametrize("seed", range(5))
def test_dict_order_is_immaterial(seed):
    items = list(corpus(seed).items())
    trials = draw_trials(dict(items), seed)
    random.Random(seed).shuffle(items)
    assert pairs_of(draw_trials(dict(items), seed)) == pairs_of(trials)


def test_seed_matters():
    drawn = [pairs_of(draw_trials(corpus(0), seed, 30)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_draw_of_this_version_is_that_of_every_other():
    speaker_of = {f"{s}{u}": s for s in "abcd" for u in range(3)}
    trials = draw_trials(speaker_of, seed=1986, n_max_target=4)
    assert [a + b for a, b in pairs_of(trials)] == PINNED


@pytest.mark.parametrize("n_max_target", [1, 7, 50])
def test_cap(n_max_target):
    trials = draw_trials(corpus(3), 1, n_max_target)
    assert trials.labels.sum() == (~trials.labels).sum() == n_max_target


def test_the_capped_draw_is_uniform():
    """Each of 18 + 12 pairs is drawn in a share of the seeds that chance allows."""
    speaker_of = {f"{s}{u}": s for s in "abc" for u in range(4)}
    n_seeds, n_drawn = 2000, 6
    counts = Counter(
        pair
        for seed in range(n_seeds)
        for pair in pairs_of(draw_trials(speaker_of, seed, n_drawn))
    )
    for same, n_pairs in ((True, 18), (False, 48)):
        p = n_drawn / n_pairs
        found = [n for (a, b), n in counts.items() if (a[0] == b[0]) == same]
        assert len(found) == n_pairs
        tolerance = 5 * (n_seeds * p * (1 - p)) ** 0.5
        assert max(abs(n - n_seeds * p) for n in found) < tolerance


def with_sessions(seed):
    speaker_of, rng = corpus(seed), random.Random(seed)
    return speaker_of, {path: f"day{rng.randint(1, 3)}" for path in speaker_of}


@pytest.mark.parametrize("seed", range(10))
def test_targets_join_different_sessions(seed):
    speaker_of, session_of = with_sessions(seed)
    trials = draw_trials(speaker_of, seed, session_of=session_of)
    drawn = {frozenset(pair) for pair in pairs_of(trials)}
    assert len(drawn) == len(trials)
    targets = targets_of(trials)
    assert targets == {
        frozenset((a, b))
        for a, b in combinations(speaker_of, 2)
        if speaker_of[a] == speaker_of[b] and session_of[a] != session_of[b]
    }
    assert all(speaker_of[a] != speaker_of[b] for a, b in map(tuple, drawn - targets))


@pytest.mark.parametrize("seed", range(5))
def test_targets_within_groups_join_different_sessions(seed):
    speaker_of, session_of = with_sessions(seed)
    rng = random.Random(seed)
    group_of = {path: rng.choice("fm") for path in speaker_of}
    trials = draw_trials_within(speaker_of, group_of, seed, session_of)
    assert all(group_of[a] == group_of[b] for a, b in pairs_of(trials))
    assert targets_of(trials) == {
        frozenset((a, b))
        for a, b in combinations(speaker_of, 2)
        if speaker_of[a] == speaker_of[b]
        and session_of[a] != session_of[b]
        and group_of[a] == group_of[b]
    }


def test_no_group_has_two_sessions_of_a_speaker():
    speaker_of = {"a/1": "a", "a/2": "a", "b/1": "b"}
    one = dict.fromkeys(speaker_of, "one")
    with pytest.raises(InputError, match="with two recordings of two sessions"):
        draw_trials_within(speaker_of, one, 1, session_of=one)


def test_sessions_of_single_recordings_change_nothing():
    speaker_of = corpus(4)
    own = {path: path for path in speaker_of}
    assert pairs_of(draw_trials(speaker_of, 1, 30, own)) == pairs_of(
        draw_trials(speaker_of, 1, 30)
    )


def test_no_speaker_has_two_sessions():
    speaker_of = {"a1": "a", "a2": "a", "b1": "b"}
    with pytest.raises(InputError, match="none of 2 speakers has two utterances of"):
        draw_trials(speaker_of, 1, session_of=dict.fromkeys(speaker_of, "day1"))


def test_fewer_nontargets_where_there_are_no_more():
    speaker_of = {f"a{u}": "a" for u in range(5)} | {"b0": "b"}
    trials = draw_trials(speaker_of, 1)
    assert trials.labels.sum() == 10
    assert (~trials.labels).sum() == 5


def test_a_lone_utterance_serves_as_nontarget():
    trials = draw_trials({"a0": "a", "a1": "a", "b0": "b"}, 1)
    targets = {n for n, same in zip(trials.enrol, trials.labels, strict=True) if same}
    assert targets == {"a0"}
    assert "b0" in trials.test


@pytest.mark.parametrize(
    ("speaker_of", "expected"),
    [
        ({"a0": "a", "b0": "b"}, "none of 2 speakers has two utterances"),
        ({}, "none of 0 speakers has two utterances"),
        ({"a0": "a", "a1": "a"}, "a is the only speaker"),
    ],
)
def test_no_trial_possible(speaker_of, expected):
    with pytest.raises(InputError) as error:
        draw_trials(speaker_of, 1)
    assert expected in message_of(error)


@pytest.mark.parametrize("labels", [("target", "nontarget"), ("1", "0")])
def test_labels_at_the_end(tmp_path, labels):
    (tmp_path / "t.txt").write_text(
        f"ann/1.wav ann/2.wav {labels[0]}\n\nann/1.wav bob/1.wav {labels[1]}\n"
    )
    for known in (KNOWN, None):
        trials = read_trials(tmp_path / "t.txt", known)
        assert trials.labels.tolist() == [True, False]
        assert pairs_of(trials) == [
            ("ann/1.wav", "ann/2.wav"),
            ("ann/1.wav", "bob/1.wav"),
        ]
        assert trials.lines == [1, 3]


def test_a_model_of_kaldi_may_be_called_like_a_label(tmp_path):
    (tmp_path / "t.txt").write_text("1 a.wav nontarget\n0 b.wav target\n")
    trials = read_trials(tmp_path / "t.txt")
    assert trials.labels.tolist() == [False, True]
    assert pairs_of(trials) == [("1", "a.wav"), ("0", "b.wav")]


def test_a_list_without_a_line_of_use_says_why(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("1,a,b\n0,a,c\n")
    with pytest.raises(InputError) as error:
        read_trials(path, bad_lines=[])
    assert f"among 0; an error rate needs both kinds; left out: {path}:1: label is" in (
        message_of(error)
    )


def test_lines_of_no_use_are_collected_with_their_numbers(tmp_path):
    bad = "2 a b\n1 a\n1 a b c\na b maybe\n"
    (tmp_path / "t.txt").write_text("1 x y\n" + bad + "0 x z\n")
    complaints = []
    trials = read_trials(tmp_path / "t.txt", bad_lines=complaints)
    assert trials.lines == [1, 6] and pairs_of(trials) == [("x", "y"), ("x", "z")]
    assert [text.split(": ")[0] for text in complaints] == [
        f"{tmp_path / 't.txt'}:{number}" for number in (2, 3, 4, 5)
    ]
    with pytest.raises(InputError) as error:
        read_trials(tmp_path / "t.txt")
    assert str(error.value) == complaints[0]


def test_enrolment(tmp_path):
    path = tmp_path / "enrol.txt"
    path.write_text("m1 a.wav b.wav\n\nm2\tc.wav\nm1 d.wav\n")
    assert read_enrolment(path) == {"m1": ["a.wav", "b.wav", "d.wav"], "m2": ["c.wav"]}
    for text, words in (("", "holds no model"), ("m1 a\nm2\n", ":2: m2 has no")):
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_enrolment(path)
    with pytest.raises(InputError, match="none.txt: cannot be read"):
        read_enrolment(tmp_path / "none.txt")


def test_the_order_of_recordings_does_not_order_the_groups():
    speakers = {f"{s}/{u}": s for s in "abcd" for u in "123"}
    groups = {path: "m" if path[0] in "ab" else "f" for path in speakers}
    one = draw_trials_within(speakers, groups, 1)
    other = draw_trials_within(dict(reversed(speakers.items())), groups, 1)
    assert pairs_of(one) == pairs_of(other)


def test_an_enrolment_list_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "enrolment.txt"
    path.write_text("\ufeffann a.wav b.wav\n", encoding="utf-8")
    assert read_enrolment(path) == {"ann": ["a.wav", "b.wav"]}
