"""ONNX graphs of the systems in hparams/: the same as PyTorch at any length."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
from onnx import numpy_helper
from speechbrain.processing.features import STFT

from local_modules.errors import RunError
from local_modules.evaluation.calibration import Calibration
from local_modules.inference.embedding_store import EmbeddingStore
from local_modules.inference.extraction import embed_files
from local_modules.inference.onnx_export import (
    OnnxModel,
    check_int8,
    check_parity,
    int8_graph,
    onnx_graph,
    shortest_input,
)
from local_modules.inference.onnx_parts import FoldedSTFT
from local_modules.inference.speaker_model import SpeakerModel
from tests.random_models import THRESHOLD, write_model

ROOT = Path(__file__).parents[3]
SYSTEMS = ("conformer", "mfa_conformer", "conformer_reference", "ecapa_tdnn")
CALIBRATION = Calibration({"AS-norm": 2.0}, -1.0)


class Exported:
    def __init__(self, folder, system):
        self.system = system
        source, _ = write_model(folder / "model", system, CALIBRATION)
        self.model = SpeakerModel(str(source))
        self.graph = onnx_graph(self.model)
        self.onnx = OnnxModel(self.graph, self.model)


@pytest.fixture(scope="module", params=SYSTEMS)
def exported(request, tmp_path_factory):
    return Exported(tmp_path_factory.mktemp(request.param), request.param)


def noise(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(n, generator=generator) for n in lengths]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


class TestGraph:
    # The trace was made at 16000.
    @pytest.mark.parametrize("n_samples", [1601, 15999, 16000, 48077, 320001])
    def test_any_length(self, exported, n_samples):
        wavs = noise(n_samples)
        close(exported.onnx.embed(wavs), exported.model.embed(wavs))

    def test_the_shortest(self, exported):
        shortest = shortest_input(exported.model)
        wavs = noise(shortest)
        close(exported.onnx.embed(wavs), exported.model.embed(wavs))
        with pytest.raises(RuntimeError):
            exported.model.embed(noise(shortest - 1))

    @pytest.mark.parametrize("n_utterances", [1, 2, 5])
    def test_padded_batch(self, exported, n_utterances):
        wavs = noise(20011, 7000, 12345, 3999, 16000)[:n_utterances]
        found = exported.onnx.embed(wavs)
        close(found, exported.model.embed(wavs))
        close(exported.onnx.embed(wavs[::-1]), found.flip(0))

    def test_padded_as_alone(self, exported):
        if exported.system == "ecapa_tdnn":
            pytest.skip("its convolutions see the padding, in PyTorch as well")
        # Around the ends of frames, where rounding could add or lose one.
        wavs = noise(48000, 7999, 8000, 8001, 1280, 4799, 4800, 4801, 30001)
        together = exported.onnx.embed(wavs)
        for wav, embedding in zip(wavs, together, strict=True):
            close(exported.onnx.embed([wav])[0], embedding)
            close(exported.model.embed([wav])[0], embedding)

    def test_lengths_that_cannot_be_give_nan_and_harm_no_other(self, exported):
        wavs = noise(9000, 9000, 9000, 9000)
        shortest = shortest_input(exported.model)
        lengths = np.array([9000, shortest - 1, 9001, shortest])
        inputs = {"waveforms": torch.stack(wavs).numpy(), "lengths": lengths}
        found = exported.onnx.session.run(None, inputs)[0]
        assert np.isnan(found).all(axis=1).tolist() == [False, True, True, False]
        assert np.isfinite(found[[0, 3]]).all()

    def test_is_valid_and_says_what_it_is(self, exported):
        onnx.checker.check_model(exported.graph, full_check=True)
        session = exported.onnx.session
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            ("waveforms", "tensor(float)", ["batch", "time"]),
            ("lengths", "tensor(int64)", ["batch"]),
        ]
        (output,) = session.get_outputs()
        assert (output.name, output.shape) == ("embeddings", ["batch", 8])
        about = session.get_modelmeta().custom_metadata_map
        assert about["sample_rate"] == "16000"
        assert about["min_samples"] == str(shortest_input(exported.model))
        assert about["fingerprint"] == exported.model.fingerprint
        assert float(about["threshold"]) == THRESHOLD
        calibration = {"weights": {"AS-norm": 2.0}, "offset": -1.0, "ranges": {}}
        assert json.loads(about["calibration"]) == calibration
        octets = exported.graph.SerializeToString()
        for place in (ROOT, Path.home(), Path(torch.__file__).parents[1]):
            assert str(place).encode() not in octets

    def test_the_model_is_left_as_it_was(self, exported):
        kinds = {type(module) for module in exported.model.classifier.modules()}
        assert STFT in kinds and FoldedSTFT not in kinds
        fresh = SpeakerModel(exported.model.source)
        assert fresh.fingerprint == exported.model.fingerprint
        wavs = noise(9000, 5000)
        assert torch.equal(fresh.embed(wavs), exported.model.embed(wavs))


def test_what_cannot_be_exported_says_why(tmp_path):
    source, _ = write_model(tmp_path / "model", "xvector")
    with pytest.raises(RunError, match="model: can't be exported: .* each length"):
        onnx_graph(SpeakerModel(str(source)))


class TestCheck:
    def test_passes(self, exported):
        assert check_parity(exported.graph, exported.model) < 1e-4

    def test_refuses_other_weights(self, exported):
        graph = tampered(exported.graph)
        with pytest.raises(
            RunError, match=r"differs by .* s alone\); 0.0001 is allowed"
        ):
            check_parity(graph, exported.model)

    def test_refuses_a_graph_that_does_not_run(self, exported):
        graph = onnx.ModelProto()
        graph.CopyFrom(exported.graph)
        del graph.graph.node[len(graph.graph.node) // 2]
        with pytest.raises(RunError, match="in ONNX: ") as error:
            check_parity(graph, exported.model)
        assert "\n" not in str(error.value)


def test_what_a_graph_can_not_embed_is_left_out(exported, tmp_path):
    """As by a model: ONNX Runtime's errors are of kinds of its own."""
    model = OnnxModel(exported.graph, exported.model)
    for name in ("good.wav", "bad.wav"):
        soundfile.write(tmp_path / name, noise(16000)[0], 16000)

    def read(path):
        wav = exported.model.read(path)
        return wav.double() if path.name == "bad.wav" else wav

    model.read = read
    paths = [tmp_path / "bad.wav", tmp_path / "good.wav"]
    with EmbeddingStore(tmp_path / "kept.db") as store:
        found, failures = embed_files(model, paths, store)
    assert list(found) == paths[1:] and list(failures) == paths[:1]
    assert "double" in failures[paths[0]] and "\n" not in failures[paths[0]]


def tampered(graph):
    """The graph with all its trained weights turned round."""
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    for weight in other.graph.initializer:
        values = numpy_helper.to_array(weight)
        if "embedding_model" in weight.name and "running_var" not in weight.name:
            weight.CopyFrom(numpy_helper.from_array(-values, weight.name))
    return other


class TestInt8:
    def test_points_the_same_way(self, exported):
        graph = int8_graph(exported.graph)
        assert check_int8(graph, exported.model) > 0.99
        kinds = [node.op_type for node in graph.graph.node]
        assert "MatMulInteger" in kinds or "ConvInteger" in kinds
        int8 = OnnxModel(graph, exported.model)
        about = int8.session.get_modelmeta()
        assert about.custom_metadata_map["quantization"] == "int8"
        assert about.custom_metadata_map["fingerprint"] == exported.model.fingerprint
        # Or a store would have the embeddings of one for those of another.
        models = exported.model, exported.onnx, int8
        assert len({model.fingerprint for model in models}) == 3
        assert OnnxModel(graph, exported.model).fingerprint == int8.fingerprint
        # Where weights are many, most of their bytes are gone.
        if exported.system == "ecapa_tdnn":
            assert graph.ByteSize() < 0.4 * exported.graph.ByteSize()

    def test_features_stay(self, exported):
        """Down to the logarithm no number is an integer."""
        graph = int8_graph(exported.graph).graph
        maker = {name: node for node in graph.node for name in node.output}
        (logarithm,) = (node for node in graph.node if node.op_type == "Log")
        seen, waiting = set(), [*logarithm.input]
        while waiting:
            node = maker.get(waiting.pop())
            if node is not None and node.name not in seen:
                seen.add(node.name)
                assert not node.op_type.endswith(("Integer", "Linear")), node.name
                waiting += node.input
        kinds = [node.op_type for node in graph.node if node.name in seen]
        assert kinds.count("MatMul") == 3  # cosines, sines, and bands

    def test_refuses_a_broken_one(self, exported):
        with pytest.raises(RunError, match="in 8 bits .* cosine of"):
            check_int8(tampered(exported.graph), exported.model)
