"""Reading tables of any database that SQLAlchemy knows: one snapshot, batch by batch, begun again when it breaks."""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from time import sleep
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from recsys_assets.days import day_start_ms, shift
from recsys_assets.pipeline import InputError, InputUnavailable
from recsys_assets.settings import SqlClicksSettings, SqlSettings

_log = logging.getLogger(__name__)
_EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql"}  # module -> our extra
_REFUSED = ("28", "42")  # SQLSTATE: no right to log in, or to what is asked; PyMySQL calls that operational too
_PAUSE_SECONDS = 1.0  # before the first new try; doubled before each next
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Done = TypeVar("Done")


class Database:
    """A database to read from. Messages and logs never hold the URL's password."""

    def __init__(self, settings: SqlSettings) -> None:
        assert settings.url is not None
        self._settings = settings
        try:
            url = sa.make_url(settings.url.get_secret_value())
            self._secrets = [str(url.password)] if url.password else []
            self._secrets += [str(text) for name, text in url.query.items() if "pass" in name.lower()]
            self.name = url.set(query={}).render_as_string(hide_password=True)  # a driver may take a password there too
            self._engine = sa.create_engine(url, hide_parameters=True, poolclass=sa.NullPool)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get(str(error.name))
            what = f"pip install 'recsys_assets[{extra}]'" if extra else "install it"
            raise InputError(f"sql.url: its driver {error.name} is not installed: {what}") from None
        except (sa.exc.ArgumentError, ValueError) as error:  # its text may quote the URL
            raise InputError(
                f"sql.url ({type(error).__name__}) is no URL of a database that SQLAlchemy knows, such as "
                "postgresql+psycopg://USER:PASSWORD@HOST/NAME or mysql+pymysql://USER:PASSWORD@HOST/NAME"
            ) from None

    def reading(self, work: Callable[[sa.Connection], Done]) -> Done:
        """What `work` returns, from one snapshot that is never written to.

        When the connection breaks `work` is called again, with a new snapshot: what it did before must not count.

        Raises:
            InputError: the database refuses; the message says why.
            InputUnavailable: it cannot be reached, or the connection broke time and again.
        """
        for attempt in itertools.count():
            try:
                with self._engine.connect() as connection:
                    self._snapshot(connection)
                    return work(connection)
            except sa.exc.DBAPIError as error:
                said = str(error.orig or type(error).__name__).strip()
                for secret in self._secrets:
                    said = said.replace(secret, "***")
                broken = error.connection_invalidated or isinstance(error, sa.exc.OperationalError)
                if not broken or str(getattr(error.orig, "sqlstate", None)).startswith(_REFUSED):
                    raise InputError(f"sql: {self.name}: {said}") from None
                if attempt >= self._settings.retries:
                    raise InputUnavailable(f"sql: {self.name}: {said}") from None
                _log.warning("sql: %s: %s; read again", self.name, said)
                sleep(_PAUSE_SECONDS * 2**attempt)
        raise AssertionError("unreachable")

    def _snapshot(self, connection: sa.Connection) -> None:
        """Everything that is read from now on is as it stands at the first read."""
        dbapi = connection.connection.dbapi_connection
        levels = self._engine.dialect.get_isolation_level_values(dbapi) if dbapi is not None else ()
        level = next((each for each in ("REPEATABLE READ", "SERIALIZABLE") if each in levels), None)
        if level:
            connection.execution_options(isolation_level=level)
        if self._engine.dialect.name in ("mysql", "mariadb"):
            connection.execute(sa.text("SET time_zone = '+00:00'"))  # else a TIMESTAMP comes in the server's own
            connection.rollback()
        if self._engine.dialect.name == "postgresql":
            connection.execute(sa.text("SET TRANSACTION READ ONLY"))
        if self._engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN")  # Python's driver begins a transaction at the first write only


@dataclass(frozen=True)
class Source:
    """A reflected table with the columns that the settings name, each by its role, and the columns of its key."""

    table: sa.Table
    columns: dict[str, sa.Column[Any]]
    key: list[sa.Column[Any]]


def source(
    connection: sa.Connection, setting: str, name: str, roles: Mapping[str, str | None], key: Sequence[str]
) -> Source:
    """A table of the database.

    Args:
        setting: where it stands in the settings, for messages.
        name: TABLE or SCHEMA.TABLE.
        roles: what a column is for -> its name; None where the settings name none.
        key: columns that are unique together; empty: the primary key.

    Raises:
        InputError: there is no such table or column, or no key.
    """
    schema, _, bare = name.rpartition(".")
    try:
        table = sa.Table(bare, sa.MetaData(), schema=schema or None, autoload_with=connection, resolve_fks=False)
    except sa.exc.NoSuchTableError:
        raise InputError(f"{setting}.table: the database has no table or view {name!r}") from None

    def column(role: str, wanted: str) -> sa.Column[Any]:
        if wanted not in table.c:
            raise InputError(f"{setting}.{role}: {name} has no column {wanted!r}; it has {', '.join(table.c.keys())}")
        return table.c[wanted]

    found = {role: column(role, wanted) for role, wanted in roles.items() if wanted is not None}
    keys = [column("key", each) for each in key] or list(table.primary_key.columns)
    if not keys:
        raise InputError(f"{setting}.key: {name} has no primary key; name columns that are unique together")
    return Source(table, found, keys)


def timed(
    connection: sa.Connection, setting: str, settings: SqlClicksSettings, roles: Mapping[str, str | None]
) -> Source:
    """The table of a section with user, item and time. Raises InputError as `source` does."""
    all_roles = {"user": settings.user, "item": settings.item, "time": settings.time, **roles}
    return source(connection, setting, settings.table, all_roles, settings.key)


def batches(
    connection: sa.Connection,
    setting: str,
    read: Source,
    columns: Mapping[str, sa.Column[Any]],
    size: int,
    condition: sa.ColumnElement[bool] | None = None,
) -> Iterator[list[Mapping[str, Any]]]:
    """The rows that fulfil a condition, in the order of time (where there is one) and key, at most `size` at once.

    Each batch begins behind the last row of the one before (keyset), so that none is read twice and the database never
    counts its way through what was read.

    Raises:
        InputError: the key is not unique or holds nulls: rows would be lost.
    """
    order = [*([read.columns["time"]] if "time" in read.columns else []), *read.key]
    order = list({column.name: column for column in order}.values())
    wanted = [
        *(column.label(f"c_{role}") for role, column in columns.items()),
        *(column.label(f"k_{place}") for place, column in enumerate(order)),
    ]
    base = sa.select(*wanted).order_by(*order).limit(size)
    expected = sa.select(sa.func.count()).select_from(read.table)
    if condition is not None:
        base, expected = base.where(condition), expected.where(condition)
    count, last = 0, None
    while True:
        query = base if last is None else base.where(_behind(order, last))
        rows = [dict(row) for row in connection.execute(query).mappings()]
        if rows:
            count += len(rows)
            last = [rows[-1][f"k_{place}"] for place in range(len(order))]
            yield [{role: row[f"c_{role}"] for role in columns} for row in rows]
        if len(rows) < size:
            break
    there = connection.execute(expected).scalar_one()
    if count != there:
        raise InputError(
            f"{setting}.key: {count} of {there} rows can be read by {', '.join(column.name for column in order)}: "
            "these columns are not unique together, or hold nulls; name others"
        )


def _behind(order: Sequence[sa.Column[Any]], last: Sequence[Any]) -> sa.ColumnElement[bool]:
    """Rows that come after `last`: (a > x) OR (a = x AND b > y) ...; the first part alone lets an index be used."""
    if any(value is None for value in last):
        return sa.false()  # the count tells
    after = [
        sa.and_(
            *(column == value for column, value in zip(order[:place], last[:place], strict=True)),
            order[place] > last[place],
        )
        for place in range(len(order))
    ]
    return sa.and_(order[0] >= last[0], sa.or_(*after))


class Clock:
    """How the moments of a table's time column are written."""

    def __init__(self, setting: str, settings: SqlClicksSettings, read: Source) -> None:
        kind = read.columns["time"].type
        self._dates = isinstance(kind, (sa.Date, sa.DateTime))
        self._whole_days = isinstance(kind, sa.Date)
        self._seconds = settings.time_unit == "s"
        # MySQL's TIMESTAMP is a moment, and comes in the session's zone, which is UTC here.
        self._zone = ZoneInfo("UTC" if kind.__visit_name__ == "TIMESTAMP" and _is_mysql(kind) else settings.time_zone)
        self._aware = bool(getattr(kind, "timezone", False)) and not _is_mysql(kind)
        if not self._dates and not isinstance(kind, (sa.Integer, sa.Numeric, sa.Float)):
            raise InputError(f"{setting}.time: the column is {kind}, neither a date and time nor a number")

    def written(self, ms: int) -> Any:
        """A moment (milliseconds since 1970 UTC) as the column holds it; where that is a date, the first one from then
        on."""
        if not self._dates:
            return ms / 1000 if self._seconds else ms
        moment = _EPOCH + timedelta(milliseconds=ms)
        if self._aware:
            return moment
        local = moment.astimezone(self._zone).replace(tzinfo=None)
        return local.date() + timedelta(days=local.time() > time.min) if self._whole_days else local

    def ms(self, value: Any) -> int:
        """Milliseconds since 1970 UTC of what the column holds."""
        if not isinstance(value, date):
            return int(value * 1000) if self._seconds else int(value)
        moment = value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=self._zone)
        return (moment - _EPOCH) // timedelta(milliseconds=1)


def _is_mysql(kind: Any) -> bool:
    return type(kind).__module__.startswith("sqlalchemy.dialects.mysql")


def between(read: Source, clock: Clock, first_day: str, last_day: str, time_zone: str) -> sa.ColumnElement[bool]:
    """Rows from the first day's local midnight to the end of the last day."""
    moment = read.columns["time"]
    start, end = day_start_ms(first_day, time_zone), day_start_ms(shift(last_day, 1), time_zone)
    return sa.and_(moment >= clock.written(start), moment < clock.written(end))


def without_time(connection: sa.Connection, read: Source) -> int:
    """Rows that belong to no day, because their time is null."""
    moment = read.columns["time"]
    if not moment.nullable:
        return 0
    return int(
        connection.execute(sa.select(sa.func.count()).select_from(read.table).where(moment.is_(None))).scalar_one()
    )
