"""Scores the trials of a split, and measures their error rates."""

from collections.abc import Mapping

import torch
from speechbrain.utils.logger import get_logger

from local_modules.errors import RunError
from local_modules.metrics import verification_rates
from local_modules.scoring import score_trials
from local_modules.trials import TrialList

logger = get_logger(__name__)


def verify(
    split: str,
    embeddings: Mapping[str, torch.Tensor],
    trials: TrialList,
    max_bad_share: float,
    is_debug: bool = False,
) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Scores the trials of a split by the cosine.

    Arguments
    ---------
    split : str
        Its name in messages.
    embeddings : mapping of str to torch.Tensor
        By the names in the trials, [emb_dim].
    trials : TrialList
        The trials.
    max_bad_share : float
        Share of their recordings that may have no embedding.
    is_debug : bool
        Whether most of them were left out on purpose.

    Returns
    -------
    metrics : dict
        As `metrics.json` holds them.
    target, nontarget : torch.Tensor
        Scores.

    Raises
    ------
    RunError
        Too many recordings have no embedding, no target or no non-target trial is
        left, or embeddings are not finite.

    Example
    -------
    >>> import numpy as np
    >>> ann, ann2, bob = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    >>> labels = np.array([True, False])
    >>> trials = TrialList(labels, ["ann", "ann"], ["ann2", "bob"])
    >>> vectors = {"ann": ann, "ann2": ann2, "bob": bob}
    >>> verify("valid", vectors, trials, max_bad_share=0.0)[0]["eer"]
    0.0
    """
    names = dict.fromkeys((*trials.enrol, *trials.test))
    lost = [name for name in names if name not in embeddings]
    if lost and not is_debug:
        told = (
            f"{split}: {len(lost)} of {len(names)} recordings can't be decoded, "
            f"the first is {lost[0]}"
        )
        if len(lost) > max_bad_share * len(names):
            raise RunError(
                f"{told}; that is over max_bad_share {max_bad_share:.2%}: repair them "
                "or raise max_bad_share, and the same command continues"
            )
        logger.warning(f"{told}; trials with them are left out")
    bad = [name for name, one in embeddings.items() if not one.isfinite().all()]
    if bad:
        raise RunError(
            f"{split}: {len(bad)} of {len(embeddings)} embeddings are not finite, the "
            f"first is that of {bad[0]}: repair the recording or, if most are not, "
            "try a lower --lr in another run"
        )
    target, nontarget = score_trials(embeddings, trials)
    if not (len(target) and len(nontarget)):
        more = "raise --debug_batches" if is_debug else "repair the recordings"
        raise RunError(f"{split}: no target or no non-target trials are left; {more}")
    return verification_rates(target, nontarget), target, nontarget
