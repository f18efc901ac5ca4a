"""The one daily partitions definition, and what a day means in the shop's time zone."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

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


def day_start_ms(day: str, time_zone: str) -> int:
    """Local midnight at which `day` begins, in milliseconds UTC."""
    return int(datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(time_zone)).timestamp() * 1000)


def day_of(moment: datetime, time_zone: str) -> str:
    """The local day of an aware moment."""
    return moment.astimezone(ZoneInfo(time_zone)).date().isoformat()


def shift(day: str, days: int) -> str:
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()


def today(time_zone: str) -> str:
    return day_of(datetime.now(UTC), time_zone)


daily = partitions_of(load_settings().calendar)
