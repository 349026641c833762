"""What the benchmarks share: results measured once, on an unchanged corpus, CPU time of
child processes, tables."""

import json
import re
import resource
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from local_modules.corpus import TRAINED, checksums, prepare_corpus
from local_modules.errors import InputError
from local_modules.files import replacing

SETTINGS = "settings.json"
NOTED = "manifests"  # key of their checksums in the settings


def once(path: Path, measure: Callable[[], dict]) -> dict:
    """The result of `measure()`, from the file if it was measured before."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = measure()
        with replacing(path) as file:
            json.dump(result, file, indent=2)
    return json.loads(path.read_text())


def prepare_noted(folder: Path, settings: Mapping, corpus: Mapping) -> dict:
    """Prepares the corpus of a folder of measurements.

    Arguments
    ---------
    folder : Path
        The folder; its `settings.json` has the settings that it was begun with.
    settings : mapping
        The present settings.
    corpus : mapping
        The settings that `prepare_corpus` needs.

    Returns
    -------
    dict
        The content of `settings.json`, if there is none.

    Raises
    ------
    InputError
        It was begun with other settings, recordings or trials.
    """
    file = folder / SETTINGS
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    begun_with = None
    if earlier is not None:
        begun_with = earlier.pop(NOTED, None)
        settings = json.loads(json.dumps(settings))
        for key in earlier | settings:
            if earlier.get(key) != settings.get(key):
                raise InputError(
                    f"{folder}: was begun with {key} {earlier.get(key)}, not "
                    f"{settings.get(key)}; continue with that, or choose another --name"
                )
    prepare_corpus(corpus, begun_with)
    found = checksums(corpus["manifest_folder"], TRAINED)
    for name in begun_with or ():
        if begun_with[name] != found[name]:
            raise InputError(
                f"{Path(corpus['manifest_folder']) / name}: has changed since {folder} "
                "was begun; choose another --name"
            )
    return {**settings, NOTED: found}


def typed(values: Mapping) -> list[str]:
    """Keys and values as command-line arguments."""
    words = []
    for key, value in values.items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return words


def run_to_its_end(command: Sequence[str], **options) -> int:
    """Runs a program and returns its exit status. After Ctrl-C, which the program also
    receives, waits until it has saved its work; after a second one, doesn't.

    Arguments
    ---------
    command : sequence of str
        The program and its arguments.
    **options
        Of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, **options)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


def children_cpu_seconds() -> float:
    """CPU time of all child processes that have ended, with that of their own
    children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(text: str, path: Path) -> None:
    """Writes tables to a file, and prints them and where they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(f"{text}\n")
    print(text, f"table    {path}", sep="\n\n")


def peak_mib() -> float:
    """Peak memory of this process, in MiB; not `ru_maxrss`, which a process inherits
    from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
