"""Days: text 'YYYY-MM-DD' that begins and ends at local midnight of the shop's time zone."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo


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
