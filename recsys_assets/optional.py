"""The parts of the graph that settings switch on. What is off is not even imported."""

from dataclasses import dataclass, field
from typing import Any

from recsys_assets.settings import Settings


@dataclass
class Parts:
    """What the parts that are on add to the definitions."""

    assets: list[Any] = field(default_factory=list)
    sensors: list[Any] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    schedules: list[Any] = field(default_factory=list)


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
    if settings.audience.action:
        from recsys_assets.audience import assets as audience

        found.assets += audience.audience_assets
        found.jobs.append(audience.find_audience)
        found.schedules.append(audience.nightly_audience)
    if settings.personalize.url:
        from recsys_assets.personalize import assets as personalize

        found.assets += personalize.personalize_assets(settings)
        found.jobs.append(personalize.personalize)
        found.schedules.append(personalize.nightly_personalize)
        found.sensors.append(personalize.personalize_progress)
    return found


def before_raw_events(settings: Settings) -> list[str]:
    """Assets that put objects into the bucket, which raw_events comes after."""
    return ["sql_events"] if settings.sql.url and settings.sql.events else []
