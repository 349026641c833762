"""A trained model as one ONNX graph: waveforms in, embeddings out.

The graph is traced from the call that `SpeakerModel.embed` makes, so its features,
normalisation and masks are those of PyTorch. It needs only ONNX Runtime.
"""

import bisect
import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from local_modules.embedder import UnpaddedEmbedder
from local_modules.errors import RunError, one_line
from local_modules.inference.onnx_parts import traceable
from local_modules.inference.speaker_model import SpeakerModel

OPSET = 23  # of ONNX: the first with rotary embedding and attention
TOLERANCE = 1e-4  # largest difference of an embedding's element
CHECKED_SECONDS = (0.5, 3.01, 17.3, 60.0)  # besides the shortest input
FEATURES = ".compute_features."  # in the names of their weights
LEAST_COSINE = 0.9  # of int8 with the original; below it, something is broken


class EmbeddingGraph(nn.Module):
    """The traced module: `encode_batch` of a loaded model, with lengths in samples.

    Arguments
    ---------
    classifier : speechbrain.inference.classifiers.EncoderClassifier
        The loaded model.
    min_samples : int
        The shortest utterance that it embeds.
    """

    def __init__(self, classifier: nn.Module, min_samples: int):
        super().__init__()
        self.classifier = classifier
        self.min_samples = min_samples

    def forward(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Embeds a padded batch.

        Arguments
        ---------
        waveforms : torch.Tensor
            float32, [batch, time].
        lengths : torch.Tensor
            Samples of each utterance, int64, [batch].

        Returns
        -------
        torch.Tensor
            Embeddings, [batch, emb_dim]; NaN for an utterance that is too short or
            longer than the batch, because a graph can't raise an error.
        """
        n_samples = waveforms.shape[1]
        lens = lengths / n_samples
        embeddings = self.classifier.encode_batch(waveforms, lens).squeeze(1)
        wrong = (lengths < self.min_samples) | (lengths > n_samples)
        return embeddings.masked_fill(wrong.unsqueeze(1), float("nan"))


class OnnxModel:
    """An ONNX graph that can take the place of its source model in
    `local_modules.inference.extraction`.

    Arguments
    ---------
    graph : onnx.ModelProto
        The graph.
    model : SpeakerModel
        The source model, which reads the files.
    """

    def __init__(self, graph: onnx.ModelProto, model: SpeakerModel):
        octets = graph.SerializeToString()
        self.session = onnxruntime.InferenceSession(octets)
        self.source = f"{model.source} in ONNX"
        self.sample_rate = model.sample_rate
        self.fingerprint = hashlib.sha256(octets).hexdigest()
        self.read = model.read

    def embed(self, wavs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings of waveforms, [n, emb_dim].

        Raises
        ------
        RuntimeError
            The graph can't embed them; the same error as from PyTorch.
        """
        padded = nn.utils.rnn.pad_sequence(list(wavs), batch_first=True)
        lengths = np.array([len(wav) for wav in wavs], dtype=np.int64)
        inputs = {"waveforms": padded.numpy(), "lengths": lengths}
        try:
            (found,) = self.session.run(["embeddings"], inputs)
        except Exception as error:  # one class per status, none a RuntimeError
            raise RuntimeError(_reason(error)) from None
        return torch.from_numpy(found)


def shortest_input(model: SpeakerModel) -> int:
    """The fewest samples that a model embeds, found by bisection.

    Arguments
    ---------
    model : SpeakerModel
        The model; it must embed one second.

    Returns
    -------
    int
    """

    def embeds(n_samples):
        try:
            model.embed([torch.zeros(n_samples)])
        except RuntimeError:
            return False
        return True

    fewer = range(1, model.sample_rate)
    return fewer.start + bisect.bisect_left(fewer, True, key=embeds)


def onnx_graph(model: SpeakerModel) -> onnx.ModelProto:
    """Traces a model.

    Arguments
    ---------
    model : SpeakerModel
        The model, on the CPU.

    Returns
    -------
    onnx.ModelProto
        Inputs `waveforms` [batch, time], float32, and `lengths` [batch], int64, in
        samples; output `embeddings` [batch, emb_dim]. Its metadata have `sample_rate`,
        `min_samples` and `fingerprint`, and `threshold` and `calibration` (JSON) if
        the model has them.

    Raises
    ------
    RunError
        The model does something that can't be exported.
    """
    if any(isinstance(part, UnpaddedEmbedder) for part in model.classifier.modules()):
        raise RunError(
            f"{model.source}: can't be exported: it embeds each length separately, as "
            "SpeechBrain's x-vector and ResNet have to, and a graph can't"
        )
    min_samples = shortest_input(model)
    graph = EmbeddingGraph(model.classifier, min_samples).eval()
    n_samples = model.sample_rate
    example = (torch.zeros(2, n_samples), torch.tensor([n_samples, n_samples // 2]))
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with _quiet(), traceable(graph), torch.no_grad():
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=["waveforms", "lengths"],
                output_names=["embeddings"],
                dynamic_shapes={
                    "waveforms": {0: dynamic, 1: dynamic},
                    "lengths": {0: dynamic},
                },
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunError(f"{model.source}: can't be exported: {_reason(error)}") from None
    proto = program.model_proto
    # A node's metadata hold the path of its source code on this machine.
    for node in proto.graph.node:
        del node.metadata_props[:]
    _name_dimensions(proto)
    metadata = {
        "sample_rate": str(model.sample_rate),
        "min_samples": str(min_samples),
        "fingerprint": model.fingerprint,
    }
    threshold = getattr(model.classifier.hparams, "threshold", None)
    if threshold is not None:
        metadata["threshold"] = repr(threshold)
    if model.backend is not None and model.backend.calibration is not None:
        parts = asdict(model.backend.calibration)
        del parts["densities"]  # for plots
        metadata["calibration"] = json.dumps(parts)
    onnx.helper.set_model_props(proto, metadata)
    return proto


def int8_graph(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Quantises a graph: 8-bit weights for matrix products and for convolutions over
    many channels, whose inputs are quantised to 8 bits at run time.

    Convolutions over one channel, or in two dimensions, are kept, because they hold few
    weights; so are the products that make the spectrum, which 8 bits would ruin.

    Arguments
    ---------
    graph : onnx.ModelProto
        Of `onnx_graph`.

    Returns
    -------
    onnx.ModelProto
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        shapes = {weight.name: weight.dims for weight in graph.graph.initializer}
        many_channels = {n for n, s in shapes.items() if len(s) == 3 and s[1] > 1}
        kept = [
            node.name
            for node in graph.graph.node
            if (node.op_type == "Conv" and node.input[1] not in many_channels)
            or (node.op_type == "MatMul" and FEATURES in node.input[1])
        ]
        quantize_dynamic(
            graph,
            path,
            op_types_to_quantize=["MatMul", "Conv"],
            nodes_to_exclude=kept,
            per_channel=True,
            # Unsigned on both sides can't overflow where a CPU adds pairs in 16 bits.
            weight_type=QuantType.QUInt8,
        )
        found = onnx.load(path)
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    onnx.helper.set_model_props(found, metadata | {"quantization": "int8"})
    return found


def check_parity(graph: onnx.ModelProto, model: SpeakerModel) -> float:
    """Compares a graph with its model at five lengths, from the shortest to a minute,
    and in padded batches.

    Arguments
    ---------
    graph : onnx.ModelProto
        Of `onnx_graph`.
    model : SpeakerModel
        Its source.

    Returns
    -------
    float
        The largest difference of any element of an embedding.

    Raises
    ------
    RunError
        It is above `TOLERANCE`, or the graph does not run.
    """
    worst = 0.0
    for what, expected, found in _compared(graph, model):
        difference = (expected - found).abs().max().item()
        if not difference <= TOLERANCE:  # also catches NaN
            raise RunError(
                f"{model.source}: in ONNX an embedding differs by {difference:.1e} "
                f"({what}); {TOLERANCE} is allowed, so nothing was written"
            )
        worst = max(worst, difference)
    return worst


def check_int8(graph: onnx.ModelProto, model: SpeakerModel) -> float:
    """Like `check_parity` for a graph of `int8_graph`, whose embeddings may differ in
    value but not in direction.

    Returns
    -------
    float
        The smallest cosine of an embedding with the model's.

    Raises
    ------
    RunError
        It is below `LEAST_COSINE`, or the graph does not run.
    """
    least = 1.0
    for what, expected, found in _compared(graph, model):
        cosine = torch.cosine_similarity(expected, found).min().item()
        if not cosine >= LEAST_COSINE:
            raise RunError(
                f"{model.source}: in 8 bits an embedding has a cosine of {cosine:.3f} "
                f"with its original ({what}); {LEAST_COSINE} is the minimum, so "
                "nothing was written"
            )
        least = min(least, cosine)
    return least


def _compared(
    graph: onnx.ModelProto, model: SpeakerModel
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yields what was embedded, and its embeddings by the model and by the graph."""
    min_samples = shortest_input(model)
    rate = model.sample_rate
    # None of them except the last is a multiple of the hop.
    lengths = [min_samples, *(int(s * rate) + 1 for s in CHECKED_SECONDS[:-1])]
    lengths.append(int(CHECKED_SECONDS[-1] * rate))
    generator = torch.Generator().manual_seed(0)
    wavs = [0.1 * torch.randn(n, generator=generator) for n in lengths]
    batches = {f"{len(wav) / rate:g} s alone": [wav] for wav in wavs}
    batches["padded to 17.3 s"] = wavs[:-1]
    batches["padded to 3.01 s"] = [wavs[1], wavs[2], wavs[0]]
    try:
        onnx_model = OnnxModel(graph, model)
        found = {what: onnx_model.embed(batch) for what, batch in batches.items()}
    except Exception as error:  # ONNX Runtime has one class per status
        raise RunError(f"{model.source}: in ONNX: {_reason(error)}") from None
    for what, batch in batches.items():
        yield what, model.embed(batch), found[what]


def _name_dimensions(proto: onnx.ModelProto) -> None:
    names = {"waveforms": ("batch", "time"), "lengths": ("batch",)}
    names["embeddings"] = ("batch",)
    for value in (*proto.graph.input, *proto.graph.output):
        shape = value.type.tensor_type.shape.dim
        for dimension, name in zip(shape, names[value.name], strict=False):
            dimension.dim_param = name
    # Inner shapes use the old names; a runtime infers these shapes again.
    del proto.graph.value_info[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses what libraries log for their developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _reason(error: Exception) -> str:
    """An exception in one line of limited length."""
    error = error.__cause__ or error
    return one_line(error)[:300]
