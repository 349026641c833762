#!/usr/bin/env python3
"""Scores a trial list with trained models and reports their error rates.

    python evaluate.py MODEL [MODEL ...] --trials LIST --data_folder DIR

MODEL is a folder that train_speaker.py has written (results/.../model) or any speaker
model that SpeechBrain loads. LIST has lines `label enrol test` (VoxCeleb) or `enrol
test target|nontarget` (Kaldi) with paths relative to DIR. Intervals are 95 %, by a
bootstrap over speakers. Embeddings are kept, so a second run takes seconds, or minutes
for half a million trials.
"""

import argparse
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from local_modules.errors import (
    InputError,
    LineParser,
    add_trust,
    check_positive,
    exit_status,
    printable,
)
from local_modules.evaluation.backend import (
    CALIBRATED,
    COHORT_UTTERANCES,
    Backend,
    cohort_backend,
    cosines,
)
from local_modules.evaluation.confidence import speakers_of
from local_modules.evaluation.report import (
    draw_pictures,
    operating_points,
    table,
    write_report,
)
from local_modules.evaluation.results import (
    Scored,
    groups_by_metadata,
    groups_by_seconds,
    measure_groups,
    measure_systems,
    read_metadata,
)
from local_modules.files import (
    check_data_folder,
    check_writable,
    replacing,
    writing_to,
)
from local_modules.inference.embedding_store import EMBEDDINGS, Embedded, EmbeddingStore
from local_modules.inference.extraction import (
    WINDOW_SECONDS,
    embed_files,
    embed_list,
    recordings_of,
)
from local_modules.inference.speaker_model import SpeakerModel, kept_beside
from local_modules.manifest import spread_utterances
from local_modules.preparation.scan import find_audio
from local_modules.scoring import trial_rows
from local_modules.trials import TrialList, read_enrolment, read_trials

N_SHOWN = 5  # of the lines left out
SPEAKER = "speaker"  # a column of the metadata
COHORT_LAYOUT = "DIR/<speaker>/<recordings> is expected"


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="evaluate.py",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="folder or name on the hub")
    add("--trials", required=True, metavar="LIST", help="the trial list")
    add("--data_folder", required=True, metavar="DIR", help="root folder of its paths")
    add("--enrolment", metavar="FILE", help="`model path path ...` lines, for models")
    add(
        "--metadata",
        metavar="CSV",
        help="with a column path: results by its other columns; a column speaker is "
        "for the intervals",
    )
    add(
        "--mean_of_scores",
        action="store_true",
        help="a model's score is the mean of its recordings' scores; default: the "
        "score of their mean embedding",
    )
    add(
        "--cohort",
        metavar="DIR",
        help="other speakers to normalise scores by, DIR/<speaker>/...; default: the "
        "training speakers, whose means a trained model keeps",
    )
    add("--output_folder", metavar="DIR", help="default: results/evaluation/<LIST>")
    add("--strict", action="store_true", help="end at the first unusable line")
    add("--resamples", type=int, default=1000, help="bootstrap resamples")
    add(
        "--window_seconds",
        type=float,
        default=WINDOW_SECONDS,
        help="longer files are split; default: %(default)g",
    )
    add("--batch_seconds", type=float, default=120.0, help="speech per batch")
    add("--device", default="cpu")
    add_trust(parser)
    options = parser.parse_args(argv)
    check_positive(options, "resamples", "window_seconds", "batch_seconds")
    if options.mean_of_scores and options.enrolment is None:
        raise InputError(
            "--mean_of_scores: is for --enrolment FILE, whose models have several "
            "recordings"
        )
    if options.output_folder is None:
        options.output_folder = f"results/evaluation/{Path(options.trials).stem}"
    return options


def read_lists(
    options: argparse.Namespace,
) -> tuple[TrialList, dict[str, list[str]], list[str]]:
    """The trials, the recordings of each enrolled name, and why lines are left out."""
    bad_lines = None if options.strict else []
    enrolment = read_enrolment(options.enrolment) if options.enrolment else {}
    trials = read_trials(
        options.trials,
        bad_lines=bad_lines,
        is_name=lambda name: (
            name in enrolment or Path(options.data_folder, name).is_file()
        ),
    )
    members = {
        name: enrolment.get(name, [name]) for name in dict.fromkeys(trials.enrol)
    }
    return trials, members, bad_lines or []


def usable(
    trials: TrialList,
    members: dict[str, list[str]],
    failures: dict[str, str],
    options: argparse.Namespace,
) -> tuple[TrialList, list[str]]:
    """The trials whose recordings could all be embedded, and why the others are left
    out."""
    kept, complaints = [], []
    for index, (enrol, test) in enumerate(zip(trials.enrol, trials.test, strict=True)):
        failed = next((p for p in (*members[enrol], test) if p in failures), None)
        if failed is None:
            kept.append(index)
        else:
            where = f"{options.trials}:{trials.lines[index]}"
            complaints.append(f"{where}: {failed}: {failures[failed]}")
    if complaints and options.strict:
        raise InputError(complaints[0])
    labels = trials.labels[kept]
    if labels.all() or not labels.any():
        raise InputError(
            f"{options.trials}: {len(kept)} of {len(trials)} trials can be scored, "
            "not both target and non-target ones; the first that can't: "
            f"{complaints[0]}"
        )
    enrol, test = ([side[i] for i in kept] for side in (trials.enrol, trials.test))
    return TrialList(labels, enrol, test, [trials.lines[i] for i in kept]), complaints


def embed(
    options: argparse.Namespace, source: str, paths: list[str]
) -> tuple[dict, dict[str, str], Backend | None]:
    """Embeddings and failures of the list's recordings, by their paths in the list,
    and the backend for scores beyond the cosine."""
    model = SpeakerModel(source, options.device, options.trust)
    settings = {
        "window_seconds": options.window_seconds,
        "batch_seconds": options.batch_seconds,
    }
    with EmbeddingStore(kept_beside(source, EMBEDDINGS)) as store:
        backend = model.backend
        if options.cohort:
            tested = {Path(options.data_folder, path).resolve() for path in paths}
            speaker_of = cohort_files(Path(options.cohort).resolve(), tested)
            cohort, lost = embed_files(model, speaker_of, store, **settings)
            check_cohort(options, speaker_of, cohort, lost)
            vectors = {p: torch.from_numpy(e.vector) for p, e in cohort.items()}
            backend = cohort_backend(vectors, speaker_of)
        listed = options.trials, options.data_folder
        found, failures = embed_list(model, paths, *listed, store, **settings)
    return found, failures, backend


def cohort_files(folder: Path, tested: set[Path]) -> dict[Path, str]:
    """Some recordings of each speaker folder, with their speakers. No recording in the
    folders may be among the tested."""
    speaker_of = {}
    for path in find_audio(folder, COHORT_LAYOUT, key="--cohort"):
        speaker, _, below = path.partition("/")
        if below:
            speaker_of[folder / path] = speaker
        if (folder / path).resolve() in tested:
            raise InputError(
                f"--cohort {folder}: {path} is in the trial list; a cohort has to be "
                "of other speakers"
            )
    if (n_speakers := len({*speaker_of.values()})) < 2:
        raise InputError(
            f"--cohort {folder}: has recordings of {n_speakers} speakers; two or "
            f"more are needed; {COHORT_LAYOUT}"
        )
    kept = spread_utterances(speaker_of, COHORT_UTTERANCES)
    return {path: speaker for path, speaker in speaker_of.items() if path in kept}


def check_cohort(
    options: argparse.Namespace,
    speaker_of: dict[Path, str],
    embedded: dict[Path, Embedded],
    failures: dict[Path, str],
) -> None:
    """Reports recordings of the cohort that can't be embedded; at least two speakers
    have to be left and, with `strict`, all recordings."""
    if not failures:
        return
    named = [f"{printable(str(path))}: {why}" for path, why in failures.items()]
    if options.strict:
        raise InputError(f"--cohort {options.cohort}: {named[0]}")
    for complaint in named[:N_SHOWN]:
        print(f"left out: {complaint}")
    counted = (
        f"--cohort {options.cohort}: {len(failures)} of {len(speaker_of)} recordings "
        "can't be embedded"
    )
    n_speakers = len({speaker_of[path] for path in embedded})
    if n_speakers < 2:
        raise InputError(f"{counted}; two speakers are needed, {n_speakers} left")
    print(f"{counted}; {n_speakers} speakers are left")


def score(
    embedded: dict,
    backend: Backend | None,
    trials: TrialList,
    members: dict,
    mean_of_scores: bool,
) -> dict:
    """Scores of the trials by every method available, by name."""
    rows = {path: index for index, path in enumerate(embedded)}
    tested = recordings_of(list(embedded.values()))
    enrolled, names = tested, None
    if mean_of_scores:
        # One trial per recording of a model.
        counts = np.array([len(members[name]) for name in trials.enrol])
        trials = TrialList(
            np.repeat(trials.labels, counts),
            [path for name in trials.enrol for path in members[name]],
            np.repeat(trials.test, counts).tolist(),
        )
    elif any(members[name] != [name] for name in trials.enrol):
        names = list(dict.fromkeys(trials.enrol))
        own_rows = [[rows[path] for path in members[name]] for name in names]
        enrolled = replace(tested, members=own_rows)
    _, models, tests = trial_rows(list(embedded), trials, names)
    sides = enrolled, tested
    scores = {"cosine": cosines(*sides, models, tests).numpy()}
    if backend is not None:
        scores |= backend.scores(*sides, models, tests)
    if mean_of_scores:
        firsts = np.cumsum(counts) - counts
        scores = {
            way: np.add.reduceat(values, firsts) / counts
            for way, values in scores.items()
        }
    return scores


def evaluate(options: argparse.Namespace) -> dict:
    """Runs an evaluation and writes its results."""
    check_data_folder(options.data_folder)
    trials, members, complaints = read_lists(options)
    metadata = read_metadata(options.metadata) if options.metadata else {}
    check_writable(Path(options.output_folder) / "plots")
    paths = [path for recordings in members.values() for path in recordings]
    paths = list(dict.fromkeys([*paths, *trials.test]))
    if metadata and metadata.keys().isdisjoint(paths):
        raise InputError(
            f"--metadata {options.metadata}: has no recording of the trials; column "
            f"path has to name them as the lists do, such as {printable(paths[0])}"
        )
    embedded, backends, failures = {}, {}, {}
    for source in options.models:
        embedded[source], failed, backends[source] = embed(options, source, paths)
        failures |= failed
    trials, left_out = usable(trials, members, failures, options)
    complaints += left_out

    # The speaker column is for the intervals; trials are not grouped by it.
    named = {path: row.pop(SPEAKER, "") for path, row in metadata.items()}
    speaker_of = {path: name for path, name in named.items() if name.strip()}
    enrol_speakers, test_speakers = speakers_of(
        trials.labels,
        [speaker_of.get(members[name][0], name) for name in trials.enrol],
        [speaker_of.get(path, path) for path in trials.test],
    )
    systems, compared_with = {}, {}
    for source in options.models:
        scores = score(
            *(embedded[source], backends[source], trials, members),
            options.mean_of_scores,
        )
        for way, values in scores.items():
            name = way if len(options.models) == 1 else f"{source}: {way}"
            systems[name] = Scored(
                values, trials.labels, enrol_speakers, test_speakers, way == CALIBRATED
            )
            if source == options.models[0]:
                first, headline = next(iter(systems)), name
                compared_with[name] = first
            else:
                same_way = f"{options.models[0]}: {way}"
                compared_with[name] = same_way if same_way in systems else first
    metrics = measure_systems(systems, compared_with, options.resamples)

    known = embedded[options.models[0]]
    sides = [
        min(sum(known[path].seconds for path in members[enrol]), known[test].seconds)
        for enrol, test in zip(trials.enrol, trials.test, strict=True)
    ]
    groups = {"duration of the shorter side": groups_by_seconds(np.array(sides))}
    groups |= groups_by_metadata(
        metadata, [members[enrol] for enrol in trials.enrol], trials.test
    )
    shown = dict.fromkeys((first, headline))
    tables = [(column, name) for column in groups for name in shown]
    parts = {column: {} for column in groups}
    for column, name in tqdm(tables, desc="Parts", unit="table", disable=None):
        rows = groups[column]
        parts[column][name] = measure_groups(systems[name], rows, options.resamples)
    results = {
        "trials": str(options.trials),
        "n_left_out": len(complaints),
        "headline": headline,
        "systems": metrics,
        "parts": parts,
    }
    write(options, trials, systems, results, complaints)
    return results


def write(
    options: argparse.Namespace,
    trials: TrialList,
    systems: dict[str, Scored],
    results: dict,
    complaints: list[str],
) -> None:
    """Writes scores, metrics, pictures and the report, and prints where they are."""
    folder = Path(options.output_folder)
    columns = [system.scores.tolist() for system in systems.values()]
    labels = trials.labels.astype(int).tolist()
    rows = zip(labels, trials.enrol, trials.test, *columns, strict=True)
    with writing_to(folder):
        with replacing(folder / "scores.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("label", "enrol", "test", *systems))
            writer.writerows(rows)
        with replacing(folder / "metrics.json") as file:
            json.dump(results, file, indent=2)
        with replacing(folder / "left_out.txt") as file:
            file.writelines(f"{complaint}\n" for complaint in complaints)
        pictures = draw_pictures(systems, results["headline"], folder / "plots")
        write_report(results, pictures, folder / "report.html")
    for complaint in complaints[:N_SHOWN]:
        print(f"left out: {complaint}")
    n_target = int(trials.labels.sum())
    print(
        f"{len(trials)} trials, {n_target} of them target; {len(complaints)} lines "
        f"left out ({folder / 'left_out.txt'})\n"
    )
    print(table(results["systems"]))
    if any(metrics["eer"] == 0 for metrics in results["systems"].values()):
        print(
            "\nWith an EER of 0, the interval follows from the number of speakers: it "
            "ends at\nabout 3 / speakers (the rule of three)"
        )
    for point in operating_points(results["systems"]):
        print(f"\n{point}")
    print(
        f"\nreport    {folder / 'report.html'}, also by {', '.join(results['parts'])}"
    )
    print(f"scores    {folder / 'scores.csv'}")


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a full disk, 2 for wrong usage, 130 for Ctrl-C.
    """
    return exit_status("evaluate.py", lambda: evaluate(parse(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
