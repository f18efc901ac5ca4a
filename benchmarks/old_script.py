"""The way before: a script under cron that takes a day's objects one by one, in memory, and checks nothing.

One malformed object ends it, nothing is typed, rejected or counted, and nothing is written. It is what the ingest
benchmarks compare with.
"""

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd  # type: ignore[import-untyped]

EVENT = ["user_id", "item_id", "action", "timestamp"]


def events(contents: Iterable[bytes]) -> pd.DataFrame:
    """The records of JSON arrays, each event once."""
    frames = [pd.DataFrame(json.loads(content)) for content in contents]
    return pd.concat(frames, ignore_index=True).drop_duplicates(EVENT)


def events_of_bucket(client: Any, bucket: str, prefix: str) -> pd.DataFrame:
    """The same from an S3 bucket. `client` is boto3's."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return events(client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys)
