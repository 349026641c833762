#!/usr/bin/env python3
"""Fits a model's threshold and calibration to trials of your own.

    python calibrate.py MODEL --trials LIST --data_folder DIR --output_folder FOLDER

A threshold holds for recordings like those that it was chosen on. If training had other
languages, microphones or rooms, a few hundred labelled trials, of speakers who are in
no test, adapt the model to yours: FOLDER becomes a copy of MODEL with a new threshold
and calibration, and the same embeddings.
"""

import argparse
import sys
from pathlib import Path

from local_modules.errors import InputError, LineParser, add_trust, exit_status
from local_modules.evaluation.backend import CALIBRATED, STATISTICS, cosines
from local_modules.evaluation.confidence import speakers_of
from local_modules.files import check_data_folder, check_writable, writing_to
from local_modules.inference.embedding_store import EMBEDDINGS, EmbeddingStore
from local_modules.inference.extraction import embed_list, recordings_of
from local_modules.inference.model_folder import (
    CARD,
    METRICS,
    is_calibrated_anew,
    write_calibrated_folder,
)
from local_modules.inference.speaker_model import SpeakerModel, kept_beside
from local_modules.metrics import cllr, min_cllr, verification_rates
from local_modules.scoring import trial_rows
from local_modules.trials import read_trials

MIN_TRIALS = 50  # of each kind
FEW_SPEAKERS = 50  # a threshold from fewer fits mostly them


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="calibrate.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder that train_speaker.py has written")
    add("--trials", required=True, metavar="LIST", help="the trial list")
    add("--data_folder", required=True, metavar="DIR", help="root folder of its paths")
    add("--output_folder", required=True, metavar="FOLDER", help="the model to write")
    add("--device", default="cpu")
    add_trust(parser)
    return parser.parse_args(argv)


def calibrate(options: argparse.Namespace) -> None:
    """Scores the trials, fits, writes the folder, and prints what has changed."""
    folder = Path(options.output_folder)
    if folder.exists() and not is_calibrated_anew(folder):
        raise InputError(
            f"--output_folder {folder}: exists, and calibrate.py has not written it; "
            "choose another"
        )
    check_data_folder(options.data_folder)
    root = Path(options.data_folder).resolve()
    trials = read_trials(options.trials, is_name=lambda name: (root / name).is_file())
    n_target = int(trials.labels.sum())
    if min(n_target, len(trials) - n_target) < MIN_TRIALS:
        raise InputError(
            f"{options.trials}: has {n_target} target and {len(trials) - n_target} "
            f"non-target trials; {MIN_TRIALS} of each are the minimum, a few hundred "
            "are better"
        )
    model = SpeakerModel(options.model, options.device, options.trust)
    for name in (STATISTICS, METRICS, CARD):
        if not (Path(options.model) / name).is_file():
            raise InputError(
                f"{options.model}: is not a folder with a {name}, as train_speaker.py "
                "writes; only those can be calibrated"
            )
    old_threshold = model.classifier.hparams.threshold
    check_writable(folder.parent)
    names = list(dict.fromkeys([*trials.enrol, *trials.test]))
    with EmbeddingStore(kept_beside(options.model, EMBEDDINGS)) as store:
        found, failures = embed_list(model, names, options.trials, root, store)
    for name, why in failures.items():
        raise InputError(f"{root / name}: {why}; repair it, or leave its trials out")

    recordings = recordings_of([found[name] for name in names])
    _, *rows = trial_rows(names, trials)
    sides = recordings, recordings, *rows
    speakers = speakers_of(trials.labels, trials.enrol, trials.test)
    before = model.backend
    after = before.fitted(*sides, trials.labels, speakers)
    cosine = cosines(*sides).numpy()
    rates = verification_rates(cosine[trials.labels], cosine[~trials.labels])
    rates = {"trials": Path(options.trials).name, **rates}
    with writing_to(folder):
        write_calibrated_folder(options.model, folder, after.calibration, rates)

    n_speakers = 1 + int(max(side.max() for side in speakers))
    print(
        f"{rates['n_target']} target and {rates['n_nontarget']} non-target trials, "
        f"{n_speakers} speakers as far as the list says"
    )
    if n_speakers < FEW_SPEAKERS:
        print("so few speakers give only a rough threshold for others")
    print(
        f"threshold  {rates['eer_threshold']:.4f}, was {old_threshold:.4f}; EER "
        f"{100 * rates['eer']:.2f} % (cosine)"
    )
    for name, backend in (("before", before), ("after", after)):
        if backend.calibration is not None:
            ratios = backend.scores(*sides)[CALIBRATED]
            pair = ratios[trials.labels], ratios[~trials.labels]
            print(f"C_llr      {cllr(*pair):.3f} {name}, {min_cllr(*pair):.3f} at best")
    print(
        "measured on the trials that it was fitted on: on others it will be worse\n"
        f"model      {folder}"
    )


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a full disk, 2 for wrong usage, 130 for Ctrl-C.
    """
    return exit_status("calibrate.py", lambda: calibrate(parse(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
