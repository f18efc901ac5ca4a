"""The one daily partitions definition, read from the home's calendar when Dagster loads the definitions."""

import warnings
from datetime import timedelta

import dagster as dg

from recsys_assets.settings import CalendarSettings, load_settings


def partitions_of(calendar: CalendarSettings) -> dg.DailyPartitionsDefinition:
    """One partition a day from the first day on; today exists (end_offset=1), so its logs can be read today."""
    if calendar.last_day is not None:
        return dg.DailyPartitionsDefinition(
            start_date=calendar.first_day.isoformat(),
            end_date=(calendar.last_day + timedelta(days=1)).isoformat(),
            timezone=calendar.time_zone,
        )
    return dg.DailyPartitionsDefinition(
        start_date=calendar.first_day.isoformat(), timezone=calendar.time_zone, end_offset=1
    )


# backfill_policy is marked beta on @asset (not on @multi_asset); we use it on purpose, on every asset.
warnings.filterwarnings("ignore", message="Parameter `backfill_policy` of function `asset`", category=dg.BetaWarning)

daily = partitions_of(load_settings().calendar)
