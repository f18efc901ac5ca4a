"""`store/warehouse.duckdb`: views over the tables' Parquet files, for people and their tools.

A DuckDB file admits one writing process or many readers. Runs therefore never compute in it: they write Parquet and
touch the file only when a view is new or its text changed, so a person's open shell blocks no run.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_assets.storage import files

if TYPE_CHECKING:  # imported where it is needed: views that stand need none
    import duckdb

DATABASE = "warehouse.duckdb"
_CREATED = "warehouse.views.json"

# view -> (table whose files it reads, what it selects); `day` is the partition
_VIEWS = {
    "raw_objects": ("raw_events", "* EXCLUDE (content)"),
    "raw_events": ("raw_events", "day, key, etag, record, body"),
    "interactions": (
        "interactions",
        "day, user_id, item_id, action, timestamp, category_id, price, source_key, record, off_day, session_id",
    ),
    "rejected_events": ("interactions", "day, source_key, record, reason, detail, excerpt"),
    "metrics": ("evaluation", "*"),
    "promotions": ("promotion", "*"),
    "champions": ("promotion", "since, event, day, version, reason, previous"),
    "retention": ("retention", "*"),
    "recommendations": ("recommendations", "*"),
    "similar_items": ("similar_items", "*"),
    "catalogue": ("catalogue", "*"),
    "users": ("users", "*"),
    "watch_ratings": ("watch_ratings", "*"),
    "user_features": ("user_features", "*"),
    "audience": ("audience", "*"),
}
_WHERE = {"interactions": "reason IS NULL", "rejected_events": "reason IS NOT NULL"}


# What DuckDB says of a file whose making was cut short by a kill.
_DAMAGED = ("not a valid duckdb database", "could not read enough bytes")


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def view_sql(view: str, root: Path) -> str:
    """The CREATE VIEW statement of a view over the store at `root`."""
    table, columns = _VIEWS[view]
    source = (
        f"(SELECT parse_filename(filename, true)::DATE AS day, * EXCLUDE (filename) "
        f"FROM read_parquet({_quoted(root / table / '*.parquet')}, filename=true, union_by_name=true))"
    )
    if view == "champions":  # one small file: the pointer's timeline
        source = (
            f"(SELECT unnest(timeline, recursive := true) FROM read_json({_quoted(root / 'champion.json')}, "
            'columns={timeline: \'STRUCT(since TIMESTAMPTZ, event VARCHAR, "day" DATE, version VARCHAR, '
            "reason VARCHAR, previous JSON)[]'}))"
        )
    if view == "raw_events":  # a record a row; an object that is no sound array is one row
        source = (
            "(SELECT *, generate_subscripts(bodies, 1) - 1 AS record, unnest(bodies) AS body FROM (SELECT *, "
            """coalesce(TRY(from_json(decode(content), '["JSON"]'))::VARCHAR[], [TRY(decode(content))]) AS bodies """
            f"FROM {source}))"
        )
    where = f" WHERE {_WHERE[view]}" if view in _WHERE else ""
    return f'CREATE OR REPLACE VIEW "{view}" AS SELECT {columns} FROM {source}{where}'


def scratch(folder: Path) -> "duckdb.DuckDBPyConnection":
    """A DuckDB in memory that spills into `folder`: the current one need be neither ours nor writable.

    What a killed run spilled there goes first: it may be gigabytes.
    """
    import duckdb

    if folder.is_dir():
        files.remove_leftovers(folder)
    return duckdb.connect(config={"temp_directory": str(folder / files.temporary_name())})


class Warehouse:
    """The DuckDB file of a store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / DATABASE

    def ensure_views(self, table: str, log: Callable[[str], None]) -> None:
        """Creates the views over a table that has at least one file, unless they stand there as wanted.

        While another program holds the file open the views stay as they are and `log` says so: a person's shell must
        not fail a run.
        """
        created = self._created() if self.path.exists() else {}
        # A database that was deleted, or made for the first time, gets the views of everything that is there.
        tables = {table} if created else {table, *(path.parent.name for path in self.root.glob("*/*.parquet"))}
        wanted = {view: view_sql(view, self.root) for view, (source, _) in _VIEWS.items() if source in tables}
        if not (self.root / "champion.json").exists():
            wanted.pop("champions", None)
        if all(created.get(view) == sql for view, sql in wanted.items()):
            return
        import duckdb

        self.root.mkdir(parents=True, exist_ok=True)
        try:
            connection = duckdb.connect(self.path)
        except duckdb.IOException as error:
            said = str(error).lower()
            if "lock" in said:
                log(f"{self.path} is open in another program: the views {', '.join(wanted)} are made on a later run.")
                return
            if not any(sign in said for sign in _DAMAGED):
                raise
            log(f"{self.path} is damaged; it holds nothing but views and is made again")
            for name in (DATABASE, f"{DATABASE}.wal"):
                (self.root / name).unlink(missing_ok=True)
            self.ensure_views(table, log)
            return
        try:
            for sql in wanted.values():
                connection.execute(sql)
        finally:
            connection.close()
        files.write_bytes(self.root / _CREATED, json.dumps(created | wanted, indent=1, sort_keys=True).encode())

    def _created(self) -> dict[str, str]:
        path = self.root / _CREATED
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
