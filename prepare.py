#!/usr/bin/env python3
"""Prepares a corpus without training: to inspect its splits, or on a machine without a
GPU before others train.

    python prepare.py hparams/conformer_speech.yaml --data_folder DIR [--key value ...]

Takes a YAML file and its keys as train_speaker.py does, and makes the manifests and
trial lists that it would make. Training finds them there; with --skip_prep True, it
doesn't scan the corpus again.
"""

import logging
import sys

from local_modules import config
from local_modules.command_line import parse_command_line
from local_modules.corpus import (
    holds,
    noted_corpus,
    overview,
    prepare_corpus,
    read_corpus,
)
from local_modules.errors import InputError, exit_status
from local_modules.training.continuing import FREE_KEYS, check_continues, has_begun


def run(argv: list[str]) -> None:
    """Prepares as the command line says."""
    if {"-h", "--help"} & {*argv}:
        print(__doc__)
        return
    hparams_file, run_opts, overrides = parse_command_line(argv)
    for name in run_opts.overridden_args:
        if name not in overrides:
            raise InputError(f"--{name}: is for train_speaker.py; leave it out")
    config.check_overrides(hparams_file, overrides)
    settings = config.plain_values(hparams_file, overrides)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    begun_with = None
    if has_begun(settings["save_folder"]):
        begun_with = noted_corpus(settings["save_folder"])
        # A run's manifests must not be replaced; others may.
        if begun_with is None or holds(settings["manifest_folder"], begun_with):
            free = FREE_KEYS - {"trials"}  # whose content is not compared here
            folder = settings["output_folder"]
            check_continues(folder, hparams_file, overrides, free)
    prepare_corpus(settings, begun_with)
    splits, trials = read_corpus(settings["manifest_folder"])
    print(overview(splits, trials))
    print(f"manifests  {settings['manifest_folder']}")


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for too many bad recordings, 2 for wrong usage, 130 for
        Ctrl-C.
    """
    return exit_status("prepare.py", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
