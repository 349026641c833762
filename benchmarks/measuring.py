"""What the benchmarks share: measured once, CPU time of others, tables."""

import json
import re
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

from local_modules.files import replacing


def once(path: Path, measure: Callable[[], dict]) -> dict:
    """What `measure()` gives, from the file if it was measured before."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        result = measure()
        with replacing(path) as file:
            json.dump(result, file, indent=2)
    return json.loads(path.read_text())


def children_cpu_seconds() -> float:
    """CPU time of all processes that were started from here and have ended, with
    theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def peak_mib() -> float:
    """The highest memory that this process has had, in MiB; not `ru_maxrss`, which a
    process takes over from the one that starts it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024
