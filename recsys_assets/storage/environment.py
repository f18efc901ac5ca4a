"""What besides inputs, settings and code can change the bytes of a model: libraries, processor, threads."""

import os
import platform
import sys
from functools import cache
from importlib import metadata
from typing import Any

import threadpoolctl

_LIBRARIES = ("duckdb", "implicit", "numpy", "polars", "pyarrow", "safetensors", "scipy", "torch")


def environment() -> dict[str, Any]:
    """{"python", "libraries": name -> version, "machine", "kernels": BLAS kernels chosen for this processor and its
    vector instructions, "threads"}. Compared with what stands in an artifact's manifest before equality is claimed.
    """
    return {**_fixed(), "threads": _threads()}


@cache
def _fixed() -> dict[str, Any]:
    import numpy as np

    config: dict[str, Any] = np.show_config(mode="dicts")  # type: ignore[assignment]
    simd = config["SIMD Extensions"]
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "machine": f"{platform.system()} {platform.machine()}",
        "kernels": sorted({*(str(each.get("architecture")) for each in _blas()), *simd["baseline"], *simd["found"]}),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _blas() -> list[dict[str, Any]]:
    """NumPy's alone: which others are loaded depends on what was imported so far."""
    found = [each for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"]
    return [each for each in found if "numpy" in each["filepath"]] or found


def _threads() -> int:
    """Threads a run may use: OMP_NUM_THREADS, else the processors this process may run on."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    if text.isdigit() and int(text):
        return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_words(made: dict[str, Any]) -> str:
    """An environment in one line, for a page that a person reads."""
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(made["libraries"].items()))
    kernels = " ".join(made["kernels"])
    return f"Python {made['python']}, {made['machine']}, {made['threads']} threads; {libraries}; kernels {kernels}"


def differences(made: dict[str, Any] | None, here: dict[str, Any]) -> list[str]:
    """What differs between the environment an artifact was made in and this one, a line each; [] if nothing does."""
    if made is None:
        return ["it does not say in which environment it was made"]
    lines = []
    for name in sorted({*made, *here} - {"libraries"}):
        if made.get(name) != here.get(name):
            lines.append(f"{name}: made with {made.get(name)}, here {here.get(name)}")
    then, now = made.get("libraries", {}), here.get("libraries", {})
    lines += [
        f"{name}: made with {then.get(name)}, here {now.get(name)}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    return lines
