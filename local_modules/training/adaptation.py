"""Training that starts from a trained model instead of random weights: fine-tuning on
the same speakers, or adaptation to new ones."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model
from speechbrain.dataio.encoder import CategoricalEncoder
from torch import nn
from torch.nn import functional as F

from local_modules.errors import InputError, one_line
from local_modules.metrics import equal_error_rate
from local_modules.scoring import score_trials
from local_modules.trials import TrialList
from local_modules.yaml_trees import differences, load_plain

PARTS = ("compute_features", "mean_var_norm", "embedding_model")
WEIGHTS = "embedding_model.safetensors"  # in a model folder
ANY_VALUE = {"dropout"}  # changes no weight


def check_pretrained(folder: str, hparams_text: str) -> None:
    """Checks that a folder holds a model of the recipe's architecture.

    Arguments
    ---------
    folder : str
        A model folder that training has written.
    hparams_text : str
        The recipe's HyperPyYAML with references resolved.

    Raises
    ------
    InputError
        It is not a model folder, or its model differs from the recipe's.
    """
    try:
        theirs = (Path(folder) / "hyperparams.yaml").read_text(encoding="utf-8")
        check_same_model(theirs, hparams_text)
    except (OSError, ValueError) as error:
        raise _is_no_model(folder, error) from None


def start_from(
    folder: str,
    embedding_model: nn.Module,
    classifier: nn.Module,
    label_encoder: CategoricalEncoder,
) -> nn.Module:
    """Loads a trained model into a recipe's objects: the weights of the embedding
    model, and those of the classifier for the speakers that both have.

    Arguments
    ---------
    folder : str
        A model folder that `check_pretrained` has passed.
    embedding_model, classifier : torch.nn.Module
        The recipe's; `classifier.weight` has a row for each speaker or, in a
        `SplitClassifier`, for those of this rank.
    label_encoder : CategoricalEncoder
        Of the recipe's speakers.

    Returns
    -------
    torch.nn.Module
        A frozen copy of the loaded embedding model, to compare with.

    Raises
    ------
    InputError
        A file is missing or broken.
    """
    place = Path(folder)
    try:
        load_model(embedding_model, str(place / WEIGHTS))
        known = CategoricalEncoder()
        known.load(place / "label_encoder.txt")
        weight = load_file(str(place / "classifier.safetensors"))["weight"]
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise _is_no_model(folder, error) from None
    ours = getattr(classifier, "rows", range(len(classifier.weight)))
    rows = {
        known.lab2ind[speaker]: row - ours.start
        for speaker, row in label_encoder.lab2ind.items()
        if row in ours and speaker in known.lab2ind
    }
    with torch.no_grad():
        classifier.weight[list(rows.values())] = weight[list(rows)]
    return copy.deepcopy(embedding_model).eval().requires_grad_(False)


def check_same_model(theirs: str, ours: str) -> None:
    """Checks that two HyperPyYAML texts make the same features and the same model.

    Raises
    ------
    ValueError
        They don't; the first difference is named.

    Example
    -------
    >>> theirs = "{compute_features: 1, mean_var_norm: 2, embedding_model: {d: 64}}"
    >>> check_same_model(theirs, theirs.replace("64", "96"))
    Traceback (most recent call last):
    ValueError: it has embedding_model.d 64, the recipe 96
    """
    trees = [load_plain("hyperparams.yaml", text) for text in (theirs, ours)]
    for part in PARTS:
        values = [tree.get(part) for tree in trees]
        for name, one, other in differences(*values, part, ignored=ANY_VALUE):
            raise ValueError(f"it has {name} {one}, the recipe {other}")


def _is_no_model(folder: str, error: Exception) -> InputError:
    return InputError(
        f"--pretrained {folder}: has to be a model folder of this recipe: "
        f"{one_line(error)}"
    )


def freeze(embedding_model: nn.Module, n_blocks: int) -> None:
    """Freezes the lowest blocks of a Conformer and the subsampling below them.

    Arguments
    ---------
    embedding_model : torch.nn.Module
        With an `encoder` that has `subsampling` and `blocks`.
    n_blocks : int
        How many; 0 freezes nothing.

    Raises
    ------
    InputError
        `n_blocks` is negative or more than the encoder has.
    """
    if not n_blocks:
        return
    encoder = embedding_model.encoder
    if not 0 <= n_blocks <= len(encoder.blocks):
        raise InputError(
            f"--frozen_blocks {n_blocks}: the encoder has {len(encoder.blocks)}"
        )
    for module in (encoder.subsampling, *encoder.blocks[:n_blocks]):
        module.requires_grad_(False)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """The modules, however deep, with frozen parameters only. Their batch norms and
    dropouts still follow `train()`."""
    return [
        module
        for module in model.modules()
        if (parameters := [*module.parameters()])
        and not any(parameter.requires_grad for parameter in parameters)
    ]


def distance(embeddings: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Distance of embeddings from their anchors: 1 - cosine, averaged over a batch
    [batch, 1, emb_dim], from 0 to 2."""
    cosines = F.cosine_similarity(embeddings.float(), anchors.float(), dim=-1)
    return 1 - cosines.mean()


def drift(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    trials: TrialList,
) -> dict[str, float]:
    """How well kept embeddings of an old model match those of the new one.

    Arguments
    ---------
    before, after : mapping of str to torch.Tensor
        Embeddings by path, of the old model and of the new.
    trials : TrialList
        Trials of these recordings.

    Returns
    -------
    dict
        `cosine` between the old and the new embedding, averaged over recordings; equal
        error rates, fractions: `eer_old` of the old model, and `eer_across` where the
        enrolment is the old model's and the test the new one's.
    """
    cosines = [F.cosine_similarity(before[p], after[p], dim=-1) for p in before]
    # Each recording has two names, one per model.
    both = {f"old {path}": vector for path, vector in before.items()}
    both |= {f"new {path}": vector for path, vector in after.items()}
    across = TrialList(
        trials.labels,
        [f"old {path}" for path in trials.enrol],
        [f"new {path}" for path in trials.test],
    )
    return {
        "cosine": torch.stack(cosines).mean().item(),
        "eer_old": equal_error_rate(*score_trials(before, trials))[0],
        "eer_across": equal_error_rate(*score_trials(both, across))[0],
    }
