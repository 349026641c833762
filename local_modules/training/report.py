"""The output of a run for its user: log lines, TensorBoard, plots, the summary."""

import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from local_modules import plots
from local_modules.files import replacing
from local_modules.training.history import RunHistory

SECONDS_BETWEEN_PLOTS = 60.0  # drawing takes about a second


class RunReporter:
    """Writes `train_log.txt`, TensorBoard events and the curves of a run.

    All are made from the rows of `RunHistory`, which are restored with a checkpoint,
    so an epoch that is trained again after a kill appears once.

    Arguments
    ---------
    output_folder : str
        The run's folder.
    draws : bool
        False leaves out the curves, which are drawn at most once a minute.
    """

    def __init__(self, output_folder: str, draws: bool = True):
        self.folder = Path(output_folder)
        self.draws = draws
        self._writer = None
        self._plotted_at = time.monotonic()

    def report(self, epochs: list[dict], best_epoch: int) -> None:
        """Reports the last of `epochs`."""
        with replacing(self.folder / "train_log.txt") as file:
            file.writelines(f"{log_line(row)}\n" for row in epochs)
        last = epochs[-1]
        print(log_line(last) + ("  (best)" if last["epoch"] == best_epoch else ""))
        new = [last]
        if self._writer is None:
            # Write every epoch again: a kill may have lost the last one's events.
            new = epochs
            self._writer = SummaryWriter(
                self.folder / "tensorboard", purge_step=epochs[0]["epoch"]
            )
        for row in new:
            for name, value in row.items():
                if name != "epoch":
                    self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()
        is_due = time.monotonic() - self._plotted_at > SECONDS_BETWEEN_PLOTS
        if self.draws and is_due:
            folder = self.folder / "plots"
            folder.mkdir(parents=True, exist_ok=True)
            plots.plot_training(epochs, best_epoch, folder)
            self._plotted_at = time.monotonic()

    def close(self) -> None:
        """Closes TensorBoard's file and ends its thread."""
        if self._writer is not None:
            self._writer.close()


def draw_plots(folder: Path, history: RunHistory, scores: Mapping) -> None:
    """Draws the plots of a finished run: the curves, the scores and the DET.

    Arguments
    ---------
    folder : Path
        Where they are written.
    history : RunHistory
        The epochs.
    scores : mapping
        `(metrics, target scores, non-target scores)` of `valid` and `test`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots.plot_training(history.epochs, history.best_epoch, folder)
    plots.plot_overview(history.epochs, history.best_epoch, folder / "overview.png")
    _, target, nontarget = scores["test"]
    plots.plot_scores(
        target.numpy(),
        nontarget.numpy(),
        scores["valid"][0]["eer_threshold"],
        folder / "scores.png",
        "Test trials, threshold chosen on the validation trials",
    )
    plots.plot_det(
        {split: row[1:] for split, row in scores.items()}, folder / "det.png"
    )


def last_screen(folder: Path, metrics: Mapping) -> str:
    """The summary printed at the end of a run."""
    lines = [""]
    for split in ("valid", "test"):
        row = metrics[split]
        lines.append(
            f"{split:5}  EER {100 * row['eer']:5.2f} % at threshold "
            f"{row['eer_threshold']:.4f}, minDCF {row['min_dcf']:.3f}, "
            f"{row['n_target']} target and {row['n_nontarget']} non-target trials"
        )
    if "drift" in metrics:
        lines.append(drift_line(metrics["drift"]))
    model = folder / "model"
    return "\n".join(
        [
            *lines,
            f"train  accuracy {100 * metrics['train']['accuracy']:.2f} %, best epoch "
            f"{metrics['best_epoch']} of {metrics['epochs']}, "
            f"{metrics['train_seconds'] / 60:.1f} minutes",
            f"plots  {folder / 'plots'}",
            f"model  {model}",
            "",
            "Use it:",
            "  from speechbrain.inference.interfaces import foreign_class",
            f"  verifier = foreign_class({str(model)!r}, pymodule_file='custom.py', "
            "classname='SpeakerVerifier')",
            "  score, same_speaker = verifier.verify_files('one.wav', 'two.wav')",
        ]
    )


def drift_line(drift: Mapping) -> str:
    """How well the old model's embeddings match the new one's, in one line.

    Example
    -------
    >>> drift_line({"cosine": 0.9, "eer_old": 0.02, "eer_across": 0.025})
    'drift  cosine 0.900 to the old embeddings; EER 2.50 % with old enrolments, 2.00 % \
with the old model alone'
    """
    return (
        f"drift  cosine {drift['cosine']:.3f} to the old embeddings; EER "
        f"{100 * drift['eer_across']:.2f} % with old enrolments, "
        f"{100 * drift['eer_old']:.2f} % with the old model alone"
    )


def log_line(row: dict) -> str:
    """One epoch in one line.

    Example
    -------
    >>> row = {"epoch": 3, "train_loss": 1.5, "train_accuracy": 0.75, "margin": 0.2}
    >>> row |= {"learning_rate": 0.001, "valid_eer": 0.05, "valid_min_dcf": 0.4}
    >>> log_line(row | {"seconds": 61.0}).split(" - ")[1]
    'valid EER 5.00 %, minDCF 0.400'
    """
    return (
        f"epoch {row['epoch']}: loss {row['train_loss']:.3f}, "
        f"accuracy {100 * row['train_accuracy']:.1f} %, margin {row['margin']:.2f}, "
        f"lr {row['learning_rate']:.1e} - valid EER {100 * row['valid_eer']:.2f} %, "
        f"minDCF {row['valid_min_dcf']:.3f} - {row['seconds'] / 60:.1f} min"
    )
