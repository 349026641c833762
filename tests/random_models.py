"""Model folders as training leaves them, of very small models with random weights."""

from pathlib import Path

import torch

from local_modules.config import load_hparams, resolved_text
from local_modules.evaluation.backend import Backend
from local_modules.inference.model_folder import write_model_folder

ROOT = Path(__file__).parents[1]
CONFORMER = {"d_model": 16, "n_blocks": 1, "n_heads": 2, "d_ffn": 16, "emb_dim": 8}
# Convolutional subsampling by 4 and 2, stacking by 8; attentive and plain statistics;
# layer and batch norm; all blocks and the last one's alone; and no Conformer at all.
SYSTEMS = {
    "conformer": CONFORMER,
    "mfa_conformer": CONFORMER,
    "conformer_reference": {"n_blocks": 1, "emb_dim": 8},
    "ecapa_tdnn": {"emb_dim": 8, "channels": 256},
    "xvector": {"emb_dim": 8},
}
THRESHOLD = 0.25
SPLIT = {"eer": 0.1, "eer_threshold": THRESHOLD, "min_dcf": 0.4}
SPLIT |= {"n_target": 3, "n_nontarget": 4}
# The model's own threshold is that of the validation trials.
OTHER_SPLIT = {**SPLIT, "eer_threshold": 0.9}
METRICS = {
    "valid": SPLIT,
    "test": OTHER_SPLIT,
    "epochs": 1,
    "train_seconds": 1.0,
    "n_speakers": 2,
    "n_parameters": 10,
}


def write_model(folder, system="conformer", calibration=None, **overrides):
    """Writes a model folder, weights and statistics of batch norms drawn by the
    recipe's seed; returns the folder and the recipe's text."""
    overrides = {"n_speakers": 2, **SYSTEMS[system], **overrides}
    recipe = str(ROOT / "hparams" / f"{system}.yaml")
    hparams = load_hparams(recipe, overrides)
    for module in hparams["embedding_model"].modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    hparams["label_encoder"].update_from_iterable(["ann", "bob"])
    text = resolved_text(recipe, overrides)
    backend = Backend(torch.zeros(8), torch.eye(8), calibration=calibration)
    write_model_folder(folder, hparams, text, backend, METRICS)
    return folder, text
