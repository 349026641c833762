"""The output of an evaluation for its user: a table, pictures and a page."""

import base64
from collections.abc import Mapping
from pathlib import Path

from local_modules import plots
from local_modules.evaluation.results import PRIORS, Scored
from local_modules.files import replacing
from local_modules.metrics import bayes_threshold, equal_error_rate
from local_modules.templates import page_template

MANY = 6  # systems; with more, not all are drawn
TITLES = {"det": "DET curves", "scores": "Scores", "calibration": "Calibration"}
HOW_TO_READ = {
    "det": "Lower and further left is better; a dot is the equal error rate, a cross "
    "the minimum detection cost at a prior of 1 %.",
    "scores": "The less the two distributions overlap, the better.",
    "calibration": "On the diagonal, ratios are calibrated: a ratio of 10 is ten times "
    "as frequent among target trials as among non-target trials.",
}


def table(systems: Mapping[str, Mapping]) -> str:
    """Systems and their metrics as lines of text.

    Arguments
    ---------
    systems : mapping
        By name, as `evaluation.results.measure_systems` returns them.

    Returns
    -------
    str
    """
    rows = [("", *headings(systems))]
    rows += [(name, *cells(metrics, systems)) for name, metrics in systems.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *values in rows:
        padded = [f"{v:>{w}}" for v, w in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *padded]).rstrip())
    return "\n".join(lines)


def headings(systems: Mapping[str, Mapping]) -> list[str]:
    """Column headings of a table of systems."""
    found = ["EER %", "95 %", "hull %", *(f"minDCF {p}" for p in PRIORS)]
    if any("cllr" in metrics for metrics in systems.values()):
        found += [*(f"actDCF {p}" for p in PRIORS), "Cllr"]
    found.append("minCllr")
    if any("p_value" in metrics for metrics in systems.values()):
        found.append("p")
    return found


def cells(metrics: Mapping, systems: Mapping[str, Mapping]) -> list[str]:
    """A system's metrics as text, one for each of `headings`."""
    texts = {
        "EER %": f"{100 * metrics['eer']:.2f}",
        "95 %": _interval(metrics),
        "hull %": f"{100 * metrics['eer_convex_hull']:.2f}",
        "minCllr": f"{metrics['min_cllr']:.3f}",
    }
    for prior in PRIORS:
        texts[f"minDCF {prior}"] = f"{metrics[f'min_dcf_{prior}']:.3f}"
        if f"act_dcf_{prior}" in metrics:
            texts[f"actDCF {prior}"] = f"{metrics[f'act_dcf_{prior}']:.3f}"
    if "cllr" in metrics:
        texts["Cllr"] = f"{metrics['cllr']:.3f}"
    if "p_value" in metrics:
        texts["p"] = f"{metrics['p_value']:.3f}"
    return [texts.get(name, "") for name in headings(systems)]


def _interval(metrics: Mapping) -> str:
    """A system's interval of the EER, in percent."""
    if (ends := metrics["intervals"]["eer"]) is None:
        return "?"
    return " to ".join(f"{100 * end:.2f}" for end in ends)


def operating_points(systems: Mapping[str, Mapping]) -> list[str]:
    """The threshold of each calibrated system, and the error rates there, as sentences;
    none for scores that are not ratios."""
    calibrated = {name: m for name, m in systems.items() if "cllr" in m}
    return [
        f"{f'{name}: ' if len(calibrated) > 1 else ''}"
        f"If {100 * p:.0f} % of the claims are true and both errors cost the same, "
        f"accept log-likelihood ratios of {metrics[f'threshold_{p}']:.2f} or more: "
        f"{100 * metrics[f'far_{p}']:.2f} % of the false claims are accepted, "
        f"{100 * metrics[f'frr_{p}']:.2f} % of the true ones rejected."
        for name, metrics in calibrated.items()
        for p in PRIORS
    ]


def draw_pictures(
    systems: Mapping[str, Scored], name: str, folder: Path
) -> dict[str, Path]:
    """Draws the DET curves (of many systems, only those of the cosine and of ratios)
    and, for one system, the scores and, if they are ratios, the calibration.

    Arguments
    ---------
    systems : mapping of str to Scored
        By name.
    name : str
        Name of that system.
    folder : Path
        Where they are written; must exist.

    Returns
    -------
    dict
        Files by name.
    """
    found = {"det": folder / "det.png"}
    curves = {
        way: system.pair
        for way, system in systems.items()
        if len(systems) <= MANY or system.are_llrs or way.endswith("cosine")
    }
    plots.plot_det(curves, found["det"])
    shown = systems[name]
    target, nontarget = shown.pair
    if shown.are_llrs:
        threshold = bayes_threshold(PRIORS[-1])
        found["calibration"] = folder / "calibration.png"
        plots.plot_calibration(
            target, nontarget, found["calibration"], f"Calibration: {name}"
        )
    else:
        _, threshold = equal_error_rate(target, nontarget)
    found["scores"] = folder / "scores.png"
    plots.plot_scores(target, nontarget, threshold, found["scores"], f"Scores: {name}")
    return found


def write_report(results: Mapping, pictures: Mapping[str, Path], path: Path) -> None:
    """Writes the page: one file that needs no network.

    Arguments
    ---------
    results : mapping
        As `metrics.json` of an evaluation.
    pictures : mapping of str to Path
        PNG files by name, to be put into the page.
    path : Path
        The file to write.
    """
    systems = results["systems"]
    shown = results["headline"]
    text = page_template("evaluation.html").render(
        title=f"Evaluation on {Path(results['trials']).name}",
        shown=shown,
        eer=f"{100 * systems[shown]['eer']:.2f} %",
        interval=f"{_interval(systems[shown])} %",
        n_target=systems[shown]["n_target"],
        n_nontarget=systems[shown]["n_nontarget"],
        n_left_out=results["n_left_out"],
        points=operating_points(systems),
        headings=headings(systems),
        rows=[(name, cells(metrics, systems)) for name, metrics in systems.items()],
        parts=[
            {
                "column": column,
                "system": name,
                "rows": [
                    (value, metrics["n_target"], metrics["n_nontarget"])
                    + (cells(metrics, groups),)
                    for value, metrics in groups.items()
                ],
                "headings": headings(groups),
            }
            for column, by_system in results["parts"].items()
            for name, groups in by_system.items()
        ],
        pictures=[
            {
                "title": TITLES[name],
                "how_to_read": HOW_TO_READ[name],
                "data": base64.b64encode(file.read_bytes()).decode(),
            }
            for name, file in pictures.items()
        ],
    )
    with replacing(path) as file:
        file.write(text)
