import fnmatch
import io
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from pydantic import SecretStr
from sqlalchemy.dialects import mysql

from recsys_assets.days import day_start_ms
from recsys_assets.pipeline import InputError, Pipeline
from recsys_assets.settings import BucketSettings, SettingsError, SqlEventsSettings, load_settings
from recsys_assets.sources import database as database_module
from recsys_assets.sources.assets import catalogue, nightly_tables, sql_events, watch_ratings
from recsys_assets.sources.database import Database
from recsys_assets.sources.sql import _action, load_day, object_key, plain
from recsys_assets_tests.graph import INGEST, Ran, make_home, run, snapshot
from recsys_assets_tests.sql_servers import PASSWORD

DAYS = ["2025-11-03", "2025-11-04"]
ZONE = "Europe/Paris"
MOMENT = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")
ORDERS: dict[str, Any] = {
    "table": "orders",
    "user": "customer",
    "item": "sku",
    "time": "happened",
    "action": "what",
    "actions": {"look": "VIEW", "buy": "PURCHASE"},
    "category": "shelf",
    "price": "paid",
}
Row = dict[str, Any]


def orders_table(key: bool = True) -> sa.Table:
    return sa.Table(
        "orders",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=key, autoincrement=False),
        sa.Column("customer", sa.String(40)),
        sa.Column("sku", sa.BigInteger),
        sa.Column("happened", MOMENT),
        sa.Column("what", sa.String(20)),
        sa.Column("shelf", sa.Integer),
        sa.Column("paid", sa.Numeric(10, 2)),
    )


def generated(count: int, seed: int = 5) -> list[Row]:
    """Rows of two days in Paris, and some before and after; some at midnight; many at the same moment, so that
    a batch ends between them; some that are no events."""
    chance = random.Random(seed)
    start = day_start_ms(DAYS[0], ZONE) - 3 * 3600_000
    rows = []
    for number in range(count):
        ms = start + chance.randrange(54 * 2) * 1_800_000 + chance.choice([0, 500])
        rows.append(
            {
                "id": number,
                "customer": None if chance.random() < 0.02 else f"kunde {chance.randrange(40)} ü",
                "sku": chance.randrange(10**6, 10**12),
                "happened": datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms),
                "what": chance.choice(["look", "look", "buy", "teleport"]),
                "shelf": chance.choice([None, 3, 4]),
                "paid": chance.choice([None, Decimal("12.50"), Decimal("0.10"), Decimal("300.00")]),
            }
        )
    rows += [{**row, "id": row["id"] + count} for row in rows[:20]]  # events that happened twice
    rows.append({**rows[0], "id": -1, "happened": None})
    chance.shuffle(rows)
    return rows


def fill(url: str, table: sa.Table, rows: list[Row]) -> sa.Engine:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    if engine.dialect.name != "postgresql":  # no moments with a zone there: UTC
        rows = [
            {name: value.replace(tzinfo=None) if isinstance(value, datetime) else value for name, value in row.items()}
            for row in rows
        ]
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), rows)
    return engine


def home(folder: Path, url: str, **sql: Any) -> Pipeline:
    values: dict[str, Any] = {"url": url, "batch_rows": 100, "events": {"orders": ORDERS}, **sql}
    return make_home(folder, calendar={"time_zone": ZONE}, sql=values)


def written(pipeline: Pipeline) -> dict[str, list[Row]]:
    folder = pipeline.settings.home / "bucket"
    return {
        path.relative_to(folder).as_posix(): json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))
    }


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_PAUSE_SECONDS", 0.0)


def test_the_same_days_as_json_and_as_rows_give_the_same_bytes(any_database: str, tmp_path: Path) -> None:
    rows = generated(900)
    fill(any_database, orders_table(), rows)
    ours = home(tmp_path / "sql", any_database)
    ran = dg.materialize([sql_events], resources={"pipeline": ours}, tags=_range(DAYS))
    assert PASSWORD not in str(
        [event.to_string() if hasattr(event, "to_string") else event for event in ran.all_events]
    )
    run(ours, INGEST, DAYS)

    theirs = make_home(tmp_path / "json", calendar={"time_zone": ZONE})
    names = {"look": "VIEW", "buy": "PURCHASE"}
    for day in DAYS:
        start, end = day_start_ms(day, ZONE), day_start_ms(day, ZONE) + 86_400_000
        of_day = [row for row in rows if row["happened"] and start <= row["happened"].timestamp() * 1000 < end]
        of_day.sort(key=lambda row: (row["happened"], row["id"]))
        records = [
            {
                "user_id": row["customer"],
                "price": row["paid"] and float(row["paid"]),
                "timestamp": round(row["happened"].timestamp() * 1000),
                "category_id": row["shelf"],
                "action": names.get(row["what"], row["what"]),
                "item_id": str(row["sku"]),
            }
            for row in of_day
        ]
        for place in range(0, len(records), 100):
            key = object_key(ours.settings, day, "orders", place // 100)
            theirs.bucket.put(key, json.dumps(records[place : place + 100], indent=1).encode())
    run(theirs, INGEST, DAYS)

    for day in DAYS:
        # Of the rejected rows all but the excerpt, which shows the record as it was written.
        mine, other = (_bytes(each.tables.read("interactions", day).drop("excerpt")) for each in (ours, theirs))
        counts = (ours.tables.info("interactions", day) or {})["counts"]
        assert counts["kept"] > 200
        assert counts["duplicates"] > 0
        assert set(counts["rejected"]) == {"missing_user_id", "unknown_action"}
        assert mine == other


def _range(days: list[str]) -> dict[str, str]:
    return {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}


def _bytes(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def test_a_day_read_again_changes_only_what_changed(any_database: str, tmp_path: Path) -> None:
    table, rows = orders_table(), generated(500)
    engine = fill(any_database, table, rows)
    pipeline = home(tmp_path, any_database)
    database = Database(pipeline.settings.sql)
    (first,) = load_day(pipeline, database, DAYS[0]).values()
    assert first.objects == first.changed == math.ceil(first.rows / 100) > 1
    assert first.without_time == 1
    assert all(len(records) <= 100 for records in written(pipeline).values())
    (again,) = load_day(pipeline, database, DAYS[0]).values()
    assert (again.rows, again.changed, again.removed) == (first.rows, 0, 0)

    newest = max(
        json.loads(line)["row"] for records in written(pipeline).values() for line in map(json.dumps, records[-1:])
    )
    with engine.begin() as connection:
        connection.execute(table.update().where(table.c.id == newest).values(sku=1))
    (changed,) = load_day(pipeline, database, DAYS[0]).values()
    assert (changed.rows, changed.changed, changed.removed) == (first.rows, 1, 0)

    pipeline.bucket.put(f"logs/{DAYS[0].replace('-', '/')}/sql-other-00000.json", b"[]")
    with engine.begin() as connection:
        connection.execute(table.delete())
    (emptied,) = load_day(pipeline, database, DAYS[0]).values()
    assert (emptied.rows, emptied.removed) == (0, first.objects)
    assert list(written(pipeline)) == [f"logs/{DAYS[0].replace('-', '/')}/sql-other-00000.json"], "not ours"


def test_into_an_s3_bucket_with_no_more_than_the_page_s_permissions(s3_bucket: BucketSettings, tmp_path: Path) -> None:
    table, url = orders_table(), f"sqlite:///{tmp_path}/shop.db"
    engine = fill(url, table, generated(500))
    bucket = {"url": s3_bucket.url, "endpoint_url": s3_bucket.endpoint_url}
    sql = {"url": url, "batch_rows": 100, "events": {"orders": ORDERS}}
    pipeline = make_home(tmp_path / "home", calendar={"time_zone": ZONE}, bucket=bucket, sql=sql)
    asked: set[str] = set()
    written: set[str] = set()

    def note(model: Any, params: Any, **_: Any) -> None:
        asked.add(model.name)
        if model.name in ("PutObject", "DeleteObject"):
            written.add(params["url_path"].partition("/logs/")[2])

    pipeline.bucket._client.meta.events.register("before-call.s3", note)  # type: ignore[attr-defined]
    database = Database(pipeline.settings.sql)
    (first,) = load_day(pipeline, database, DAYS[0]).values()
    (again,) = load_day(pipeline, database, DAYS[0]).values()
    assert (again.rows, again.changed, again.removed) == (first.rows, 0, 0)
    with engine.begin() as connection:
        connection.execute(table.delete())
    (emptied,) = load_day(pipeline, database, DAYS[0]).values()
    assert emptied.removed == first.objects == len(written) > 1
    assert asked <= {"ListObjectsV2", "GetObject", "PutObject", "DeleteObject"}
    assert all(fnmatch.fnmatchcase(f"logs/{key}", "logs/*/sql-*") for key in written)


def test_rows_that_come_while_we_read_are_not_seen_and_a_broken_connection_begins_again(
    any_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pauses: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, rows = orders_table(), generated(500)
    engine = fill(any_server, table, rows)
    pipeline = home(tmp_path, any_server)
    put, late = pipeline.bucket.put, [{**row, "id": row["id"] + 10_000} for row in rows if row["happened"]]
    if engine.dialect.name != "postgresql":
        late = [{**row, "happened": row["happened"].replace(tzinfo=None)} for row in late]
    calls = []

    def meanwhile(key: str, content: bytes) -> None:
        put(key, content)
        calls.append(key)
        with engine.begin() as connection:
            if len(calls) == 1:
                connection.execute(table.insert(), late)
            if len(calls) == 5:
                _kill_the_others(connection)

    monkeypatch.setattr(type(pipeline.bucket), "put", lambda _, key, content: meanwhile(key, content))
    (one,) = load_day(pipeline, Database(pipeline.settings.sql), DAYS[0]).values()
    assert len(calls) == 3
    (two,) = load_day(pipeline, Database(pipeline.settings.sql), DAYS[1]).values()
    assert [record.message[-10:] for record in caplog.records] == ["read again"]
    with engine.connect() as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
    assert total > 2 * (len(rows) - 1)
    ids = [record["row"] for records in written(pipeline).values() for record in records]
    assert len(ids) == len(set(ids)) == one.rows + two.rows
    assert all(record["row"] < 10_000 for record in _of(pipeline, 0)), "what came meanwhile is not seen"
    assert any(record["row"] >= 10_000 for record in _of(pipeline, 1)), "the second day's snapshot is a later one"


def test_all_tables_of_a_day_are_read_in_one_snapshot(
    any_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, rows = orders_table(), generated(500)
    engine = fill(any_database, table, rows)
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")  # else it is the writer who waits
    pipeline, calls = home(tmp_path, any_database, events={"orders": ORDERS, "once_more": ORDERS}), []
    put = pipeline.bucket.put

    def meanwhile(_: Any, key: str, content: bytes) -> None:
        put(key, content)
        calls.append(key)
        if len(calls) == 1:
            with engine.begin() as connection:
                connection.execute(table.delete().where(table.c.id % 2 == 0))

    monkeypatch.setattr(type(pipeline.bucket), "put", meanwhile)
    orders, once_more = load_day(pipeline, Database(pipeline.settings.sql), DAYS[0]).values()
    assert orders.objects > 1
    assert replace(orders, version="") == replace(once_more, version=""), "as it was before half of them went"
    assert orders.rows == sum(1 for _ in _of(pipeline, 0)) / 2


def test_every_kind_of_time_column_means_the_same_moments(any_database: str, tmp_path: Path) -> None:
    """The servers' own clocks are five hours ahead; the day is the one on which summer time ends in Paris."""
    day, first = "2025-10-26", day_start_ms("2025-10-26", ZONE)
    end = day_start_ms("2025-10-27", ZONE)
    assert end - first == 25 * 3600_000
    # None in the hour that the clock shows twice: a date and time without a zone cannot tell which one it is.
    moments = [first - 1, first, first, first + 2 * 3600_000 + 250, first + 5 * 3600_000, end - 1, end]
    table = sa.Table(
        "moments",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("local", sa.DateTime().with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")),
        sa.Column("moment", sa.TIMESTAMP(timezone=True).with_variant(mysql.TIMESTAMP(fsp=3), "mysql", "mariadb")),
        sa.Column("dated", sa.Date),
        sa.Column("millis", sa.BigInteger),
        sa.Column("seconds", sa.Double),
        sa.Column("exact", sa.Numeric(14, 3)),
    )
    engine = sa.create_engine(any_database, poolclass=sa.NullPool)
    rows = []
    for number, ms in enumerate(moments):
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
        local = at.astimezone(ZoneInfo(ZONE)).replace(tzinfo=None)
        moment = at if engine.dialect.name == "postgresql" else at.replace(tzinfo=None)
        numbers = {"millis": ms, "seconds": ms / 1000, "exact": Decimal(ms) / 1000}
        rows.append({"id": number, "local": local, "moment": moment, "dated": local.date(), **numbers})
    with engine.begin() as connection:
        if engine.dialect.name == "mysql":
            connection.execute(sa.text("SET time_zone = '+00:00'"))
        table.create(connection)
        connection.execute(table.insert(), rows)
    common = {"table": "moments", "user": "id", "item": "id", "always": "VIEW"}
    seconds = {**common, "time_unit": "s"}
    sections = {
        "local": {**common, "time": "local", "time_zone": ZONE},
        "moment": {**common, "time": "moment", **({} if engine.dialect.name == "sqlite" else {"time_zone": ZONE})},
        "dated": {**common, "time": "dated", "time_zone": ZONE},
        "dated_utc": {**common, "time": "dated"},
        "millis": {**common, "time": "millis"},
        "seconds": {**seconds, "time": "seconds"},
        "exact": {**seconds, "time": "exact"},
    }
    pipeline = home(tmp_path, any_database, events=sections, batch_rows=2)
    loaded = load_day(pipeline, Database(pipeline.settings.sql), day)
    midnights = {"dated": first, "dated_utc": day_start_ms(day, "UTC")}  # of a date that is all that is known
    for name in sections:
        assert loaded[name].rows == 5, name
        records = [record for key, part in written(pipeline).items() if f"sql-{name}-" in key for record in part]
        expected = [midnights[name]] * 5 if name in midnights else moments[1:-1]
        assert [record["timestamp"] for record in records] == expected, name


def _of(pipeline: Pipeline, day: int) -> Iterator[Row]:
    folder = f"logs/{DAYS[day].replace('-', '/')}/"
    yield from (record for key, records in written(pipeline).items() if key.startswith(folder) for record in records)


def _kill_the_others(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND usename = 'shop'"
            )
        )
        return
    for (number,) in connection.execute(
        sa.text("SELECT id FROM information_schema.processlist WHERE user = 'shop' AND id <> connection_id()")
    ).all():
        connection.execute(sa.text(f"KILL {number}"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "order"}, "sql.events.orders.table: the database has no table or view 'order'"),
        ({"user": "custommer"}, "sql.events.orders.user: orders has no column 'custommer'; it has id, customer, sku"),
        ({"price": "cost"}, "sql.events.orders.price: orders has no column 'cost'"),
        ({"key": ["nr"]}, "sql.events.orders.key: orders has no column 'nr'"),
        ({"key": ["what"]}, "these columns are not unique together, or hold nulls"),
        ({"time": "what"}, "sql.events.orders.time: the column is VARCHAR(20), neither a date and time nor a number"),
    ],
)
def test_a_wrong_mapping_is_named(changes: Row, said: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    fill(
        url,
        orders_table(),
        [
            {**row, "happened": row["happened"] and row["happened"].replace(microsecond=0, second=0, minute=0)}
            for row in generated(300)
        ],
    )
    pipeline = home(tmp_path, url, batch_rows=2, events={"orders": {**ORDERS, **changes}})
    with pytest.raises(InputError) as caught:
        load_day(pipeline, Database(pipeline.settings.sql), DAYS[0])
    assert said in str(caught.value)


def test_a_view_or_table_without_a_key_asks_for_one(any_database: str, tmp_path: Path) -> None:
    engine = fill(any_database, orders_table(key=False), generated(300))
    schema = {"postgresql": "public", "mysql": "shop", "sqlite": "main"}[engine.dialect.name]
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE VIEW shown AS SELECT * FROM orders"))
    try:
        for table in ("orders", f"{schema}.orders", "shown"):
            pipeline = home(tmp_path, any_database, events={"orders": {**ORDERS, "table": table}})
            with pytest.raises(InputError, match=f"{table} has no primary key"):
                load_day(pipeline, Database(pipeline.settings.sql), DAYS[0])
            named = home(tmp_path, any_database, events={"orders": {**ORDERS, "table": table, "key": ["id"]}})
            (loaded,) = load_day(named, Database(named.settings.sql), DAYS[0]).values()
            assert loaded.rows > 100
            assert loaded.changed == (loaded.objects if table == "orders" else 0), "the same rows"
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("DROP VIEW shown"))


@pytest.mark.parametrize("what", ["password", "port"])
def test_a_database_that_cannot_be_reached_says_so_without_the_password(
    what: str,
    any_database: str,
    tmp_path: Path,
    no_pauses: None,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = sa.make_url(any_database)
    if url.drivername == "sqlite":
        url = sa.make_url(f"sqlite:///{tmp_path}/absent/shop.db")
    wrong: dict[str, Any] = {
        "password": {"password": f"{PASSWORD}!"},
        "port": {"port": 1},
    }
    text = (url if url.drivername == "sqlite" else url.set(**wrong[what])).render_as_string(hide_password=False)
    pipeline = home(tmp_path / "home", text, retries=1)
    ran = dg.materialize([sql_events], resources={"pipeline": pipeline}, partition_key=DAYS[0], raise_on_error=False)
    (failed,) = [event for event in ran.all_events if event.is_step_failure]
    assert url.drivername.split("+")[0] in str(failed.step_failure_data.user_failure_data)
    out, err = capfd.readouterr()
    said = out + err + caplog.text
    refused = what == "password" and url.drivername.startswith("mysql")  # psycopg does not tell it from a busy server
    assert ("read again" in said) != refused
    assert PASSWORD not in said + str(ran.all_events)


def test_a_password_that_the_database_s_own_words_quote_is_masked(any_server: str, tmp_path: Path) -> None:
    database = Database(home(tmp_path, any_server).settings.sql)
    quote = database._engine.dialect.identifier_preparer.quote(PASSWORD)
    with pytest.raises(InputError, match=r"\*\*\*") as refused:
        database.reading(lambda connection: connection.execute(sa.text(f"SELECT * FROM {quote}")))
    assert PASSWORD not in str(refused.value)


def test_the_password_stays_out_of_settings_and_their_errors(tmp_path: Path) -> None:
    url = f"postgresql+psycopg://u:{PASSWORD}@h/db"
    from recsys_assets.settings import described

    settings = make_home(tmp_path, sql={"url": url, "events": {"orders": ORDERS}}).settings
    assert PASSWORD not in described(settings) + repr(settings) + str(settings.model_dump())
    for environ in (
        {"RECSYS_SQL__URL": url, "RECSYS_SQL__EVENTS": "{}"},
        {"RECSYS_SQL__URL": f"[{url!r}]"},
        {"RECSYS_SQL__URL": url, "RECSYS_SQL__EVENTS": "{orders: {table: a}}"},
        {"RECSYS_SQL__URL": url, "RECSYS_SQL__SPEED": "5"},
        {
            "RECSYS_SQL__URL": url,
            "RECSYS_SQL__USERS": "{table: u}",
            "RECSYS_SQL__CLICKS": "{table: c, user: u, item: i, time: t}",  # without watches they serve nothing
        },
    ):
        with pytest.raises(SettingsError) as caught:
            load_settings(tmp_path / "none", environ)
        assert PASSWORD not in str(caught.value)
    odd = load_settings(tmp_path / "none", {"RECSYS_SQL__URL": "sqlite:///a: {'b #", "RECSYS_SQL__USERS": "{table: u}"})
    assert odd.sql.url is not None
    assert odd.sql.url.get_secret_value() == "sqlite:///a: {'b #"
    in_query = f"postgresql+psycopg://h/db?user=u&password={PASSWORD}"
    assert Database(settings.sql.model_copy(update={"url": SecretStr(in_query)})).name == "postgresql+psycopg://h/db"
    for wrong in (PASSWORD, f"nosuch://u:{PASSWORD}@h/db", f"postgresql+psycopg2://u:{PASSWORD}@h/db"):
        broken = settings.sql.model_copy(update={"url": SecretStr(wrong)})
        with pytest.raises(InputError) as refused:
            Database(broken)
        assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "row", "expected"),
    [
        ({"always": "VIEW"}, {}, "VIEW"),
        ({"action": "a"}, {"action": "click"}, "click"),
        ({"action": "a", "actions": {"1": "VIEW"}}, {"action": 1}, "VIEW"),
        ({"action": "a", "actions": {"1": "VIEW"}}, {"action": None}, None),
        ({"value": "v", "value_actions": {"VIEW": 0, "CLICK": 0.5}}, {"value": 0.5}, "CLICK"),
        ({"value": "v", "value_actions": {"VIEW": 0.1, "CLICK": 0.5}}, {"value": Decimal("0.3")}, "VIEW"),
        ({"value": "v", "value_actions": {"VIEW": 0.1}}, {"value": 0.05}, None),
        (
            {"value": "v", "value_of": "l", "value_actions": {"VIEW": 0.4}},
            {"value": 40, "value_of": Decimal(100)},
            "VIEW",
        ),
        ({"value": "v", "value_of": "l", "value_actions": {"VIEW": 0.4}}, {"value": 40, "value_of": 0}, None),
        ({"value": "v", "value_actions": {"VIEW": 0.4}}, {"value": None}, None),
    ],
)
def test_what_a_row_s_action_is(section: Row, row: Row, expected: str | None) -> None:
    events = SqlEventsSettings.model_validate({"table": "t", "user": "u", "item": "i", "time": "t", **section})
    assert _action(row, events) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (5, 5),
        ("a", "a"),
        (Decimal("12"), 12),
        (Decimal("12.00"), 12.0),
        (Decimal("0.1"), 0.1),
        (float("nan"), "nan"),
        (Decimal("NaN"), "NaN"),
        (b"\x01\xff", "01ff"),
        (date(2025, 1, 2), "2025-01-02"),
    ],
)
def test_values_as_json_has_them(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


# --- Dimensions and the log of watches --------------------------------------------------------------------------------


def test_a_dimension_is_published_whole(any_database: str, tmp_path: Path) -> None:
    things = sa.Table(
        "things",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("title", sa.String(50)),
        sa.Column("weight", sa.Numeric(6, 2)),
        sa.Column("share", sa.Double),
        sa.Column("sold", sa.Boolean),
        sa.Column("since", sa.Date),
    )
    rows = [
        {
            "id": n,
            "title": None if n % 7 == 0 else f"thing {n} é",
            "weight": Decimal(n) / 4,
            "share": n / 250,
            "sold": None if n % 5 == 0 else n % 2 == 0,
            "since": date(2025, 1, 2),
        }
        for n in range(250)
    ]
    fill(any_database, things, rows)
    columns = ["title", "weight", "share", "sold", "since", "id"]
    pipeline = home(tmp_path, any_database, catalogue={"table": "things", "columns": columns})
    assert dg.materialize([catalogue], resources={"pipeline": pipeline}, partition_key=DAYS[0]).success
    found = pipeline.tables.read("catalogue", DAYS[0])
    assert found.columns == columns
    # MySQL's BOOLEAN is a whole number.
    assert found.to_dicts() == [{**row, "weight": float(row["weight"]), "since": "2025-01-02"} for row in rows]
    assert [found[name].dtype for name in ("weight", "share", "id")] == [pl.Float64, pl.Float64, pl.Int64]
    assert pipeline.tables.info("catalogue", DAYS[0]) == {"rows": 250, "columns": columns}


def test_what_is_read_again_and_is_the_same_stays(tmp_path: Path) -> None:
    """A database has no versions: its rows tell."""
    url, table = f"sqlite:///{tmp_path}/shop.db", orders_table()
    engine = fill(url, table, generated(300))
    watches = {"table": "orders", "user": "customer", "item": "sku", "time": "happened", "seconds": "paid"}
    settings: Row = {"catalogue": {"table": "orders"}, "watches": {**watches, "length": "paid"}}
    pipeline = home(tmp_path / "home", url, **settings)
    assets = [sql_events, catalogue, watch_ratings]

    def read() -> dict[str, tuple[bool, str]]:
        ran = Ran(dg.materialize(assets, resources={"pipeline": pipeline}, partition_key=DAYS[0]))
        found = {asset.key.to_user_string(): ran.metadata(asset.key.to_user_string(), DAYS[0]) for asset in assets}
        assert all(entries["unchanged"] is not ("environment" in entries) for entries in found.values())
        return {name: (entries["unchanged"], entries["version"]) for name, entries in found.items()}

    first, before = read(), snapshot(pipeline.settings.home)
    assert not any(unchanged for unchanged, _ in first.values())
    assert read() == {name: (True, version) for name, (_, version) in first.items()}
    assert snapshot(pipeline.settings.home) == before
    with engine.begin() as connection:  # a row of the day
        connection.execute(table.update().where(table.c.id == max(_ids(pipeline))).values(sku=1))
    changed = read()
    assert not any(unchanged for unchanged, _ in changed.values())
    assert all(changed[name][1] != first[name][1] for name in first)


def _ids(pipeline: Pipeline) -> list[int]:
    return [row["row"] for records in written(pipeline).values() for row in records if row["user_id"] is not None]


WATCHED = sa.Table(
    "watched",
    sa.MetaData(),
    sa.Column("nr", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("viewer", sa.Integer),
    sa.Column("programme", sa.String(20)),
    sa.Column("at", sa.BigInteger),
    sa.Column("seconds", sa.Integer),
    sa.Column("runtime", sa.Integer),
)
CLICKED = sa.Table(
    "clicked",
    sa.MetaData(),
    sa.Column("nr", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("viewer", sa.Integer),
    sa.Column("programme", sa.String(20)),
    sa.Column("at", MOMENT),
)
WATCH_SETTINGS: dict[str, Any] = {
    "batch_rows": 7000,
    "watch_window_days": 20,
    "watches": {
        "table": "watched",
        "user": "viewer",
        "item": "programme",
        "time": "at",
        "time_unit": "s",
        "seconds": "seconds",
        "length": "runtime",
    },
    "clicks": {"table": "clicked", "user": "viewer", "item": "programme", "time": "at"},
}


def watch_log(count: int) -> tuple[list[Row], list[Row]]:
    chance = random.Random(count)
    end = day_start_ms(DAYS[1], ZONE) // 1000

    def base(number: int) -> Row:
        viewer = None if chance.random() < 0.01 else int(chance.expovariate(0.02))
        at = end + chance.randrange(-25 * 86_400, 2 * 86_400)
        return {"nr": number, "viewer": viewer, "programme": f"p{int(chance.expovariate(0.2))}", "at": at}

    watched = [
        {
            **base(n),
            "seconds": chance.choice([None, -5, *range(0, 4000, 7)]),
            "runtime": chance.choice([None, 0, 600, 3600]),
        }
        for n in range(count * 7 // 10)
    ]
    clicked = [base(n) for n in range(count - len(watched))]
    return watched, [{**row, "at": datetime.fromtimestamp(row["at"], UTC)} for row in clicked]


def slow_ratings(watched: list[Row], clicked: list[Row]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The same by the book, a row at a time."""
    end = day_start_ms(DAYS[1], ZONE) / 1000
    start = day_start_ms("2025-10-15", ZONE) / 1000
    shares: dict[tuple[str, str], list[float]] = {}
    clicks: dict[tuple[str, str], list[float]] = {}
    for row in watched:
        if (
            row["viewer"] is not None
            and start <= row["at"] < end
            and row["runtime"]
            and (row["seconds"] or 0) >= 0
            and row["seconds"] is not None
        ):
            shares.setdefault((str(row["viewer"]), row["programme"]), []).append(
                min(row["seconds"] / row["runtime"], 1)
            )
    for row in clicked:
        moment = row["at"].timestamp()
        if row["viewer"] is not None and start <= moment < end:
            clicks.setdefault((str(row["viewer"]), row["programme"]), []).append(moment)
    most_watches = np.percentile([len(each) for each in shares.values()], 95)
    most_clicks = np.percentile([len(each) for each in clicks.values()], 95)
    return {
        pair: (
            max(shares.get(pair, [0.0])),
            min(len(shares.get(pair, [])), most_watches),
            min(len(clicks.get(pair, [])), most_clicks),
            (end - max(clicks[pair])) / 86_400 if pair in clicks else None,
        )
        for pair in {*shares, *clicks}
    }


@pytest.mark.parametrize("count", [2_000, 100_000])
def test_watch_ratings_are_those_of_the_formulas(count: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    urls = ["mariadb", "postgresql"] if count == 2_000 else []
    watched, clicked = watch_log(count)
    expected = slow_ratings(watched, clicked)
    for name in [f"sqlite:///{tmp_path}/log.db", *urls]:
        url = name if "://" in name else request.getfixturevalue(name)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        for table, rows in ((WATCHED, watched), (CLICKED, clicked)):
            table.drop(engine, checkfirst=True)
            fill(url, table, rows)
        pipeline = home(tmp_path / engine.dialect.name, url, events={}, **WATCH_SETTINGS)
        ran = dg.materialize([watch_ratings], resources={"pipeline": pipeline}, partition_key=DAYS[0])
        assert ran.success
        found = pipeline.tables.read("watch_ratings", DAYS[0])
        assert found.select("user_id", "item_id").rows() == sorted(expected)
        for row in found.iter_rows():
            assert (
                row[2:] == pytest.approx(expected[row[:2]], rel=1e-12, nan_ok=False)
                if row[5] is not None
                else (row[2:5] == pytest.approx(expected[row[:2]][:3], rel=1e-12) and expected[row[:2]][3] is None)
            )
        info = pipeline.tables.info("watch_ratings", DAYS[0])
        assert info is not None
        assert info["pairs"] == len(expected)
        assert all(
            info["rows"][name] > 0 for name in ("watches without a length", "watches without seconds", "clicks used")
        )
        assert not list(pipeline.settings.store.glob(".tmp-*"))


def test_the_schedule_reads_the_newest_days_again() -> None:
    with dg.build_schedule_context(scheduled_execution_time=datetime(2025, 11, 9, 2, tzinfo=UTC)) as context:
        request = nightly_tables(context)
    assert isinstance(request, dg.RunRequest)
    assert request.tags == _range(["2025-11-06", "2025-11-08"])


def test_an_object_the_bucket_s_settings_hide_is_refused(tmp_path: Path) -> None:
    pipeline = make_home(tmp_path, bucket={"include": ["web-*"]})
    with pytest.raises(InputError, match=r"bucket\.include"):
        object_key(pipeline.settings, DAYS[0], "orders", 0)
