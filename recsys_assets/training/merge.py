"""Merging days of interactions into one training set: id maps that only grow, and events as positions.

The training set of a day depends on nothing but the interactions up to that day, the frozen hold-outs and the
settings, so days can be built in any order and late data is absorbed by building again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_assets.storage.warehouse import scratch
from recsys_assets.training.events import Events, Items, TrainingSet

_DAYS = """
CREATE TEMP VIEW kept AS
SELECT parse_filename(filename, true) AS day, user_id, item_id, action, timestamp, category_id, price
FROM read_parquet($files, filename = true)
WHERE reason IS NULL
"""

# An object uploaded again under another day's prefix repeats its events there: the earliest day keeps them.
# Sets and orders are by value everywhere, never by arrival, so that the same inputs give the same bytes.
_SQL = """
CREATE TEMP TABLE merged AS
SELECT user_id, item_id, action, timestamp, min(day) AS day
FROM kept GROUP BY ALL;

CREATE TEMP TABLE users AS
SELECT row_number() OVER (ORDER BY first_day, user_id) - 1 AS position, user_id, first_day
FROM (SELECT user_id, min(day) AS first_day FROM merged GROUP BY user_id);

CREATE TEMP TABLE categories AS
SELECT row_number() OVER (ORDER BY first_day, category_id) - 1 AS position, category_id
FROM (SELECT category_id, min(day) AS first_day FROM kept WHERE category_id IS NOT NULL GROUP BY category_id);

CREATE TEMP TABLE items AS
SELECT row_number() OVER (ORDER BY first_day, item_id) - 1 AS position, item_id, first_day,
       latest_category.category_id AS category_id, latest_price.price AS price
FROM (SELECT item_id, min(day) AS first_day,
             max({'at': timestamp, 'category_id': category_id}) FILTER (category_id IS NOT NULL) AS latest_category,
             max({'at': timestamp, 'price': price}) FILTER (price IS NOT NULL) AS latest_price
      FROM kept GROUP BY item_id);
"""

_EVENTS = """
SELECT u.position::INTEGER AS "user", i.position::INTEGER AS item, a.position::TINYINT AS action,
       a.weight::FLOAT AS weight, epoch_ms(m.timestamp) AS timestamp
FROM merged m
JOIN users u USING (user_id) JOIN items i USING (item_id) JOIN actions a ON a.name = m.action
ANTI JOIN holdout h
  ON h.user_id = m.user_id AND h.item_id = m.item_id AND h.action = m.action AND h.timestamp = m.timestamp
WHERE m.day >= $window_start AND epoch_ms(m.timestamp) < $end_ms
ORDER BY "user", timestamp, item, action
"""


@dataclass(frozen=True)
class MergeCounts:
    """What became of the interactions: all but users, items and categories add up to `interactions`."""

    interactions: int
    kept: int
    repeated_across_days: int
    withheld: int
    too_old: int
    unmapped: int
    ahead: int
    users: int
    items: int
    categories: int


def merge(
    interactions: Sequence[Path],
    holdout: Path | None,
    actions: dict[str, float],
    window_start: str,
    end_ms: int,
    folder: Path,
) -> MergeCounts:
    """Writes `events.parquet`, `users.parquet`, `items.parquet`, `categories.parquet` and `actions.parquet`.

    Args:
        interactions: the interactions files of every day up to the training set's, named `YYYY-MM-DD.parquet`.
        holdout: the frozen hold-out (columns user_id, item_id, action, timestamp), never merged; None: there is none.
        actions: weight of each action; events of other actions (settings changed since) are counted as unmapped.
        window_start: first day whose events are learned from; the id maps know older ids all the same.
        end_ms: end (exclusive) of the training set's day. Events that bear a later time (a clock ahead, folders of
            another time zone) are counted as ahead and learned from on their own day: what is measured on a day must
            not have been seen before it.
        folder: an empty folder.
    """
    with scratch(folder.parent) as connection:
        # Views take no parameters, so the file list goes through a variable.
        connection.execute("SET VARIABLE files = $files", {"files": [str(path) for path in interactions]})
        if interactions:
            connection.execute(_DAYS.replace("$files", "getvariable('files')"))
        else:
            connection.execute(
                "CREATE TEMP TABLE kept (day VARCHAR, user_id VARCHAR, item_id VARCHAR, action VARCHAR, "
                "timestamp TIMESTAMP, category_id VARCHAR, price DOUBLE)"
            )
        connection.execute(_SQL)
        connection.execute("CREATE TEMP TABLE actions (position INTEGER, name VARCHAR, weight DOUBLE)")
        connection.executemany(
            "INSERT INTO actions VALUES (?, ?, ?)",
            [[position, name, weight] for position, (name, weight) in enumerate(actions.items())],
        )
        connection.execute(
            "CREATE TEMP TABLE holdout (user_id VARCHAR, item_id VARCHAR, action VARCHAR, timestamp TIMESTAMP)"
        )
        if holdout is not None:
            connection.execute(
                "INSERT INTO holdout SELECT DISTINCT user_id, item_id, action, timestamp FROM read_parquet($path)",
                {"path": str(holdout)},
            )
        events = connection.sql(_EVENTS, params={"window_start": window_start, "end_ms": end_ms}).to_arrow_table()
        pq.write_table(events, folder / "events.parquet", compression="zstd")
        for name, columns in (
            ("users", "position, user_id, first_day"),
            ("categories", "position, category_id"),
            ("actions", "position, name, weight"),
            (
                "items",
                "i.position, item_id, first_day, coalesce(c.position, -1)::INTEGER AS category, price::FLOAT AS price "
                "FROM items i LEFT JOIN categories c USING (category_id) ORDER BY i.position",
            ),
        ):
            sql = f"SELECT {columns}" if "FROM" in columns else f"SELECT {columns} FROM {name} ORDER BY position"
            pq.write_table(connection.sql(sql).to_arrow_table(), folder / f"{name}.parquet", compression="zstd")

        def count(sql: str, **parameters: str | int) -> int:
            row = connection.execute(sql, parameters).fetchone()
            assert row is not None
            return int(row[0])

        total, merged = count("SELECT count(*) FROM kept"), count("SELECT count(*) FROM merged")
        too_old = count("SELECT count(*) FROM merged WHERE day < $day", day=window_start)
        ahead = count(
            "SELECT count(*) FROM merged WHERE day >= $day AND epoch_ms(timestamp) >= $end",
            day=window_start,
            end=end_ms,
        )
        unmapped = count(
            "SELECT count(*) FROM merged WHERE day >= $day AND epoch_ms(timestamp) < $end "
            "AND action NOT IN (SELECT name FROM actions)",
            day=window_start,
            end=end_ms,
        )
        return MergeCounts(
            interactions=total,
            kept=events.num_rows,
            repeated_across_days=total - merged,
            withheld=merged - too_old - ahead - unmapped - events.num_rows,
            too_old=too_old,
            unmapped=unmapped,
            ahead=ahead,
            users=count("SELECT count(*) FROM users"),
            items=count("SELECT count(*) FROM items"),
            categories=count("SELECT count(*) FROM categories"),
        )


def load(folder: Path, end_ms: int) -> TrainingSet:
    """Reads what `merge` wrote."""

    def column(table: pa.Table, name: str, dtype: type) -> np.ndarray:
        return np.ascontiguousarray(table.column(name).to_numpy(), dtype=dtype)

    events = pq.read_table(folder / "events.parquet")
    users = pq.read_table(folder / "users.parquet", columns=["user_id"]).column(0).to_pylist()
    items = pq.read_table(folder / "items.parquet")
    return TrainingSet(
        events=Events(
            column(events, "user", np.int32),
            column(events, "item", np.int32),
            column(events, "action", np.int8),
            column(events, "weight", np.float32),
            column(events, "timestamp", np.int64),
            len(users),
            items.num_rows,
        ),
        users=users,
        items=Items(
            ids=items.column("item_id").to_pylist(),
            category=column(items, "category", np.int32),
            categories=pq.read_table(folder / "categories.parquet").column("category_id").to_pylist(),
            price=column(items, "price", np.float32),
        ),
        actions=pq.read_table(folder / "actions.parquet").column("name").to_pylist(),
        end_ms=end_ms,
    )
