import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from recsys_assets.definitions import defs
from recsys_assets.models import MEMBERS

ROOT = Path(__file__).parent.parent
GRAPH = defs.resolve_asset_graph()
MODELS = [f"{name}_model" for name in MEMBERS]
PARAMETERS = [f"{name}_parameters" for name in MEMBERS]


def test_importing_the_definitions_stays_light() -> None:
    code = (
        "import sys, recsys_assets.definitions;"
        "print([name for name in ('torch', 'implicit', 'matplotlib', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert "Warning" not in done.stderr


def test_the_graph() -> None:
    found = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in GRAPH.get(key).parent_keys)
        for key in GRAPH.get_all_asset_keys()
    }
    assert found == {
        "raw_events": [],
        "interactions": ["raw_events"],
        "rejected_events": ["raw_events"],
        "training_set": ["interactions"],
        **{name: ["training_set"] for name in [*PARAMETERS, *MODELS]},
        "hybrid_model": sorted([*MODELS, "training_set"]),
        "evaluation": ["hybrid_model", "training_set"],
        "promotion": ["evaluation", "hybrid_model", "training_set"],
        "retention": ["promotion", "recommendations", "similar_items"],
        "recommendations": ["promotion", "training_set"],
        "similar_items": ["promotion", "training_set"],
    }


def test_jobs_hold_what_they_say() -> None:
    def assets(job: str) -> set[str]:
        return {key.to_user_string() for key in defs.resolve_job_def(job).asset_layer.executable_asset_keys}

    ingest = {"raw_events", "interactions", "rejected_events"}
    assert assets("ingest") == ingest
    assert assets("train") == {key.to_user_string() for key in GRAPH.get_all_asset_keys()} - ingest - set(PARAMETERS)
    for name in MEMBERS:
        assert assets(f"search_{name}") == {f"{name}_parameters"}


@pytest.mark.parametrize("key", sorted(GRAPH.get_all_asset_keys()), ids=lambda key: key.to_user_string())
def test_every_asset_tells_about_itself(key: dg.AssetKey) -> None:
    node = GRAPH.get(key)
    assert len(node.description or "") > 40
    assert node.owners
    assert node.kinds
    assert node.group_name != "default"
    assert node.code_version
    assert isinstance(node.partitions_def, dg.DailyPartitionsDefinition)
    assert node.backfill_policy == dg.BackfillPolicy.single_run()


def test_settings_are_part_of_the_code_versions_of_what_reads_them() -> None:
    """So that the UI marks what another setting outdates, and nothing else."""
    code = (
        "import json; from recsys_assets.definitions import defs; graph = defs.resolve_asset_graph();"
        "print(json.dumps({key.to_user_string(): graph.get(key).code_version for key in graph.get_all_asset_keys()}))"
    )
    other = {"RECSYS_RECOMMEND__COUNT": "49", "RECSYS_ALS__ALPHA": "9", "RECSYS_INGEST__SESSION_GAP_MINUTES": "30"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ | other, cwd=ROOT)
    found = json.loads(done.stdout)
    assert {key.to_user_string() for key in GRAPH.get_all_asset_keys()} == set(found)
    assert {name for name, version in found.items() if version != GRAPH.get(dg.AssetKey(name)).code_version} == {
        "interactions",
        "rejected_events",
        "als_model",
        "recommendations",
    }


def test_dagster_validates_the_workspace_without_a_warning_of_ours(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", "workspace.yaml"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "DAGSTER_HOME": str(tmp_path),
            "HOME": str(tmp_path),
            "PYTHONWARNINGS": "default",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Validation successful for code location recsys_assets" in done.stdout + done.stderr
    lines = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "Warning:" in line
        and "SupersessionWarning: Function `definitions_validate_command` is superseded" not in line
    ]
    ours = [line for line in lines if "recsys_assets" in line]
    assert not ours
    kinds = ("DeprecationWarning: `", "SupersessionWarning", "BetaWarning", "PreviewWarning")
    assert not [line for line in lines if any(kind in line for kind in kinds)]


def schedule(name: str, moment: str) -> dg.RunRequest | None:
    import datetime as dt
    from zoneinfo import ZoneInfo

    found = defs.resolve_schedule_def(name)
    at = dt.datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo("UTC"))
    requests = (
        found.evaluate_tick(
            dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def())
        ).run_requests
        or []
    )
    return requests[0] if requests else None


def test_schedules_ask_for_the_last_day_that_is_over() -> None:
    saturday = schedule("nightly_train", "2025-11-08T03:00:00")
    assert saturday is not None
    assert saturday.partition_key == "2025-11-07"
    assert schedule("nightly_train", "2025-11-09T03:00:00") is None, "Sunday belongs to the full refit"
    sunday = schedule("weekly_full_refit", "2025-11-09T03:00:00")
    assert sunday is not None
    assert sunday.partition_key == "2025-11-08"
    assert set(sunday.run_config["ops"]) == set(MODELS)
    assert schedule("nightly_train", "2025-11-01T03:00:00") is None, "no day is over yet"
    assert dg.validate_run_config(defs.resolve_job_def("train"), sunday.run_config)
