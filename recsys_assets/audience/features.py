"""What a user's events of a window come to: one row a user. Nothing here knows of Dagster or of files."""

import polars as pl

from recsys_assets.settings import AudienceSettings

DAY_MS = 86_400_000
HOURS = {"night": 22, "morning": 5, "afternoon": 12, "evening": 17}
"""Part of the day -> the hour of the local clock at which it begins; it ends where the next one does."""

FEATURE_COLUMNS = {
    "user_id": ("VARCHAR", "as in the logs"),
    "night": ("DOUBLE", "share of the events from 22 to 5 o'clock in the home's time zone"),
    "morning": ("DOUBLE", "share from 5 to 12"),
    "afternoon": ("DOUBLE", "share from 12 to 17"),
    "evening": ("DOUBLE", "share from 17 to 22"),
    "mobile": ("DOUBLE", "share on mobile of the events that tell a device; null where none does"),
    "distinct_items": ("DOUBLE", "different items over events"),
    "recency_days": ("DOUBLE", "days, with fractions, from the last event to the end of the window"),
    "events": ("BIGINT", "frequency: events in the window"),
}

_PARTS = tuple(HOURS)
_BEGINS = sorted((hour, part) for part, hour in HOURS.items())


def features(events: pl.DataFrame, start_ms: int, end_ms: int, time_zone: str) -> pl.DataFrame:
    """FEATURE_COLUMNS of every user with an event in [start_ms, end_ms), ordered by user_id.

    Args:
        events: user_id, item_id, ms (UTC), mobile (bool, null where the event tells no device); in any order.
        time_zone: IANA name; hours are those of its clock.
    """
    hour = pl.from_epoch("ms", time_unit="ms").dt.replace_time_zone("UTC").dt.convert_time_zone(time_zone).dt.hour()
    part = pl.lit(_BEGINS[-1][1])  # before the first of them the last one of the day before goes on
    for begins, name in _BEGINS:
        part = pl.when(pl.col("hour") >= begins).then(pl.lit(name)).otherwise(part)
    return (
        events.lazy()
        .filter(pl.col("ms").is_between(start_ms, end_ms, closed="left"))
        .with_columns(hour=hour)
        .with_columns(part=part)
        .group_by("user_id")
        .agg(
            *[(pl.col("part") == name).mean().alias(name) for name in _PARTS],
            pl.col("mobile").cast(pl.Float64).mean(),
            (pl.col("item_id").n_unique() / pl.len()).alias("distinct_items"),
            ((end_ms - pl.col("ms").max()) / DAY_MS).alias("recency_days"),
            pl.len().cast(pl.Int64).alias("events"),
        )
        .select(*FEATURE_COLUMNS)
        .sort("user_id")
        .collect()
    )


def takes(settings: AudienceSettings) -> pl.Expr:
    """Whether an event (action, item_id, category_id) is the one that is looked for."""
    taken = pl.col("action") == settings.action
    if settings.items or settings.categories:
        among = pl.col("item_id").is_in(settings.items) | pl.col("category_id").is_in(settings.categories)
        taken = taken & among.fill_null(False)
    return taken


def labels(users: pl.Series, events: pl.DataFrame, start_ms: int, end_ms: int) -> pl.Series:
    """Bool: whether each of the users has an event with `taken` in [start_ms, end_ms).

    Args:
        events: user_id, ms, taken (bool).
    """
    window = pl.col("ms").is_between(start_ms, end_ms, closed="left")
    takers = events.filter(window & pl.col("taken"))["user_id"].unique()
    return users.is_in(takers.implode()).alias("taken")
