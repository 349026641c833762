"""The backend: what it makes of embeddings, and that its sides can be exchanged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from local_modules.errors import InputError
from local_modules.evaluation import backend as module
from local_modules.evaluation.backend import (
    Backend,
    Recordings,
    cohort_backend,
    cosines,
    fit_backend,
)
from local_modules.evaluation.calibration import Calibration
from local_modules.metrics import cllr, equal_error_rate, min_cllr
from local_modules.trials import TrialList


def population(n_speakers, n_utterances, seed, dim=16, spread=0.8):
    """Embeddings around speakers, all of them around a common mean that says nothing;
    short recordings spread more."""
    rng = torch.Generator().manual_seed(seed)
    speakers = torch.randn(n_speakers, dim, generator=rng)
    common = torch.full((dim,), 1.2)
    seconds = 1 + 4 * torch.rand(n_speakers * n_utterances, generator=rng)
    noise = torch.randn(n_speakers * n_utterances, dim, generator=rng)
    own = speakers.repeat_interleave(n_utterances, dim=0)
    vectors = own + common + spread * noise / seconds.sqrt().unsqueeze(1) * 2
    return vectors, seconds.double().numpy()


def named(prefix, n_speakers, n_utterances):
    return [f"{prefix}{s}/{u}" for s in range(n_speakers) for u in range(n_utterances)]


def all_trials(names):
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    labels = np.array([a.split("/")[0] == b.split("/")[0] for a, b in pairs])
    return TrialList(labels, [a for a, _ in pairs], [b for _, b in pairs])


@pytest.fixture(scope="module")
def backend():
    valid, seconds = population(30, 6, seed=1)
    names = named("v", 30, 6)
    training, _ = population(120, 4, seed=2)
    train_names = named("t", 120, 4)
    return fit_backend(
        dict(zip(names, valid, strict=True)),
        dict(zip(names, seconds, strict=True)),
        {name: name.split("/")[0] for name in names},
        all_trials(names),
        dict(zip(train_names, training, strict=True)),
        {name: name.split("/")[0] for name in train_names},
    )


@pytest.fixture(scope="module")
def test_trials():
    vectors, seconds = population(40, 5, seed=3)
    trials = all_trials(named("x", 40, 5))
    rows, columns = np.triu_indices(200, 1)
    return Recordings(vectors, seconds), rows, columns, trials.labels


def eer(scores, labels):
    return equal_error_rate(scores[labels], scores[~labels])[0]


def test_every_way_is_better_than_the_one_before_it(backend, test_trials):
    recordings, rows, columns, labels = test_trials
    plain = cosines(recordings, recordings, rows, columns).numpy()
    found = backend.scores(recordings, recordings, rows, columns)
    names = ["PLDA", "mean subtracted", "S-norm", "AS-norm", "calibrated"]
    assert list(found) == names
    assert eer(found["mean subtracted"], labels) < eer(plain, labels)
    assert eer(found["PLDA"], labels) < eer(plain, labels)
    assert eer(found["calibrated"], labels) < eer(found["AS-norm"], labels) + 0.002
    pair = found["calibrated"][labels], found["calibrated"][~labels]
    assert cllr(*pair) < min_cllr(*pair) + 0.05


def test_cosines_are_those_of_single_embeddings(test_trials):
    recordings, rows, columns, _ = test_trials
    sides = (recordings.embeddings[side] for side in (rows, columns))
    expected = torch.nn.functional.cosine_similarity(*sides)
    found = cosines(recordings, recordings, rows, columns)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_sides_can_be_exchanged(backend, test_trials):
    recordings, rows, columns, _ = test_trials
    forth = backend.scores(recordings, recordings, rows, columns)
    back = backend.scores(recordings, recordings, columns, rows)
    for name in forth:
        np.testing.assert_allclose(forth[name], back[name], atol=1e-4)


def units_and_strangers(backend, recordings):
    """Centred embeddings of length one, and their cosines with the cohort, the nearest
    last."""
    centred = (recordings.embeddings - backend.mean).double().numpy()
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return units, np.sort(units @ backend.cohort.double().numpy().T, axis=1)


@pytest.mark.parametrize(("way", "n_taken"), [("AS-norm", 20), ("S-norm", 120)])
def test_as_norm_takes_the_nearest_of_the_cohort_alone_and_s_norm_all(
    way, n_taken, backend, test_trials, monkeypatch
):
    monkeypatch.setattr(module, "TOP_K", 20)
    recordings, rows, columns, _ = test_trials
    found = backend.scores(recordings, recordings, rows, columns)[way]
    units, strangers = units_and_strangers(backend, recordings)
    assert strangers.shape == (200, 120)
    taken = strangers[:, -n_taken:]
    for n in (0, 777, -1):
        one, other = rows[n], columns[n]
        raw = units[one] @ units[other]
        sides = [(raw - taken[i].mean()) / taken[i].std(ddof=1) for i in (one, other)]
        assert found[n] == pytest.approx(np.mean(sides), rel=1e-3, abs=1e-4)


def test_a_model_of_one_recording_is_that_recording(backend, test_trials):
    recordings, rows, columns, _ = test_trials
    single = Recordings(
        recordings.embeddings, recordings.seconds, [[row] for row in range(200)]
    )
    for name, scores in backend.scores(single, recordings, rows, columns).items():
        expected = backend.scores(recordings, recordings, rows, columns)[name]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_more_recordings_make_a_better_model(backend, test_trials):
    recordings, *_ = test_trials
    models = [[5 * s, 5 * s + 1, 5 * s + 2] for s in range(40)]
    rows = np.repeat(np.arange(40), 40)
    columns = np.tile(np.arange(40) * 5 + 4, 40)
    labels = rows == columns // 5
    several = Recordings(recordings.embeddings, recordings.seconds, models)
    one = Recordings(recordings.embeddings, recordings.seconds, [m[:1] for m in models])
    for name in ("mean subtracted", "AS-norm"):
        better, worse = (
            eer(backend.scores(side, recordings, rows, columns)[name], labels)
            for side in (several, one)
        )
        assert better < worse
    assert several.sum_seconds()[3] == recordings.seconds[15:18].sum()


def test_the_cohort_is_the_speakers_means_less_that_of_the_validation():
    vectors = torch.eye(4)
    names = ["b/1", "a/1", "b/2", "a/2"]
    made = fit_backend(
        {"v/1": vectors[0], "v/2": vectors[0] + 0.1, "w/1": vectors[1]},
        {"v/1": 1.0, "v/2": 2.0, "w/1": 3.0},
        {"v/1": "v", "v/2": "v", "w/1": "w"},
        TrialList(np.array([True, False]), ["v/1", "v/1"], ["v/2", "w/1"]),
        dict(zip(names, vectors, strict=True)),
        {name: name[0] for name in names},
    )
    torch.testing.assert_close(made.mean, torch.tensor([2.1, 1.1, 0.1, 0.1]) / 3)
    unit = F.normalize(vectors - made.mean, dim=-1)
    expected = F.normalize(torch.stack([unit[[1, 3]].mean(0), unit[[0, 2]].mean(0)]))
    torch.testing.assert_close(made.cohort, expected)


QUALITIES = ("log_seconds", "log_norm", "imposter_score")


def test_the_calibration_knows_the_quality_of_both_sides(
    backend, test_trials, monkeypatch
):
    """The smaller of theirs and the sum: seconds of speech, length of the embeddings,
    and how near the nearest strangers come, of a model with several recordings too."""
    monkeypatch.setattr(module, "TOP_K", 20)
    recordings, *_ = test_trials
    models = [[5 * s, 5 * s + 1, 5 * s + 2] for s in range(40)]
    enrolled = Recordings(recordings.embeddings, recordings.seconds, models)
    rows, columns = np.array([0, 3, 39, 3]), np.array([4, 17, 199, 0])
    units, _ = units_and_strangers(backend, recordings)
    lengths = np.linalg.norm(recordings.embeddings.double().numpy(), axis=1)

    def quality(own):
        mean = units[own].mean(axis=0)
        near = backend.cohort.double().numpy() @ (mean / np.linalg.norm(mean))
        return {
            "log_seconds": np.log(recordings.seconds[own].sum()),
            "log_norm": np.log(lengths[own].mean()),
            "imposter_score": np.sort(near)[-20:].mean(),
        }

    pairs = [
        (quality(models[row]), quality([column]))
        for row, column in zip(rows, columns, strict=True)
    ]
    for name in QUALITIES:
        for way, of_pair in (("sum", sum), ("least", min)):
            calibration = Calibration({f"{name}_{way}": 1.0}, 0.0)
            weighing = replace(backend, calibration=calibration)
            found = weighing.scores(enrolled, recordings, rows, columns)["calibrated"]
            expected = [of_pair((one[name], other[name])) for one, other in pairs]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("helps", [True, False])
def test_quality_is_weighed_where_it_helps(helps, backend, test_trials, monkeypatch):
    """Whether it does is tested in test_calibration.py."""
    recordings, rows, columns, labels = test_trials
    speakers = rows // 5, columns // 5
    asked = []

    def answer(scores, qualities, labels, *speakers):
        asked.append((set(scores), set(qualities), speakers))
        return helps

    monkeypatch.setattr(module, "quality_helps", answer)
    arguments = recordings, recordings, rows, columns, labels, speakers
    calibration = backend.fitted(*arguments).calibration
    scores = {"PLDA", "AS-norm"}
    qualities = {f"{name}_{way}" for name in QUALITIES for way in ("sum", "least")}
    assert asked == [(scores, qualities, speakers)]
    assert set(calibration.weights) == scores | (qualities if helps else set())
    assert set(calibration.ranges) == (qualities if helps else set())


def test_it_is_kept_in_a_folder(backend, tmp_path, test_trials):
    assert Backend.load(tmp_path) is None
    backend.save(tmp_path)
    recordings, rows, columns, _ = test_trials
    one, other = (
        b.scores(recordings, recordings, rows, columns)
        for b in (backend, Backend.load(tmp_path))
    )
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
    replace(backend, plda=None).save(tmp_path)
    with pytest.raises(InputError, match="calibration.json: weighs 'PLDA', which"):
        Backend.load(tmp_path)
    (tmp_path / "calibration.json").unlink()
    assert Backend.load(tmp_path).plda is None
    (tmp_path / "backend.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="backend.safetensors: can't be read"):
        Backend.load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mean": torch.full((16,), torch.nan)}, "mean has values that are not finite"),
        ({"plda.residual": torch.tensor([[torch.inf]])}, "plda.residual has values"),
        ({"cohort": torch.eye(16)[:1]}, r"mean is \[16\] and cohort \[1, 16\]; they"),
        ({"cohort": torch.eye(8)}, r"mean is \[16\] and cohort \[8, 8\]; they have to"),
        ({"mean": torch.zeros(1)}, r"mean is \[1\] and cohort \[120, 16\]; they"),
        ({"cohort": torch.tensor(1.0)}, r"mean is \[16\] and cohort \[\]; they"),
        ({"plda.centre": torch.zeros(5)}, "its parts don't fit together: "),
    ],
)
def test_a_backend_that_makes_no_sense_is_one_line(changed, message, backend, tmp_path):
    backend.save(tmp_path)
    path = tmp_path / "backend.safetensors"
    save_file(load_file(path) | changed, path)
    with pytest.raises(InputError, match=f"backend.safetensors: {message}") as error:
        Backend.load(tmp_path)
    assert "\n" not in str(error.value)


def test_trials_of_lost_recordings_leave_the_labels_of_the_others():
    vectors, seconds = population(12, 5, seed=3)
    names = named("v", 12, 5)
    training, _ = population(40, 4, seed=4)
    train_names = named("t", 40, 4)
    trials = all_trials(names)
    kept = [
        names[0] not in pair for pair in zip(trials.enrol, trials.test, strict=True)
    ]
    without = TrialList(
        trials.labels[kept],
        [name for name, keep in zip(trials.enrol, kept, strict=True) if keep],
        [name for name, keep in zip(trials.test, kept, strict=True) if keep],
    )
    fits = [
        fit_backend(
            dict(zip(names[1:], vectors[1:], strict=True)),
            dict(zip(names, seconds, strict=True)),
            {name: name.split("/")[0] for name in names},
            listed,
            dict(zip(train_names, training, strict=True)),
            {name: name.split("/")[0] for name in train_names},
        ).calibration
        for listed in (trials, without)
    ]
    assert fits[0] == fits[1]


def test_copies_of_one_recording_for_each_speaker(tmp_path):
    """As for a first try: there is no PLDA, and the rest is as it should be."""
    valid, seconds = population(4, 1, seed=8)
    training, _ = population(9, 1, seed=9)
    names, train_names = named("v", 4, 3), named("t", 9, 5)
    trials = all_trials(names)
    made = fit_backend(
        dict(zip(names, valid.repeat_interleave(3, dim=0), strict=True)),
        dict(zip(names, seconds.repeat(3), strict=True)),
        {name: name.split("/")[0] for name in names},
        trials,
        dict(zip(train_names, training.repeat_interleave(5, dim=0), strict=True)),
        {name: name.split("/")[0] for name in train_names},
    )
    made.save(tmp_path)
    recordings = Recordings(valid, seconds)
    rows, columns = np.triu_indices(12, 1)
    found = Backend.load(tmp_path).scores(
        recordings, recordings, rows // 3, columns // 3
    )
    assert list(found) == ["mean subtracted", "S-norm", "AS-norm", "calibrated"]
    ratios = found["calibrated"]
    assert ratios[trials.labels].min() > 0 > ratios[~trials.labels].max()


def test_the_mean_of_a_cohort_is_its_own():
    vectors, _ = population(6, 2, seed=5)
    names = named("c", 6, 2)
    speakers = {name: name.split("/")[0] for name in names}
    found = cohort_backend(dict(zip(names, vectors, strict=True)), speakers)
    torch.testing.assert_close(found.mean, vectors.mean(dim=0))


def test_speakers_are_halved_by_the_speakers_of_both_sides(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "quality_helps", lambda *args: seen.append(args[3:]))
    vectors, seconds = population(2, 2, seed=6)
    names = named("v", 2, 2)
    training, _ = population(4, 2, seed=7)
    train_names = named("t", 4, 2)
    fit_backend(
        dict(zip(names, vectors, strict=True)),
        dict(zip(names, seconds, strict=True)),
        {name: name.split("/")[0] for name in names},
        TrialList(np.array([True, False]), [names[0]] * 2, [names[1], names[2]]),
        dict(zip(train_names, training, strict=True)),
        {name: name.split("/")[0] for name in train_names},
    )
    ((enrolled, tested),) = seen
    assert enrolled[0] == enrolled[1] == tested[0] != tested[1]
