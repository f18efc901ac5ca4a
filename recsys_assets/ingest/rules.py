"""Optional rules over a cleaned day: users that act like robots set aside, events grouped into sessions.

Both look at a user's events of the day together, so they come after the cleaning, which looks at each record alone.
"""

from collections import Counter
from dataclasses import replace

import polars as pl

from recsys_assets.ingest.decode import EXCERPT_CHARACTERS
from recsys_assets.ingest.validate import REJECTED_SCHEMA, CleanResult, assert_conserved
from recsys_assets.settings import IngestSettings

TOO_MANY = "too_many_events"
_HOUR_MS = 3_600_000


def apply_rules(result: CleanResult, settings: IngestSettings) -> CleanResult:
    """The result with `ingest.max_events_per_hour` and `ingest.session_gap_minutes` applied.

    Interactions gain the column session_id: int32, the number of the user's session within the day, from 0; null
    while sessions are off. The same events give the same numbers, whatever order they came in.

    Raises:
        ConservationError: records would be lost.
    """
    if settings.max_events_per_hour is not None:
        result = _set_aside(result, settings.max_events_per_hour)
    return replace(result, interactions=_with_sessions(result.interactions, settings.session_gap_minutes))


def _set_aside(result: CleanResult, most: int) -> CleanResult:
    """Moves all events of the day of every user with more than `most` within any 60 minutes to the rejected ones.

    A part of a robot's day is worth as little as the rest. Its repeated records stay counted as duplicates.
    """
    events = result.interactions  # sorted by user and time: the event `most` rows ahead tells
    crowded = (pl.col("user_id") == pl.col("user_id").shift(-most)) & (
        pl.col("timestamp").shift(-most).dt.epoch("ms") - pl.col("timestamp").dt.epoch("ms") < _HOUR_MS
    )
    robots = events.filter(crowded)["user_id"].unique()
    excerpt = (
        pl.struct(pl.col("timestamp").dt.epoch("ms"), "item_id", "user_id", "action")
        .struct.json_encode()
        .str.slice(0, EXCERPT_CHARACTERS)
    )
    return set_aside(result, robots, TOO_MANY, pl.lit(f"the user has more than {most} events within an hour"), excerpt)


def set_aside(result: CleanResult, users: pl.Series, reason: str, detail: pl.Expr, excerpt: pl.Expr) -> CleanResult:
    """Moves all events of some users to the rejected ones.

    Raises:
        ConservationError: records would be lost.
    """
    if users.is_empty():
        return result
    events = result.interactions
    theirs = events["user_id"].is_in(users.implode())
    kept, moved = events.filter(~theirs), events.filter(theirs)
    rejected = moved.select(
        pl.lit(reason).alias("reason"), detail.alias("detail"), excerpt.alias("excerpt"), "source_key", "record"
    ).match_to_schema(REJECTED_SCHEMA)
    moved_by_key = moved.group_by(pl.col("source_key").alias("key")).agg(pl.len().cast(pl.Int64()).alias("moved"))
    by_key = (
        result.by_key.join(moved_by_key, on="key", how="left", maintain_order="left")
        .with_columns(pl.col("moved").fill_null(0))
        .with_columns(kept=pl.col("kept") - pl.col("moved"), rejected=pl.col("rejected") + pl.col("moved"))
        .drop("moved")
    )
    assert_conserved(by_key)
    actions = Counter(dict(kept["action"].value_counts().iter_rows()))
    rejections = Counter(result.rejections) + Counter({reason: len(moved)})
    return replace(
        result,
        interactions=kept,
        # By bytes of the key, as all else is ordered.
        rejected=pl.concat([result.rejected, rejected]).sort(pl.col("source_key").cast(pl.Binary()), "record"),
        kept=len(kept),
        rejections=dict(sorted(rejections.items())),
        off_day=int(kept["off_day"].sum()),
        actions={action: actions[action] for action in result.actions},
        users=kept["user_id"].n_unique(),
        items=kept["item_id"].n_unique(),
        by_key=by_key,
    )


def _with_sessions(events: pl.DataFrame, gap_minutes: float | None) -> pl.DataFrame:
    if gap_minutes is None:
        return events.with_columns(pl.lit(None, pl.Int32()).alias("session_id"))
    pause = pl.col("timestamp").diff().over("user_id").dt.total_milliseconds()
    begins = (pause >= gap_minutes * 60_000).fill_null(False)
    return events.with_columns(begins.cast(pl.Int32()).cum_sum().over("user_id").cast(pl.Int32()).alias("session_id"))
