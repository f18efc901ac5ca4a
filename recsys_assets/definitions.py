"""Wiring only: everything Dagster loads."""

import dagster as dg

from recsys_assets.evaluation import assets as evaluation
from recsys_assets.ingest import assets as ingest
from recsys_assets.ingest.sensors import new_log_prefixes
from recsys_assets.launch import brief_logger
from recsys_assets.optional import parts
from recsys_assets.pipeline import Pipeline, dagster_resources
from recsys_assets.serving import assets as serving
from recsys_assets.training import assets as training
from recsys_assets.training import schedules, search_assets
from recsys_assets.trust import assets as trust

_pipeline = Pipeline.open()
_optional = parts(_pipeline.settings)

defs = dg.Definitions(
    assets=[
        ingest.raw_events,
        ingest.interactions,
        training.training_set,
        *search_assets.parameter_assets,
        *training.member_assets,
        training.hybrid_model,
        evaluation.evaluation,
        evaluation.promotion,
        trust.retention,
        serving.recommendations,
        serving.similar_items,
        *_optional.assets,
    ],
    asset_checks=[ingest.yesterday_is_there, trust.no_erased_user],
    jobs=[
        schedules.ingest,
        schedules.readmit,
        schedules.train,
        schedules.lists,
        schedules.relist,
        *_optional.jobs,
        *search_assets.search_jobs,
    ],
    schedules=[schedules.nightly_train, schedules.weekly_full_refit, *_optional.schedules],
    sensors=[new_log_prefixes, *_optional.sensors],
    resources=dagster_resources(_pipeline),
    # One process a run: the models share what they read, and torch and implicit are imported once. A process a step
    # costs 1.5 to 3.5 s each. Backfills are ranges, so a backfill is one process too.
    executor=dg.in_process_executor,
    loggers={"console": dg.colored_console_logger, "brief": brief_logger},
)
