"""One JSON line a figure on standard output; everything else goes to standard error."""

import contextlib
import json
import os
import platform
import resource
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def environment() -> dict[str, object]:
    """What a figure depends on besides the code. No host or user names."""
    packages = {
        name: version(name) for name in ("dagster", "duckdb", "polars", "numpy", "torch", "implicit", "obstore")
    }
    return {
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        **packages,
    }


def emit(
    name: str,
    runs: Sequence[float],
    unit: str,
    seconds: float,
    peak_mb: float | None = None,
    value: float | None = None,
    **more: object,
) -> None:
    """Prints the figure `name`: the median of `runs`, or `value` where the figure is another mean of them.

    Args:
        seconds: what the measuring itself took.
        peak_mb: largest resident memory of a measured process, in MB (10**6 bytes).
        more: further facts of the figure.
    """
    line = {
        "name": name,
        "value": statistics.median(runs) if value is None else value,
        "unit": unit,
        "runs": [round(run, 4) for run in runs],
        "seconds": round(seconds, 1),
        "peak_mb": round(peak_mb, 1) if peak_mb is not None else None,
        **more,
        "env": environment(),
    }
    print(json.dumps(line), flush=True)


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_seconds_beside() -> float:
    """User and system time so far of the running processes that this one started: servers, as a rule. Needs /proc."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """The largest resident memory of this process so far, in MB (10**6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
