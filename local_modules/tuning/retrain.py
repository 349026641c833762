"""Full trainings after a search, over several seeds."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from local_modules.config import plain_values
from local_modules.corpus import check_same_corpus
from local_modules.files import replacing
from local_modules.training.continuing import (
    BUDGET_KEYS,
    FREE_KEYS,
    check_continues,
)

SETTINGS = "hyperparams.yaml"  # of a training that has begun
METRICS = "metrics.json"  # of a finished one


def retrain(
    hparams_file: str,
    systems: Mapping[str, tuple[int, Mapping]],
    seeds: Iterable[int],
    path: Path,
    run_opts,
    train: Callable[..., dict],
) -> dict:
    """Trains each system in full with each seed, and tests it.

    Arguments
    ---------
    hparams_file : str
        The recipe.
    systems : mapping of str to tuple
        By name, the number of the trial that it comes from, and its overrides.
    seeds : iterable of int
        Each system is trained once with each.
    path : Path
        JSON file for what is returned, updated after every seed. A training goes to
        `retrained/trial_<number>/<seed>/` beside it; finished ones are not repeated.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    train : callable
        `train_speaker.train`.

    Returns
    -------
    dict
        By name: `trial`, its number; `seeds`, and for each of them `valid_eer`,
        `test_eer` (fractions) and `test_min_dcf`.

    Raises
    ------
    InputError
        A training there was begun with other settings.
    """
    results = {
        name: {
            "trial": number,
            "seeds": [],
            "valid_eer": [],
            "test_eer": [],
            "test_min_dcf": [],
        }
        for name, (number, _) in systems.items()
    }
    # Seed by seed: if it ends early, all systems have equally many trainings.
    for seed in seeds:
        for name, (number, overrides) in systems.items():
            print(f"\nFull training: {name}, trial {number}, seed {seed}", flush=True)
            output = str(path.with_suffix("") / f"trial_{number}" / str(seed))
            own = {"seed": seed, "output_folder": output}
            if Path(output, SETTINGS).exists():
                # The length may not differ either, so that all are comparable.
                free = FREE_KEYS - BUDGET_KEYS
                check_continues(output, hparams_file, {**overrides, **own}, free)
                now = plain_values(hparams_file, {**overrides, **own})
                check_same_corpus(now["save_folder"], now["manifest_folder"])
            done = Path(output) / METRICS
            metrics = (
                json.loads(done.read_text(encoding="utf-8"))
                if done.exists()
                else train(hparams_file, run_opts, {**overrides, **own})
            )
            row = results[name]
            row["seeds"].append(seed)
            row["valid_eer"].append(metrics["valid"]["eer"])
            row["test_eer"].append(metrics["test"]["eer"])
            row["test_min_dcf"].append(metrics["test"]["min_dcf"])
        with replacing(path) as file:
            json.dump(results, file, indent=2)
    return results
