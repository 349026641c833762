#!/usr/bin/env python3
"""Packs the recordings of manifests into tar shards, for training from a server or a
slow disk.

    python recipes/make_shards.py SHARDS --manifests DIR/train.csv DIR/valid.csv \
        DIR/test.csv --data_folder DATA
    python recipes/make_shards.py SHARDS --verify

The first can be interrupted and continued. Then train with --shards SHARDS, or with the
URL of a server that has this folder. WebDataset reads the shards too.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This folder's csv would hide Python's.
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p).resolve() != HERE)]

from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    RunError,
    exit_status,
)
from local_modules.shards.packing import pack, verify  # noqa: E402


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program."""
    parser = LineParser(
        prog="make_shards.py",
        description=__doc__.partition("\n\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("shards", type=Path, metavar="SHARDS", help="folder of the shards")
    add("--manifests", type=Path, nargs="+", metavar="CSV", help="what to pack")
    add(
        "--data_folder",
        type=Path,
        metavar="DIR",
        help="folder that their paths are relative to",
    )
    add("--verify", action="store_true", help="compare the shards with their checksums")
    add("--per_shard", type=int, default=1000, help="utterances per shard (1000)")
    add("--seed", type=int, default=0, help="of the order in the shards (0)")
    add(
        "--original",
        action="store_true",
        help="keep the bytes of whole files; otherwise, 16 and 24 bits become FLAC, "
        "which is lossless",
    )
    add(
        "--max_bad_share",
        type=float,
        default=0.01,
        help="share that may be unreadable (0.01)",
    )
    options = parser.parse_args(argv)
    if options.verify == bool(options.manifests):
        raise InputError("--manifests, --verify: give one of them")
    if options.manifests and options.data_folder is None:
        raise InputError(
            "--data_folder: name the folder that the manifests' paths are relative to"
        )
    return options


def run(options: argparse.Namespace) -> None:
    """Packs, or verifies what is packed."""
    if options.verify:
        damaged = list(verify(options.shards))
        print(*damaged, sep="\n", end="\n" if damaged else "")
        if damaged:
            raise RunError(
                f"{options.shards}: {len(damaged)} shards are damaged; delete them, "
                "and pack again with the same command as before"
            )
        print(f"{options.shards}: all shards match their checksums")
        return
    for manifest in options.manifests:
        shards = pack(
            manifest,
            options.data_folder,
            options.shards,
            options.per_shard,
            options.seed,
            options.original,
            options.max_bad_share,
        )
        n = sum(len(shard.members) for shard in shards)
        print(f"{manifest.stem}: {n} utterances in {len(shards)} shards")


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for damaged shards or too many unreadable recordings, 2 for
        wrong usage, 130 for Ctrl-C.
    """
    return exit_status("make_shards.py", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
