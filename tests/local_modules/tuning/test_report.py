"""The page and the pictures of a study, opened in a real browser."""

import html
import re

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from local_modules.tuning.figures import make_pictures, write_pictures
from local_modules.tuning.report import write_report
from local_modules.tuning.search import Search
from local_modules.tuning.study import REASON, SLOT, live_trials

SPACE = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "emb_dim": CategoricalDistribution((16, 192)),
}
RETRAINED = {
    "best": {
        "trial": 1,
        "seeds": [1, 2],
        "valid_eer": [0.02, 0.04],
        "test_eer": [0.05, 0.07],
        "test_min_dcf": [0.5, 0.7],
    },
    "defaults": {
        "trial": 0,
        "seeds": [1, 2],
        "valid_eer": [0.06, 0.08],
        "test_eer": [0.07, 0.09],
        "test_min_dcf": [0.6, 0.8],
    },
}


def make_study(n_trials, objectives=("eer",), pruned=2):
    """Trials of all kinds, the second the best."""
    study = optuna.create_study(directions=["minimize"] * len(objectives))
    study.enqueue_trial({"lr": 0.002, "emb_dim": 192})
    for number in range(n_trials):
        trial = study.ask(SPACE)
        trial.set_user_attr(SLOT, number)
        eers = [0.3 / epoch - 0.01 * (number == 1) for epoch in (1, 2, 3)]
        rows = [
            {
                "epoch": epoch,
                "valid_eer": eer,
                "train_accuracy": 0.3 * epoch,
                "train_loss": 3.0 / epoch,
                "learning_rate": 0.001,
                "budget_used": epoch / 3,
                "seconds": 60.0 * epoch,
            }
            for epoch, eer in enumerate(eers, 1)
        ]
        if number == 3:
            trial.set_user_attr(REASON, "MemoryError: </script><b>no & room")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        is_pruned = number == pruned and len(objectives) == 1
        trial.set_user_attr("epochs", rows[:1] if is_pruned else rows)
        if len(objectives) == 1:
            for row in rows[:1] if is_pruned else rows:
                trial.report(row["valid_eer"], row["epoch"])
        if is_pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            values = (eers[-1] + 0.001 * number * (number != 1), 1e6 * (number + 1))
            study.tell(trial, values[: len(objectives)])
    return study


def write(study, folder, retrained=None, objectives=("eer",)):
    search = Search(
        len(study.trials),
        tuple(objectives),
        {"number_of_epochs": 3},
        SPACE,
        {"lr": 0.002, "emb_dim": 192},
    )
    pictures = make_pictures(study, objectives)
    write_report(
        study,
        search,
        "hparams/a.yaml",
        "python train_speaker.py best.yaml --precision bf16",
        pictures,
        retrained,
        folder / "report.html",
    )
    return pictures, (folder / "report.html").read_text(encoding="utf-8")


def visible(page):
    """What stands in the page's body, without scripts and tags."""
    body = page[page.index("<body>") :]
    body = re.sub(r"<script>.*?</script>", "", body, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", body).split()))


def test_the_answer_stands_first(tmp_path):
    _, page = write(make_study(8), tmp_path)
    text = visible(page)
    assert text.index("EER 9.00 %") < text.index("EER 10.00 %")  # best, then defaults
    assert "Gained 10 %" in text
    # Over all their attempts, of which Optuna knows the last.
    assert "6 complete, 1 pruned, 1 failed; 19 minutes of trials" in text
    assert "--retrain" in text
    assert "python train_speaker.py best.yaml --precision bf16" in text


def test_a_reason_is_text_not_markup(tmp_path):
    _, page = write(make_study(8), tmp_path)
    assert "MemoryError: &lt;/script&gt;&lt;b&gt;no &amp; room" in page
    assert "</script><b>" not in page


def test_the_page_needs_no_network(tmp_path):
    _, page = write(make_study(8), tmp_path)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", page)


def test_what_retraining_says_of_the_gain(tmp_path):
    text = visible(write(make_study(8), tmp_path, RETRAINED)[1])
    # Means of 3 and 7 % on valid, 6 and 8 % on test; 9 and 10 % in the search.
    assert "the best trial gained 10 % over the recipe's own" in text
    assert "on valid they lower it by 57 %, on test they lower it by 25 %." in text
    assert "On test," not in text  # nothing was lost
    assert "6.00 ± 1.41 %" in text
    assert "best (trial 1)" in text and "defaults (trial 0)" in text
    for test_eers, told in (
        # Half of the search's 10 %, nothing, and a tenth more errors.
        ([0.066, 0.086], "they lower it by 5 %. On test, 5 of the 10 % remain."),
        ([0.07, 0.09], "they lower it by 0 %. On test, nothing of the gain remains."),
        ([0.078, 0.098], "they raise it by 10 %. On test, nothing of the gain remains"),
    ):
        worse = {**RETRAINED, "best": {**RETRAINED["best"], "test_eer": test_eers}}
        text = visible(write(make_study(8), tmp_path, worse)[1])
        assert f"on valid they lower it by 57 %, on test {told}" in text
    # Points of another objective are none of the EER.
    study = make_study(8, ("n_parameters", "eer"))
    text = visible(write(study, tmp_path, worse, ("n_parameters", "eer"))[1])
    assert "raise it by 10 %." in text
    assert "On test," not in text and "In the search" not in text
    own = {"defaults": RETRAINED["defaults"]}
    text = visible(write(make_study(8), tmp_path, own)[1])
    assert "No trial was better than the recipe's own." in text


def test_a_first_trial_that_was_pruned_is_no_measure_of_the_gain(tmp_path):
    """Studies may have one that were begun when it still could be."""
    study = make_study(8, pruned=0)
    assert live_trials(study)[0].values == [0.3]  # of its last epoch
    text = visible(write(study, tmp_path, RETRAINED)[1])
    assert "In the search" not in text and "On test," not in text
    assert "on valid they lower it by 57 %, on test they lower it by 25 %." in text


def test_more_objectives_than_can_be_drawn(tmp_path):
    objectives = ("eer", "n_parameters", "train_seconds", "min_dcf")
    study = optuna.create_study(directions=4 * ["minimize"])
    for number in range(2):
        trial = study.ask(SPACE)
        trial.set_user_attr("slot", number)
        study.tell(trial, [0.1, 1e6, 60.0 + number, 0.5])
    pictures, _ = write(study, tmp_path, objectives=objectives)
    assert "pareto_front" not in [picture.name for picture in pictures]


@pytest.mark.parametrize("n_trials", [1, 2, 8])
def test_few_trials_give_fewer_pictures(n_trials, tmp_path):
    pictures, _ = write(make_study(n_trials), tmp_path)
    names = [picture.name for picture in pictures]
    assert {"optimization_history", "timeline", "eer", "loss"} <= set(names)
    assert ("slice" in names) == (n_trials == 8)
    write_pictures(pictures, tmp_path / "plots")
    for name in names:
        assert (tmp_path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert "plotly.min.js" in (tmp_path / "plots" / f"{name}.html").read_text()


def named(pictures, name):
    (picture,) = (picture for picture in pictures if picture.name == name)
    return picture.figure


def test_rates_are_drawn_in_percent():
    """Also what the pruner was told."""
    study = make_study(8)
    pictures = make_pictures(study, ["eer"])
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    dots, best, *_ = named(pictures, "optimization_history").data
    assert list(dots.x) == [trial.number for trial in complete]
    assert list(dots.y) == pytest.approx([100 * trial.value for trial in complete])
    assert best.y[-1] == pytest.approx(9.0)
    lines = {line.name: line for line in named(pictures, "intermediate_values").data}
    assert len(lines) == 7  # one has failed
    assert list(lines["Trial0"].y) == pytest.approx([30.0, 15.0, 10.0])
    assert list(lines["Trial2"].y) == pytest.approx([30.0])  # pruned


@pytest.mark.parametrize(
    ("objective", "value", "shown"),
    [("n_parameters", 2.5e6, 2.5), ("train_seconds", 90.0, 1.5), ("min_dcf", 0.4, 0.4)],
)
def test_each_objective_is_drawn_in_the_unit_of_its_axis(objective, value, shown):
    study = optuna.create_study(directions=2 * ["minimize"])
    trial = study.ask(SPACE)
    trial.set_user_attr(SLOT, 0)
    study.tell(trial, [0.04, value])
    front = named(make_pictures(study, ["eer", objective]), "pareto_front")
    *_, dots = front.data
    assert (*dots.x, *dots.y) == pytest.approx((4.0, shown))
    unit = {"n_parameters": "(M)", "train_seconds": "(min)", "min_dcf": "minDCF"}
    assert front.layout.yaxis.title.text.endswith(unit[objective])


def test_the_overlay_shows_the_curves_of_the_trials(tmp_path):
    study = make_study(5)
    pictures, _ = write(study, tmp_path)
    (eer,) = (picture for picture in pictures if picture.name == "eer")
    *_, front = eer.figure.data
    assert front.name == "best, trial 1"
    rows = live_trials(study)[1].user_attrs["epochs"]
    assert list(front.y) == [100 * row["valid_eer"] for row in rows]
    assert list(front.x) == [100 * row["budget_used"] for row in rows]
    assert eer.figure.layout.yaxis.type == "log"
    (pruned,) = (line for line in eer.figure.data if line.name == "trial 2")
    assert len(pruned.y) == 1 and pruned.line.dash == "dot"


@pytest.mark.filterwarnings("error::UserWarning")
def test_several_objectives(tmp_path):
    objectives = ("eer", "n_parameters")
    study = make_study(6, objectives)
    pictures, page = write(study, tmp_path, objectives=objectives)
    names = [picture.name for picture in pictures]
    assert names[0] == "pareto_front" and "intermediate_values" not in names
    assert "2.00 M parameters" in visible(page)


SORTED = """(() => {
    const heading = name => [...document.querySelectorAll("#trials th")]
        .find(cell => cell.textContent === name);
    const column = () => [...document.querySelectorAll("#trials tbody tr")]
        .map(row => row.cells[0].textContent);
    const found = {before: column(),
        plots: document.querySelectorAll(".js-plotly-plot").length,
        wide: document.documentElement.scrollWidth - window.innerWidth};
    heading("eer").click(); found.up = column();
    heading("eer").click(); found.down = column();
    return found;
})()"""


@pytest.mark.parametrize("width", [390, 1200])
def test_in_a_browser(width, tmp_path, in_browser):
    """On a phone and on a desk: no error on the console, nothing wider than the
    screen, all pictures drawn, and the table sorts."""
    pictures, page = write(make_study(8), tmp_path, RETRAINED)
    found, console = in_browser(page, SORTED, width)
    assert not console
    assert found["plots"] == len(pictures)
    assert found["wide"] <= 0
    assert found["before"] == [str(n) for n in range(8)]
    # Trial 1 is the best, 0 next; the pruned one has its last value, the failed none.
    assert found["up"] == ["1", "0", "4", "5", "6", "7", "2", "3"]
    assert found["down"] == ["2", "7", "6", "5", "4", "0", "1", "3"]
