"""What is put into buckets for others: a JSON document a metric, and the champion's files."""

import hashlib
import json
from typing import Any
from urllib.parse import urlsplit

import filelock
import polars as pl

from recsys_assets.evaluation.measure import HYBRID, MAIN_CUTOFF, POPULAR
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import BucketSettings
from recsys_assets.storage.artifacts import MANIFEST, version_of
from recsys_assets.storage.bucket import Bucket, open_bucket
from recsys_assets.storage.tables import Tables

COLUMNS = ["day", "value", "popularity", "users"]
DASHBOARD = {
    "ndcg": ("next_day", "ndcg"),
    "precision": ("next_day", "precision"),
    "recall": ("next_day", "recall"),
    "map": ("next_day", "average_precision"),
    "mar": ("next_day", "average_recall"),
    "test_diversity": ("next_day", "diversity"),
    "all_user_diversity": ("all_users", "diversity"),
}
"""Document -> (split, metric) of the table evaluation; all at 10 places."""


def destination(url: str, pipeline: Pipeline) -> tuple[Bucket, str]:
    """The bucket of a publishing URL and the prefix of the keys in it. A relative file:// folder lies in the home.

    Raises:
        BucketError: it cannot be opened.
    """
    publish, home = pipeline.settings.publish, pipeline.settings.home
    parts = urlsplit(url)
    if parts.scheme == "file":
        folder = home / url.removeprefix("file://")
        folder.mkdir(parents=True, exist_ok=True)
        return open_bucket(BucketSettings(url=f"file://{folder}"), home), ""
    settings = BucketSettings(
        url=f"s3://{parts.netloc}",
        region=publish.region,
        endpoint_url=publish.endpoint_url,
        profile=publish.profile,
    )
    prefix = parts.path.strip("/")
    return open_bucket(settings, home), f"{prefix}/" if prefix else ""


def metric_documents(tables: Tables) -> dict[str, dict[str, Any]]:
    """Name -> {"columns": COLUMNS, "values": rows}, a row for each day that was measured, in order.

    All days come from the store each time: to publish a day twice leaves one row of it.
    """
    rows: dict[str, list[list[Any]]] = {name: [] for name in DASHBOARD}
    for day in tables.days("evaluation"):
        frame = tables.read("evaluation", day).filter(pl.col("k") == MAIN_CUTOFF)
        measured = {
            (split, metric, model): (value, users)
            for split, metric, model, value, users in frame.select(
                "split", "metric", "model", "value", "users"
            ).iter_rows()
        }
        for name, (split, metric) in DASHBOARD.items():
            if (own := measured.get((split, metric, HYBRID))) is not None:
                popular = measured.get((split, metric, POPULAR), (None, 0))
                rows[name].append([day, own[0], popular[0], own[1]])
    return {name: {"columns": COLUMNS, "values": values} for name, values in rows.items()}


def publish_metrics(pipeline: Pipeline, url: str) -> tuple[dict[str, int], str]:
    """Writes every document as NAME.json below the URL, each whole. Returns the rows of each, and a version of all."""
    bucket, prefix = destination(url, pipeline)
    pipeline.settings.store.mkdir(parents=True, exist_ok=True)
    # Else a run that read the days a moment earlier could write last, and take the newest day away again.
    with filelock.FileLock(pipeline.settings.store / "publishing.lock"):
        documents = metric_documents(pipeline.tables)
        for name, document in documents.items():
            bucket.put(f"{prefix}{name}.json", json.dumps(document, allow_nan=False).encode())
    return {name: len(document["values"]) for name, document in documents.items()}, version_of(**documents)


def publish_champion(pipeline: Pipeline, url: str) -> dict[str, Any]:
    """Copies the champion's files to DAY/VERSION/ below the URL, its manifest last, and then moves champion.json.

    Returns: day, version, files, bytes, and `unchanged` if they lay there already.

    Raises:
        InputError: there is no champion.
        ArtifactError: its files are damaged.
        BucketError: they cannot be written.
    """
    with pipeline.champion.lock():  # so that its files stay until they are copied
        champion = pipeline.champion.read()
        if champion is None:
            raise InputError("there is no champion to publish yet: materialize promotion first")
        artifact = pipeline.artifacts.at("hybrid_model", champion["day"], champion["version"])
        if artifact is None:
            raise InputError(f"the champion's files ({champion['day']}, {champion['version']}) are gone")
        artifact.verify()
        bucket, prefix = destination(url, pipeline)
        folder = f"{champion['day']}/{champion['version']}"
        manifest = (artifact.path / MANIFEST).read_bytes()
        entries: dict[str, Any] = json.loads(manifest)["files"]
        key = f"{prefix}{folder}/{MANIFEST}"
        there = bucket.head(key)
        unchanged = there is not None and bucket.get(there) == manifest
        if not unchanged:
            for name in entries:
                bucket.put(f"{prefix}{folder}/{name}", (artifact.path / name).read_bytes())
            bucket.put(key, manifest)
        pointer = {
            **{name: champion[name] for name in ("day", "version", "reason", "since")},
            "path": f"{folder}/",
            "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        }
        bucket.put(f"{prefix}champion.json", json.dumps(pointer, indent=1).encode())
    return {
        "day": champion["day"],
        "version": champion["version"],
        "files": len(entries),
        "bytes": sum(entry["bytes"] for entry in entries.values()),
        "unchanged": unchanged,
    }
