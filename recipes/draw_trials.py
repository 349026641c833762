#!/usr/bin/env python3
"""Draws a trial list with impostors of the target's own kind, or with target trials
across sessions.

    python recipes/draw_trials.py MANIFEST.csv --metadata FILE --within sex -o LIST
    python recipes/draw_trials.py MANIFEST.csv --metadata FILE --across session -o LIST

MANIFEST is one of a run's, such as manifests/valid.csv; FILE is a CSV or TSV with a
column `path`. Both sides of a trial have the same values in the columns of `--within`;
both sides of a target trial have different values in the column of `--across`.
Recordings with an empty value are left out, and so are speakers without another of
their kind.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This folder's csv would hide Python's.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p).resolve() != HERE)]

from local_modules.errors import InputError, LineParser, exit_status  # noqa: E402
from local_modules.evaluation.results import read_metadata  # noqa: E402
from local_modules.files import writing_to  # noqa: E402
from local_modules.manifest import read_manifest  # noqa: E402
from local_modules.trials import draw_trials_within, write_trials  # noqa: E402


def draw(argv: list[str]) -> None:
    """Draws the list, and prints a summary."""
    parser = LineParser(prog="draw_trials.py", description=__doc__.partition("\n\n")[0])
    add = parser.add_argument
    add("manifest", metavar="MANIFEST", help="of the recordings to compare")
    add(
        "--metadata",
        required=True,
        metavar="FILE",
        help="CSV or TSV with a column path",
    )
    add(
        "--within",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="same on both sides of a trial",
    )
    add("--across", metavar="COLUMN", help="different in a target trial")
    add("--seed", type=int, default=1986, help="of the draw (1986)")
    add("-o", "--output", required=True, metavar="LIST", help="the file to write")
    options = parser.parse_args(argv)
    within, across = options.within, options.across
    columns = within if across is None else [*within, across]
    if not columns:
        raise InputError("--within or --across has to name a column of --metadata")
    speaker_of = {row.path: row.speaker for row in read_manifest(options.manifest)}
    metadata = read_metadata(options.metadata)
    group_of = {}
    for path in speaker_of:
        if path not in metadata:
            raise InputError(f"{options.metadata}: has no row for {path}")
        for column in columns:
            if column not in metadata[path]:
                raise InputError(f"{options.metadata}: has no column {column}")
        values = {column: metadata[path][column].strip() for column in columns}
        if all(values.values()):
            group_of[path] = " ".join(values[column] for column in within)
    known = {path: speaker_of[path] for path in group_of}
    session_of = {p: metadata[p][across].strip() for p in known} if across else None
    trials = draw_trials_within(known, group_of, options.seed, session_of)
    with writing_to(options.output):
        write_trials(options.output, trials)
    if n_unknown := len(speaker_of) - len(known):
        print(f"{n_unknown} recordings are left out: a column is empty")
    summary = f"{len(trials)} trials, {trials.labels.sum()} of them target"
    if within:
        n_groups = len({group_of[path] for path in trials.enrol})
        summary += f", within {n_groups} groups"
    if across:
        summary += f", across {across}"
    print(f"{summary}\nlist  {options.output}")


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("draw_trials.py", lambda: draw(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
