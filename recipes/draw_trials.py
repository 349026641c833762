#!/usr/bin/env python3
"""Draws a trial list whose impostors are of the target's own kind.

    python recipes/draw_trials.py MANIFEST.csv --metadata FILE --within sex -o LIST

MANIFEST is one of a run's, such as manifests/valid.csv; FILE is a CSV or TSV with a
column `path`. Both sides of a trial have the same values in the columns named. A
recording of which one is empty is in no trial, nor are speakers of whose kind there is
no other.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This folder's csv is not Python's.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p).resolve() != HERE)]

from local_modules.errors import InputError, LineParser, exit_status  # noqa: E402
from local_modules.evaluation.results import read_metadata  # noqa: E402
from local_modules.files import writing_to  # noqa: E402
from local_modules.manifest import read_manifest  # noqa: E402
from local_modules.trials import draw_trials_within, write_trials  # noqa: E402


def draw(argv: list[str]) -> None:
    """Draws the list, and says what is in it."""
    parser = LineParser(prog="draw_trials.py", description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("manifest", metavar="MANIFEST", help="whose recordings are compared")
    add("--metadata", required=True, metavar="FILE", help="with a column path")
    add("--within", required=True, nargs="+", metavar="COLUMN", help="of it")
    add("--seed", type=int, default=1986, help="of the draw (1986)")
    add("-o", "--output", required=True, metavar="LIST", help="the file to write")
    options = parser.parse_args(argv)
    speaker_of = {row.path: row.speaker for row in read_manifest(options.manifest)}
    metadata = read_metadata(options.metadata)
    group_of = {}
    for path in speaker_of:
        if path not in metadata:
            raise InputError(f"{options.metadata}: has no row for {path}")
        for column in options.within:
            if column not in metadata[path]:
                raise InputError(f"--within {column}: {options.metadata} has no such")
        values = [metadata[path][column].strip() for column in options.within]
        if all(values):
            group_of[path] = " ".join(values)
    known = {path: speaker_of[path] for path in group_of}
    trials = draw_trials_within(known, group_of, options.seed)
    with writing_to(options.output):
        write_trials(options.output, trials)
    n_target = int(trials.labels.sum())
    n_groups = len({group_of[path] for path in trials.enrol})
    if n_unknown := len(speaker_of) - len(known):
        print(f"{n_unknown} recordings are left out: a column is empty")
    print(
        f"{len(trials)} trials, {n_target} of them target, within {n_groups} groups\n"
        f"list  {options.output}"
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    return exit_status("draw_trials.py", lambda: draw(argv))


if __name__ == "__main__":
    sys.exit(main())
