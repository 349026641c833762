"""What trials are judged by: the metrics that a study can minimise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STEPS = 10  # of a trial that the pruner sees: tenths of its budget


@dataclass(frozen=True)
class Objective:
    """A metric that trials can be judged by.

    Arguments
    ---------
    by_epoch : str | None
        Its key in an epoch's row; None if epochs don't have it.
    untrained : float | None
        Its value before the first epoch: an untrained network guesses.
    factor : float
        Converts it to the unit shown.
    text : str
        Format of the converted value.
    axis : str
        Label of the axis in plots.
    """

    by_epoch: str | None
    untrained: float | None
    factor: float
    text: str
    axis: str


OBJECTIVES = {
    "eer": Objective("valid_eer", 0.5, 100, "EER {:.2f} %", "valid EER (%)"),
    "min_dcf": Objective("valid_min_dcf", 1.0, 1, "minDCF {:.3f}", "valid minDCF"),
    "n_parameters": Objective(
        None, None, 1e-6, "{:.2f} M parameters", "parameters (M)"
    ),
    "train_seconds": Objective(
        "seconds", 0.0, 1 / 60, "{:.1f} min of training", "training (min)"
    ),
}


def objective_text(name: str, value: float) -> str:
    """An objective's value as shown to users.

    Example
    -------
    >>> objective_text("eer", 0.0412), objective_text("n_parameters", 1050000)
    ('EER 4.12 %', '1.05 M parameters')
    """
    objective = OBJECTIVES[name]
    return objective.text.format(objective.factor * value)


def objective_value(metrics: dict, objective: str) -> float:
    """The value of one of `OBJECTIVES` in a trial's metrics."""
    rates = metrics["valid"]
    return float(rates[objective] if objective in rates else metrics[objective])


def by_budget(epochs: Sequence[Mapping], objective: Objective) -> dict[int, float]:
    """A trial's objective at each tenth of its budget, so that a trial with long epochs
    is compared with what others have reached in the same time.

    Arguments
    ---------
    epochs : sequence of mapping
        Rows of `RunHistory`.
    objective : Objective
        One that is known after each epoch.

    Returns
    -------
    dict
        By tenth k from 1, its value after the first epoch that ended from k to k + 1
        tenths, else after the latest one before; until the first epoch,
        `objective.untrained`.

    Example
    -------
    >>> rows = [{"valid_eer": 0.3, "budget_used": 0.25}]
    >>> rows += [{"valid_eer": 0.2, "budget_used": 0.5}]
    >>> by_budget(rows, OBJECTIVES["eer"])
    {1: 0.5, 2: 0.3, 3: 0.3, 4: 0.3, 5: 0.2}
    """
    known: dict[int, float] = {}
    latest = objective.untrained
    for row in epochs:
        # Shares such as 3 / 10 may be rounded down.
        step = int(STEPS * row["budget_used"] + 1e-6)
        known |= dict.fromkeys(range(len(known) + 1, step), latest)
        if step > 0:
            # What the pruner has seen stays.
            known.setdefault(step, row[objective.by_epoch])
        latest = row[objective.by_epoch]
    return known
