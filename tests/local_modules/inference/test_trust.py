"""Folders from elsewhere: hostile ones are refused before their payload runs, good ones
load. The payload leaves a marker."""

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.lobes.models import ECAPA_TDNN, ResNet, Xvector

from local_modules.errors import InputError
from local_modules.evaluation.backend import Backend
from local_modules.inference.speaker_model import SpeakerModel
from local_modules.inference.trust import checked_copy, tensors_only
from local_modules.inference.verification import Verifier
from tests.random_models import THRESHOLD, write_model

ROOT = Path(__file__).parents[3]
# In the form of SpeechBrain's published models, which name their place on the hub.
HPARAMS = """\
# Feature parameters
n_mels: 24
pretrained_path: speechbrain/spkrec-voxceleb
emb_dim: 8
out_n_neurons: 2

compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>

mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False

{model}
mean_var_norm_emb: !new:speechbrain.processing.features.InputNormalization
    norm_type: global
    std_norm: False

modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    mean_var_norm_emb: !ref <mean_var_norm_emb>
    classifier: !ref <classifier>

label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder

pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        mean_var_norm_emb: !ref <mean_var_norm_emb>
        classifier: !ref <classifier>
        label_encoder: !ref <label_encoder>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        mean_var_norm_emb: !ref <pretrained_path>/mean_var_norm_emb.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
        label_encoder: !ref <pretrained_path>/label_encoder.txt
"""
ECAPA = """\
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 48]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    lin_neurons: 8

classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 8
    out_neurons: !ref <out_n_neurons>
"""
XVECTOR = """\
embedding_model: !new:speechbrain.lobes.models.Xvector.Xvector
    in_channels: !ref <n_mels>
    activation: !name:torch.nn.LeakyReLU
    tdnn_blocks: 2
    tdnn_channels: [16, 16]
    tdnn_kernel_sizes: [5, 1]
    tdnn_dilations: [1, 1]
    lin_neurons: !ref <emb_dim>

classifier: !new:speechbrain.lobes.models.Xvector.Classifier
    input_shape: [null, null, !ref <emb_dim>]
    activation: !name:torch.nn.LeakyReLU
    lin_blocks: 1
    lin_neurons: !ref <emb_dim>
    out_neurons: !ref <out_n_neurons>
"""
RESNET = """\
embedding_model: !new:speechbrain.lobes.models.ResNet.ResNet
    input_size: !ref <n_mels>
    channels: [8, 8, 16, 16]
    strides: [1, 2, 2, 2]
    block_sizes: [1, 1, 1, 1]
    lin_neurons: 8

classifier: !new:speechbrain.lobes.models.ResNet.Classifier
    input_size: 8
    out_neurons: !ref <out_n_neurons>
"""
LEAKY = torch.nn.LeakyReLU
MODELS = {
    "ecapa": (
        ECAPA,
        lambda: ECAPA_TDNN.ECAPA_TDNN(
            24, lin_neurons=8, channels=[16] * 4 + [48], attention_channels=8
        ),
        lambda: ECAPA_TDNN.Classifier(8, out_neurons=2),
    ),
    "xvector": (
        XVECTOR,
        lambda: Xvector.Xvector("cpu", LEAKY, 2, [16, 16], [5, 1], [1, 1], 8, 24),
        lambda: Xvector.Classifier([None, None, 8], LEAKY, 1, 8, 2),
    ),
    "resnet": (
        RESNET,
        lambda: ResNet.ResNet(
            24, channels=[8, 8, 16, 16], block_sizes=[1] * 4, lin_neurons=8
        ),
        lambda: ResNet.Classifier(8, out_neurons=2),
    ),
}


def write_published(folder, name="ecapa"):
    text, embedding_model, classifier = MODELS[name]
    folder.mkdir()
    (folder / "hyperparams.yaml").write_text(HPARAMS.format(model=text))
    embedding_model = embedding_model()
    torch.save(embedding_model.state_dict(), folder / "embedding_model.ckpt")
    torch.save(classifier().state_dict(), folder / "classifier.ckpt")
    statistics = {"glob_mean": torch.zeros(8), "glob_std": torch.ones(8)}
    statistics |= {"count": 1, "spk_dict_mean": {}}
    torch.save(statistics, folder / "mean_var_norm_emb.ckpt")
    encoder = CategoricalEncoder()
    encoder.update_from_iterable(["ann", "bob"])
    encoder.save(folder / "label_encoder.txt")
    return embedding_model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "model"
    write_published(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "model"))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def refusal(folder, marker):
    with pytest.raises(InputError) as error:
        SpeakerModel(str(folder))
    message = str(error.value)
    assert not marker.exists()
    assert "\n" not in message and message.startswith(str(folder))
    return message.removeprefix(f"{folder}/")


LABELS = "label_encoder: !new:speechbrain.dataio.encoder.CategoricalEncoder"
TOUCH = '["touch MARKER"]'
BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
DOUBLING = "s0: 1111111111\n" + "".join(
    f"s{i}: !ref <s{i - 1}><s{i - 1}>\n" for i in range(1, 40)
)
# None of its references is more than a name; what they stand for together is.
REFERENCES = "r0: [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"r{i}: [{', '.join([f'!ref <r{i - 1}>'] * 10)}]\n" for i in range(1, 5)
)
# What is added at the end of a good file, and what the message names.
ADDED = {
    "apply": (f"x: !apply:os.system {TOUCH}", "!apply:os.system"),
    "popen": ("x: !new:subprocess.Popen [[touch, MARKER]]", "!new:subprocess.Popen"),
    "name": ("x: !name:os.system\n    command: touch MARKER", "!name:os.system"),
    "module": ("x: !module:this", "!module:this"),
    "include": ("x: !include:evil.yaml", "!include:evil.yaml"),
    "applyref": (f"x: !applyref:os.system {TOUCH}", "!applyref:os.system"),
    "python": (f"x: !!python/object/apply:os.system {TOUCH}", "!!python/object/apply"),
    "verbatim": (
        f"x: !<tag:yaml.org,2002:python/object/apply:os.system> {TOUCH}",
        "!!python/object/apply:os.system",
    ),
    "escaped tag": (f"x: !%61pply:os.system {TOUCH}", "!apply:os.system"),
    "nested in a list": (f"x: [1, [2, !apply:os.system {TOUCH}]]", "!apply:os.system"),
    "in a key": (f"? !apply:os.system {TOUCH}\n: 1", "a list or mapping"),
    "in a merge": (f"x:\n    <<: !apply:os.system {TOUCH}", "<<"),
    "merge key": ("x: &x {a: 1}\ny:\n    <<: *x", "<<"),
    "twice": ("n_mels: 24", "'n_mels' twice"),
    "attribute": ("x: !ref <label_encoder.from_saved>", "from_saved"),
    "power": ("x: !ref <n_mels>**9**9**9", "**9"),
    "repetition": ("s: \"'x'\"\nx: !ref <s>*99999999999", "*9999"),
    "hidden repetition": ("s: '9*9'\nx: !ref <s>/1", "<s>"),
    "doubling": (DOUBLING, "<s1>"),
    "hidden reference": ("s: '<n_mels.real>'\nx: !ref <s>", "<n_mels.real>"),
    "copy": ("x: !copy <label_encoder>", "!copy"),
    "tuple": (f"x: !tuple '(!!python/object/apply:os.system {TOUCH})'", "the tuple"),
    "looks like a tuple": (
        f"x: (!!python/object/apply:os.system {TOUCH})",
        "the tuple",
    ),
    "quoted tuple": (
        f"x: '(!!python/object/apply:os.system {TOUCH})'",
        "the tuple",
    ),
    "other module": ("x: !new:local_modules.tuning.study.Study", "tuning.study"),
    "project's reader": (
        "x: !new:local_modules.training.history.RunHistory",
        "RunHistory",
    ),
    "shell of SpeechBrain": (
        "x: !name:speechbrain.utils.superpowers.run_shell\n    cmd: touch MARKER",
        "run_shell",
    ),
    "parts of an allowed name": (
        "x: !name:speechbrain.lobes.features.Fbank.forward.__globals__",
        "__globals__",
    ),
    "look-alike": ("x: !new:torch.nn.R\u0435LU", ""),
    "aliases": (BOMB, "aliases"),
    "references": (REFERENCES, "aliases that stand for more than 20000 values"),
    "recursion": ("x: &x [*x]", ""),
    "depth": ("x: " + "[" * 5000 + "]" * 5000, ""),
    "run option": ("compile: True", "'compile'"),
}
NO_LINE = {"depth", "references"}


@pytest.mark.parametrize("name", ADDED)
def test_added_to_the_parameters(name, folder, marker):
    text, found = (part.replace("MARKER", str(marker)) for part in ADDED[name])
    (folder / "evil.yaml").write_text(f"x: !apply:os.system ['touch {marker}']")
    path = folder / "hyperparams.yaml"
    start = len(path.read_text().splitlines())
    path.write_text(path.read_text() + text + "\n", encoding="utf-8")
    message = refusal(folder, marker)
    assert found in message
    if name not in NO_LINE:
        file, line, _ = message.split(":", 2)
        n_added = len(text.splitlines())
        assert file == "hyperparams.yaml"
        assert start < int(line) <= start + n_added


# What is put in the place of what in a good file.
REPLACED = {
    "directive": ("# Feature parameters", "%TAG !e! tag:yaml.org,2002:python/\n---"),
    "hook": (
        "    loadables:",
        "    custom_hooks: {classifier: !name:os.system}\n    loadables:",
    ),
    "absolute": ("speechbrain/spkrec-voxceleb", "/somewhere/else"),
    "home": ("speechbrain/spkrec-voxceleb", "~/else"),
    "parent": ("speechbrain/spkrec-voxceleb", "speechbrain/../.."),
    "address": ("speechbrain/spkrec-voxceleb", "https://example.org"),
    "path itself": ("!ref <pretrained_path>/classifier.ckpt", "../classifier.ckpt"),
    "name of a loadable": ("        classifier: !ref <c", "        ../c: !ref <c"),
    "no class": ("!ref <label_encoder>\n    paths", "nothing\n    paths"),
    "positional": (
        "utils.parameter_transfer.Pretrainer",
        "utils.parameter_transfer.Pretrainer []\nother:",
    ),
}


@pytest.mark.parametrize("name", REPLACED)
def test_changed_in_the_parameters(name, folder, marker):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    assert REPLACED[name][0] in text
    path.write_text(text.replace(*REPLACED[name], 1))
    assert refusal(folder, marker).startswith("hyperparams.yaml")


@pytest.mark.parametrize("end", ["\r", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_what_one_reader_takes_for_the_end_of_a_line(end, quote, folder, marker):
    """And another one for a letter. It may be text to both; it is code to neither."""
    path = folder / "hyperparams.yaml"
    line = f"x: {quote}a{end}y: !apply:os.system ['touch {marker}']{end}z: 1{quote}\n"
    path.write_text(path.read_text() + line, encoding="utf-8", newline="")
    with contextlib.suppress(InputError):
        SpeakerModel(str(folder))
    assert not marker.exists()


class Payload:
    def __init__(self, marker):
        self._command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self._command,)


@pytest.mark.parametrize("file", ["embedding_model.ckpt", "mean_var_norm_emb.ckpt"])
@pytest.mark.parametrize("is_raw", [False, True])
def test_pickles(file, is_raw, folder, marker, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    if is_raw:
        (folder / file).write_bytes(pickle.dumps(Payload(marker), protocol=2))
    else:
        torch.save({"weight": Payload(marker)}, folder / file)
    message = refusal(folder, marker)
    assert message.startswith(f"{file}: a pickle")
    assert "posix.system" in message or is_raw


# A label to one reader, a pickle to another: to both, U and the quote begin a string.
CALL = b"U\x05posixU\x06system\x93(U\x0ctouch markertR."
TWO_FACED = b"U'" + 39 * b"x" + CALL + b"' => 0\n"


def test_a_pickle_among_the_labels_is_not_loaded_as_weights(
    marker, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.chdir(marker.parent)
    folder = tmp_path / "model"
    write_model(folder, "conformer")
    (folder / "classifier.ckpt").write_bytes(TWO_FACED)
    path = folder / "hyperparams.yaml"
    text, *_ = path.read_text().partition("pretrainer:")
    path.write_text(
        f"{text}pretrainer: !new:local_modules.inference.pretrainer.FolderPretrainer\n"
        "    loadables:\n"
        "        classifier: !ref <classifier>\n"
        "        label_encoder: !ref <label_encoder>\n"
        "    files:\n"
        "        classifier: classifier.safetensors\n"
        "        label_encoder: classifier.ckpt\n"
        "    custom_hooks: {}\n"
    )
    with pytest.raises(InputError, match="is not a speaker model"):
        SpeakerModel(str(folder))
    assert not marker.exists()
    with tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "classifier.ckpt")
    assert not marker.exists()
    # Neither is the payload of straw, nor the environment changed for good.
    with contextlib.suppress(Exception):
        torch.load(folder / "classifier.ckpt")
    assert marker.exists()


def test_label_with_code(folder, marker):
    path = folder / "label_encoder.txt"
    code = f"__import__('os').system('touch {marker}') => 2\n"
    path.write_text("'ann' => 0\n" + code)
    assert refusal(folder, marker).startswith("label_encoder.txt:2: the label")


@pytest.mark.parametrize("file", ["hyperparams.yaml", "classifier.ckpt"])
def test_link_out_of_the_folder(file, folder, marker, tmp_path):
    shutil.move(folder / file, tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
    assert refusal(folder, marker).startswith(f"{file}: is a link")


def test_missing_weights_are_looked_for_nowhere_else(folder, marker):
    (folder / "classifier.ckpt").unlink()
    assert "has no file classifier.ckpt" in refusal(folder, marker)


def test_code_in_the_folder_is_not_run(folder, marker, monkeypatch):
    payload = f"import os\nos.system('touch {marker}')\n"
    (folder / "custom.py").write_text(payload)
    for package in ("local_modules", "speechbrain"):
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(payload)
    monkeypatch.chdir(folder)
    SpeakerModel(str(folder))
    assert not marker.exists()


def test_trust_runs_it(folder, marker):
    """Which shows that the payloads are none of straw."""
    with open(folder / "hyperparams.yaml", "a") as file:
        file.write(f"x: !apply:os.system ['touch {marker}']\n")
    refusal(folder, marker)
    (folder / "hyperparams.yaml").write_text(
        (folder / "hyperparams.yaml")
        .read_text()
        .replace("speechbrain/spkrec-voxceleb", str(folder))
    )
    SpeakerModel(str(folder), trust=True)
    assert marker.exists()


@pytest.mark.parametrize("name", MODELS)
def test_published_models_load(name, tmp_path):
    expected = write_published(tmp_path / "model", name).state_dict()
    model = SpeakerModel(str(tmp_path / "model"))
    found = model.classifier.mods.embedding_model.state_dict()
    found = {key.removeprefix("encoder."): value for key, value in found.items()}
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert model.embed([torch.rand(16000)]).shape == (1, 8)
    assert model.classifier.hparams.label_encoder.lab2ind == {"ann": 0, "bob": 1}


@pytest.mark.parametrize("name", ["xvector", "resnet"])
def test_published_models_that_know_no_padding_embed_together_as_alone(name, tmp_path):
    write_published(tmp_path / "model", name)
    model = SpeakerModel(str(tmp_path / "model"))
    wavs = [torch.randn(n) for n in (48000, 8000, 17001)]
    alone = torch.cat([model.embed([wav]) for wav in wavs])
    torch.testing.assert_close(model.embed(wavs), alone, atol=1e-4, rtol=0)


def test_tensors_are_written_anew(tmp_path):
    """A file of safetensors may be one of torch's too, by what follows in it."""
    source, _ = write_model(tmp_path / "model")
    file = source / "embedding_model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, metadata={"more": "than tensors"})
    copy = tmp_path / "copy"
    copy.mkdir()
    checked_copy(source, copy)
    with safe_open(copy / "embedding_model.ckpt", "pt") as written:
        assert written.metadata() is None
        for name, tensor in tensors.items():
            assert torch.equal(written.get_tensor(name), tensor)


@pytest.mark.parametrize(
    "recipe",
    ["conformer", "conformer_reference", "ecapa_tdnn", "mfa_conformer", "xvector"],
)
def test_own_models_load(recipe, tmp_path):
    write_model(tmp_path / "model", recipe)
    model = SpeakerModel(str(tmp_path / "model"))
    assert model.embed([torch.rand(16000)]).shape == (1, 8)
    assert model.classifier.hparams.threshold == THRESHOLD


HOOK = "!name:safetensors.torch.load_model"
# What is put in the place of what in a folder of this project's own.
OWN_REPLACED = {
    "hook": (HOOK, "!name:os.system", "!name:os.system"),
    "made hook": (HOOK, "!new:safetensors.torch.load_model [x, y]", "load_model"),
    "hook elsewhere": ("sample_rate: 16000", f"sample_rate: {HOOK}", "load_model"),
    "parent": (": classifier.safe", ": ../classifier.safe", "../classifier.safe"),
    "absolute": (": classifier.safe", ": /classifier.safe", "/classifier.safe"),
    "paths": ("    files:", "    paths:", "the pretrainer's 'paths'"),
    "pickle": (": classifier.safetensors", ": classifier.ckpt", "a pickle"),
}


@pytest.mark.parametrize("name", OWN_REPLACED)
def test_changed_in_a_folder_of_ones_own(name, marker, tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "conformer")
    torch.save({"weight": Payload(marker)}, folder / "classifier.ckpt")
    path, (old, new, found) = folder / "hyperparams.yaml", OWN_REPLACED[name]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert found in refusal(folder, marker)


@pytest.mark.parametrize("kind", ["words", "raw pickle", "file of torch.save"])
def test_broken_safetensors(kind, marker, tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "conformer")
    path = folder / "classifier.safetensors"
    if kind == "file of torch.save":
        torch.save({"weight": Payload(marker)}, path)
    else:
        pickled = pickle.dumps(Payload(marker))
        path.write_bytes(b"no tensors" if kind == "words" else pickled)
    assert "classifier.safetensors: is not a file of tensors" in refusal(folder, marker)


def test_what_is_beside_the_model_runs_nothing_either(marker, tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "conformer")
    for name, octets in {
        "calibration.json": b"[" * 100_000,
        "backend.safetensors": pickle.dumps(Payload(marker)),
    }.items():
        (folder / name).write_bytes(octets)
        with pytest.raises(InputError, match=name):
            Verifier(folder)
        (folder / name).unlink()
        os.mkfifo(folder / name)  # would be waited for for ever
        assert not Verifier(folder).is_calibrated
    assert not marker.exists()


def test_a_backend_of_another_model_is_one_line(tmp_path):
    source, _ = write_model(tmp_path / "model")
    Backend(torch.zeros(9), torch.eye(9)).save(source)
    with pytest.raises(InputError) as error:
        SpeakerModel(str(source))
    assert str(error.value) == (
        f"{source}: its backend.safetensors is for embeddings of 9 numbers; the "
        "model's have 8"
    )


@pytest.mark.parametrize("threshold", [".nan", "[0.2]", "much", "null"])
def test_a_threshold_that_is_no_number_is_one_line(threshold, tmp_path):
    source, _ = write_model(tmp_path / "model")
    path = source / "hyperparams.yaml"
    text = path.read_text()
    assert f"threshold: {THRESHOLD}" in text
    path.write_text(text.replace(f"threshold: {THRESHOLD}", f"threshold: {threshold}"))
    with pytest.raises(InputError, match="its threshold is .* be a finite number$"):
        Verifier(source)
