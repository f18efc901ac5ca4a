"""Dagster metadata in the shapes our asset pages use: schemas, tables, pictures, progress lines."""

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import dagster as dg

from recsys_assets.history import OF_SEVERAL, VERSION, BatchedEventLogStorage
from recsys_assets.storage.artifacts import version_of
from recsys_assets.storage.environment import environment, in_words

OWNERS = ["team:recommendations"]


def schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A column schema from name -> (type, description)."""
    return dg.TableSchema([dg.TableColumn(name, type_, about) for name, (type_, about) in columns.items()])


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> dg.MetadataValue:
    """A table of rows with equal keys; a line of text if there are none.

    Args:
        columns: which, from left to right; default: as in the first row. Rows read back from a file come sorted by
            name.
    """
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table([dg.TableRecord({key: row[key] for key in columns or row}) for row in rows])


def counts_table(name: str, counts: Mapping[str, int]) -> dg.MetadataValue:
    """Counts with their shares, largest first."""
    total = max(sum(counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))
    return table([{name: key, "count": count, "share": f"{count / total:.1%}"} for key, count in ordered])


def number(value: float) -> float:
    """Six decimals: what a page shows of a figure. The tables keep all of them."""
    return round(value, 6)


def moment(iso: str | None) -> dg.MetadataValue:
    """A moment in the reader's time zone."""
    return dg.MetadataValue.text("none") if iso is None else dg.MetadataValue.timestamp(datetime.fromisoformat(iso))


def log_lines(lines: Sequence[str]) -> dg.MetadataValue:
    """Lines of a log, one a bullet, so that long ones wrap."""
    return dg.MetadataValue.md("\n".join(f"- {line}" for line in lines))


def bars_picture(title: str, rows: Sequence[tuple[str, float, float, float]]) -> dg.MetadataValue:
    """A bar chart as an inline picture: rows of (label, value, low, high), drawn with their intervals."""
    from matplotlib.figure import Figure  # the object interface: pyplot keeps global state in a long-lived process

    figure = Figure(figsize=(6.4, 0.42 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    labels, values, lows, highs = zip(*rows, strict=True)
    errors = [
        [max(v - low, 0) for v, low in zip(values, lows, strict=True)],
        [max(high - v, 0) for v, high in zip(values, highs, strict=True)],
    ]
    colours = ["#1f5fa8" if label.startswith("hybrid") else "#9db4cc" for label in labels]
    axes.barh(labels, values, xerr=errors, color=colours, ecolor="#444444", capsize=3)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    return _inline(figure, axes)


def calibration_picture(rows: Sequence[tuple[float, float, float, float]]) -> dg.MetadataValue:
    """A reliability diagram as an inline picture: rows of (foretold, happened, low, high), with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    foretold, happened, lows, highs = zip(*rows, strict=True)
    most = max(*foretold, *highs) * 1.05
    axes.plot([0, most], [0, most], color="#9db4cc", linewidth=1)
    axes.vlines(foretold, lows, highs, color="#444444", linewidth=1)
    axes.plot(foretold, happened, "o", color="#1f5fa8", markersize=4)
    axes.set_xlabel("foretold probability", fontsize=9)
    axes.set_ylabel("share that took the offer, 95 % interval", fontsize=9)
    return _inline(figure, axes)


def _inline(figure: Any, axes: Any) -> dg.MetadataValue:
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return dg.MetadataValue.md(f"![chart](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})")


class Progress:
    """Logs a line at most every few seconds while long work runs."""

    def __init__(self, log: Callable[[str], None], every_seconds: float = 5.0) -> None:
        self._log = log
        self._every = every_seconds
        self._last = time.monotonic()

    def __call__(self, message: str) -> None:
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._log(message)


def made(fresh: bool, version: str) -> dict[str, Any]:
    """The partition's version, whether this run made it, and in which environment if so: equal bytes are claimed for
    one alone."""
    entries: dict[str, Any] = {VERSION: version, "unchanged": not fresh}
    return entries | ({"environment": in_words(environment())} if fresh else {})


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Numbers under `prefix/`, which Dagster plots over partitions."""
    return {f"{prefix}/{name}": number(value) for name, value in values.items()}


def data_version(versions: Mapping[str, str]) -> dg.DataVersion:
    """What Dagster is to know as the data version of the days of a run: the stored one of a single day.

    Dagster gives all partitions of a range one version (1.13, `MaterializeResult.data_version`): one over them
    together, so that a day that changes changes it. Our event log stores the version in the metadata of each day
    (`made`) in its place (history.py); it stays where a home keeps its history otherwise.

    Args:
        versions: day -> the version stored with its partition.
    """
    if len(versions) == 1:
        return dg.DataVersion(next(iter(versions.values())))
    return dg.DataVersion(OF_SEVERAL + version_of(days=dict(versions)))


def before_checks(context: dg.AssetExecutionContext, asset: str, versions: Mapping[str, str]) -> None:
    """To be called before the result of an asset that has checks of its own. These look at the asset's last event, and
    Dagster would warn that its data version is not the one over all days of the run."""
    if len(versions) > 1 and isinstance(context.instance.event_log_storage, BatchedEventLogStorage):
        context.set_data_version(dg.AssetKey(asset), dg.DataVersion(versions[max(versions)]))


def summary(days: Iterable[str]) -> str:
    """`2025-11-01` or `2025-11-01 to 2025-11-05 (5 days)`."""
    ordered = sorted(days)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]} ({len(ordered)} days)"
