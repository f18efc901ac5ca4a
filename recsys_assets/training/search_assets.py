"""Searched parameters as assets, one a member, and the jobs that search."""

from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

from recsys_assets import reporting
from recsys_assets.models import MEMBERS
from recsys_assets.partitions import daily
from recsys_assets.pipeline import Pipeline, explained_failures
from recsys_assets.storage.artifacts import version_of
from recsys_assets.training import search
from recsys_assets.training.schedules import RETRIES


class SearchConfig(dg.Config):
    """How long a run searches."""

    trials: int | None = Field(default=None, description="trials in all; default: search.trials of the settings")
    seconds: float | None = Field(default=None, description="no new trial after this long; default: search.seconds")


ASSETS = [search.asset_name(name) for name in MEMBERS]


def _alone(context: dg.AssetExecutionContext) -> bool:
    """Whether a run asks for searches and nothing else. To materialize everything must not start hours of them."""
    made = context.job_def.asset_layer.executable_asset_keys
    return {key.to_user_string() for key in made} <= set(ASSETS)


def _parameters_asset(name: str) -> dg.AssetsDefinition:
    @dg.asset(
        name=search.asset_name(name),
        partitions_def=daily,
        backfill_policy=dg.BackfillPolicy.single_run(),
        # The models read the newest search of their day or an earlier one. They do not depend on it for Dagster, whose
        # UI would warn of a missing upstream partition on every day that had no search of its own.
        deps=["training_set"],
        group_name="search",
        kinds={"optuna"},
        owners=reporting.OWNERS,
        code_version=search.CODE_VERSION,
        description=(
            f"Parameters of {name}_model, searched on the validation days before the day: read by the model of that "
            "day and later ones unless settings.yaml says otherwise. A stopped search goes on. In a run that also "
            "makes other assets nothing is searched, and this shows what is in force."
        ),
    )
    def parameters(
        context: dg.AssetExecutionContext, config: SearchConfig, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.MaterializeResult:
        versions: dict[str, str] = {}
        with explained_failures(pipeline):
            newest = max(context.partition_keys)
            for day in sorted(context.partition_keys):
                searched = _alone(context) and day == newest
                if searched:
                    search.search(pipeline, name, day, context.log.info, config.trials, config.seconds)
                metadata, versions[day] = _metadata(pipeline, name, day, searched)
                context.add_asset_metadata(
                    metadata | reporting.made(searched, versions[day]),
                    partition_key=day,
                )
        return dg.MaterializeResult(data_version=reporting.data_version(versions))

    return parameters


def _metadata(pipeline: Pipeline, name: str, day: str, searched: bool) -> tuple[dict[str, Any], str]:
    """What is in force on a day, and a version of it."""
    settings, found = search.in_force(pipeline, name, day)
    metadata: dict[str, Any] = {
        "parameters": reporting.table(search.origins(pipeline, name, settings, found)),
        "searched in this run": searched,
        "search": found.info["day"] if found else "none yet: defaults and settings",
    }
    if found is not None:
        info = found.info
        trials = pl.read_parquet(found.path / "trials.parquet").sort("ndcg10", descending=True).head(10)
        metadata |= {
            "ndcg@10": reporting.number(info["ndcg"]),
            "ndcg@10 before": reporting.number(info["ndcg_before"]),
            "difference, 95 %": f"{info['difference']['low']:+.4f} to {info['difference']['high']:+.4f} on validation",
            "trials": info["trials"],
            "best trial": info["best_trial"],
            "lists judged by": info["lists"],
            "seconds": info["seconds"],
            "best trials": reporting.table(
                [{option: search.short(value) for option, value in row.items()} for row in trials.to_dicts()]
            ),
            "version of the search": found.version,
            "artifact": dg.MetadataValue.path(str(found.path)),
        }
    return metadata, version_of(
        parameters=getattr(settings, name).model_dump(),
        search=found.version if found else None,
        code=search.CODE_VERSION,
    )


parameter_assets = [_parameters_asset(name) for name in MEMBERS]
search_jobs = [
    dg.define_asset_job(
        f"search_{name}",
        dg.AssetSelection.assets(search.asset_name(name)),
        description=f"Searches parameters of {name}_model on the validation days before a day.",
        op_retry_policy=RETRIES,
    )
    for name in MEMBERS
]
