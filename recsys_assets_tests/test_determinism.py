"""The same inputs and settings give the same bytes, whatever the number of threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

from recsys_assets.models import MEMBERS
from recsys_assets.pipeline import Pipeline
from recsys_assets_tests.graph import TRAINED, copy_home

ROOT = Path(__file__).parent.parent


def test_the_same_bytes_on_one_and_on_two_threads(trained_home: Pipeline, tmp_path: Path) -> None:
    running = {}
    for threads in ("1", "2"):
        home = copy_home(trained_home, tmp_path / threads).settings.home
        environment = {
            **{name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")},
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONHASHSEED": threads,
        }
        command = [
            sys.executable,
            "-m",
            "recsys_assets_tests.determinism_worker",
            home,
            tmp_path / f"b{threads}",
            *TRAINED,
        ]
        running[threads] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )
    found = {}
    for threads, process in running.items():
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        found[threads] = json.loads(out)
    for name in MEMBERS:
        files = [path for path in found["1"] if path.startswith(f"{name}_model/")]
        assert sum(path.endswith("final/arrays.safetensors") for path in files) == len(TRAINED)
        assert {f"{name}/fit/arrays.safetensors", f"{name}/update/arrays.safetensors"} <= found["1"].keys()
    assert any(path.startswith("hybrid_model/") for path in found["1"])
    assert {"ranker/arrays.safetensors", "ranker/params.json", "ranked lists"} <= found["1"].keys()
    different = {path for path in found["1"].keys() | found["2"].keys() if found["1"].get(path) != found["2"].get(path)}
    assert not different
