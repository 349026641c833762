"""The table and the picture of benchmarks/accuracy.py, from finished trainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.measuring import markdown
from local_modules.evaluation.backend import CALIBRATED
from local_modules.evaluation.confidence import known_interval, p_value
from local_modules.plots import line_look, save_figure, tidy

ALL = "all"  # all trials, beside those of each value of --by
COSINE = "cosine"
TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50)  # of the picture, percent


@dataclass(frozen=True)
class Summary:
    """A row of the table, from its finished seeds.

    Arguments
    ---------
    runs : list of dict
        Results of `run_row`.
    replicates : dict
        Means over the seeds of the bootstrap's replicates, by part and metric.
    """

    runs: list[dict]
    replicates: dict[str, np.ndarray]

    def mean(self, get) -> float:
        """Mean over the seeds of what `get` takes out of a run."""
        return float(np.mean([get(run) for run in self.runs]))

    def cell(self, part: str, metric: str, factor: float, form: str) -> str:
        """A metric's mean over the seeds, standard deviation and interval."""
        values = [factor * run["test"][part][metric] for run in self.runs]
        deviation = f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else ""
        ends = known_interval(self.replicates[f"{part}/{metric}"])
        told = "?" if ends is None else ", ".join(f"{factor * x:{form}}" for x in ends)
        return f"{np.mean(values):{form}}{deviation} [{told}]"


def summarise(results: Mapping[Path, dict]) -> Summary:
    """Summarises the seeds of a row.

    The bootstrap has the same random seeds everywhere, so a resample has the same
    speakers for all models, and means and differences can be taken.
    """
    drawn = [dict(np.load(folder / "replicates.npz")) for folder in results]
    means = {name: np.mean([one[name] for one in drawn], axis=0) for name in drawn[0]}
    return Summary(list(results.values()), means)


def tables(rows: Mapping[str, Summary], parts: list[str]) -> str:
    """The table of all rows and, if the trials have parts, the tables of these."""
    first = next(iter(rows.values()))
    heading = ["", "parameters", "MACs", "trained, utterances/s", "passes"]
    heading += ["cores busy", "real-time factor", "seeds", "valid EER (%)"]
    heading += ["test EER (%)", "p", "minDCF", "calibrated: test EER (%)", "p"]
    lines = []
    for row in rows.values():
        run = row.runs[0]
        p = {
            way: p_value(*(s.replicates[f"{ALL}/{way}/eer"] for s in (first, row)))
            for way in (COSINE, CALIBRATED)
        }
        # For a continued training, only the usage of the last part is known.
        usages = [run["usage"] for run in row.runs if not run["usage"]["continued"]]
        busy = [usage["cpu_seconds"] / usage["seconds"] for usage in usages]
        lines.append(
            [
                run["title"],
                f"{run['n_parameters'] / 1e6:.2f} M",
                f"{run['macs'] / 1e9:.3g} G",
                f"{row.mean(lambda r: r['utterances_per_second']):.3g}",
                f"{row.mean(lambda r: r['passes']):.3g}",
                f"{np.mean(busy):.2f}" if busy else "?",
                f"{row.mean(lambda r: r['real_time_factor']):.3g}",
                f"{len(row.runs)}",
                f"{100 * row.mean(lambda r: r['valid_eer']):.2f}",
                row.cell(ALL, f"{COSINE}/eer", 100, ".2f"),
                "" if row is first else f"{p[COSINE]:.3f}",
                row.cell(ALL, f"{COSINE}/min_dcf", 1, ".3f"),
                row.cell(ALL, f"{CALIBRATED}/eer", 100, ".2f"),
                "" if row is first else f"{p[CALIBRATED]:.3f}",
            ]
        )
    text = markdown(heading, lines)
    names = [part for part in parts if part != ALL]
    for metric, title, factor, form in (
        (f"{COSINE}/eer", "test EER (%)", 100, ".2f"),
        (f"{CALIBRATED}/eer", "calibrated: test EER (%)", 100, ".2f"),
        (f"{COSINE}/min_dcf", "minDCF", 1, ".3f"),
    ):
        cells = [
            [row.runs[0]["title"], *(row.cell(n, metric, factor, form) for n in names)]
            for row in rows.values()
        ]
        text += f"\n\n{markdown([title, *names], cells)}" if names else ""
    return text


def picture(rows: Mapping[str, Summary], path: Path) -> None:
    """Draws the validation EER over the minutes: a thin line for each seed, a thick one
    for their mean, over the stretch that all of them cover."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    lowest = 1.0
    for index, row in enumerate(rows.values()):
        look = line_look(index)
        thin = {**look, "linestyle": "-", "linewidth": 0.6, "alpha": 0.4}
        curves = [np.array(run["curve"]).T for run in row.runs]
        # A logarithmic axis can't show zero.
        curves = [(x, np.maximum(eer, TICKS[0] / 100)) for x, eer in curves]
        lowest = min(lowest, *(eer.min() for _, eer in curves))
        for seconds, eer in curves:
            axes.plot(seconds / 60, 100 * eer, **thin)
        start = max(seconds[0] for seconds, _ in curves)
        end = max(start, min(seconds[-1] for seconds, _ in curves))
        grid = np.linspace(start, end, 200 if end > start else 1)
        mean = np.mean([np.interp(grid, *curve) for curve in curves], axis=0)
        marked = len(curves[0][0]) <= 3  # a line of so few points would hardly be seen
        axes.plot(
            grid / 60,
            100 * mean,
            **look,
            linewidth=1.8,
            marker="o",
            markevery=[-1],
            markersize=7 if marked else 4,
            label=row.runs[0]["title"],
        )
    axes.set_yscale("log")
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_ylim(max(80 * lowest, TICKS[0]), 60)
    axes.set_xlim(left=0)
    axes.set_title("Validation EER while training, by seed and on average", loc="left")
    axes.set_xlabel("Training time (min)")
    axes.set_ylabel("Validation EER (%)")
    figure.legend(loc="outside right upper", frameon=False)
    tidy(axes)
    save_figure(figure, path)
