"""The parts of the graph that settings switch on. What is off is not even imported."""

from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from recsys_assets.settings import Settings


@dataclass
class Parts:
    """What the parts that are on add to the definitions."""

    assets: list[Any] = field(default_factory=list)
    sensors: list[Any] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    schedules: list[Any] = field(default_factory=list)
    before_raw_events: list[str] = field(default_factory=list)
    """Assets that put objects into the bucket."""


def parts(settings: Settings) -> Parts:
    found = Parts()
    if settings.queue.url:
        from recsys_assets.ingest.queue import bucket_events

        found.sensors.append(bucket_events)
    if settings.publish.metrics_url:
        from recsys_assets.publishing.assets import published_metrics

        found.assets.append(published_metrics)
    if settings.publish.model_url:
        from recsys_assets.publishing.assets import published_champion

        found.assets.append(published_champion)
    if settings.sql.url:
        from recsys_assets.sources import assets as sql

        found.assets += sql.sql_assets(settings)
        found.jobs.append(sql.load_tables)
        found.schedules.append(sql.nightly_tables)
        found.before_raw_events += ["sql_events"] if settings.sql.events else []
    return found


def after(asset: dg.AssetsDefinition, earlier: list[str]) -> dg.AssetsDefinition:
    """The asset with further ones that it comes after."""
    if not earlier:
        return asset
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(deps=[*spec.deps, *earlier]))
