"""Dagster metadata in the shapes our asset pages use: schemas, tables, pictures, progress lines."""

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

OWNERS = ["team:recommendations"]


def schema(columns: Mapping[str, tuple[str, str]]) -> dg.TableSchema:
    """A column schema from name -> (type, description)."""
    return dg.TableSchema([dg.TableColumn(name, type_, about) for name, (type_, about) in columns.items()])


def table(rows: Sequence[Mapping[str, Any]]) -> dg.MetadataValue:
    """A table of rows with equal keys; a line of text if there are none."""
    if not rows:
        return dg.MetadataValue.text("none")
    return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in rows])


def counts_table(name: str, counts: Mapping[str, int]) -> dg.MetadataValue:
    """A two-column table, largest count first."""
    return table([{name: key, "count": count} for key, count in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0]))])


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
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


def lines_picture(title: str, series: Mapping[str, Sequence[float]], x_label: str) -> dg.MetadataValue:
    """A line chart as an inline picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, values in series.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=name)
    axes.set_xlabel(x_label)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return _picture(figure)


def _picture(figure: Any) -> dg.MetadataValue:
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


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """Numbers under `prefix/`, which Dagster plots over partitions."""
    return {f"{prefix}/{name}": float(value) for name, value in values.items()}


def summary(days: Iterable[str]) -> str:
    """`2025-11-01` or `2025-11-01 to 2025-11-05 (5 days)`."""
    ordered = sorted(days)
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]} ({len(ordered)} days)"
