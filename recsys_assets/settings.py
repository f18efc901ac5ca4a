"""Every setting of the pipeline, typed, in one place.

A *home* is a folder: `settings.yaml` says what is wanted, `store/` holds what the pipeline makes and `dagster/` is its
DAGSTER_HOME. `RECSYS_HOME` chooses it. Any setting can also come from the environment, which wins over the file:
`RECSYS_BUCKET__URL=s3://my-logs` sets `bucket.url`.
"""

import difflib
import os
import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from zoneinfo import ZoneInfo

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

DEFAULT_HOME = "data/sample"
_ENV_PREFIX = "RECSYS_"
_ENV_RESERVED = {"RECSYS_HOME"}
_SECRET = ("sql", "url")  # holds a password


class SettingsError(ValueError):
    """A setting is unknown, mistyped or out of range; the message names it and where it came from."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except Exception as error:
        raise ValueError("is no IANA time zone such as Europe/Paris") from error
    return value


TimeZone = Annotated[str, AfterValidator(_known_zone)]


class BucketSettings(_Section):
    """Where the logs lie. Credentials never stand here: they come from the AWS chain (environment, profile, role)."""

    url: str = Field("file://bucket", description="s3://BUCKET or file://FOLDER (relative to the home)")
    prefix: str = Field("logs/", description="only keys below this prefix are looked at")
    layout: str = Field("%Y/%m/%d/", description="strftime pattern of a day's folder below the prefix")
    region: str | None = Field(None, description="AWS region; the AWS chain's if unset")
    endpoint_url: str | None = Field(None, description="for an S3-compatible store")
    profile: str | None = Field(None, description="AWS profile name")
    ignore_names: list[str] = Field(["temp-*", ".*", "_*"], description="file-name globs of objects never read")
    include: list[str] = Field(
        [], description="globs of a file's name or of its path in the day's folder; only these are read; empty: all"
    )
    max_files: int | None = Field(
        None, ge=1, description="objects read per day, the first by key: for trying things out; unset: all"
    )
    in_flight: int = Field(128, ge=1, le=1024, description="objects fetched at once")
    max_object_mb: int = Field(512, ge=1, description="decompressed size above which an object is rejected")

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        rest = "/" if scheme == "file" and rest.startswith("/") and not rest.strip("/") else rest.rstrip("/")
        if scheme not in ("s3", "file") or not rest:
            raise ValueError("must be s3://BUCKET or file://FOLDER")
        return f"{scheme}://{rest}"

    @field_validator("prefix")
    @classmethod
    def _prefix_is_a_folder(cls, value: str) -> str:
        value = value.lstrip("/")
        return value if not value or value.endswith("/") else value + "/"

    @field_validator("layout")
    @classmethod
    def _layout_names_a_day(cls, value: str) -> str:
        if not all(code in value for code in ("%Y", "%m", "%d")):
            raise ValueError("must contain %Y, %m and %d")
        if unknown := sorted(set(re.findall(r"%(.?)", value)) - set("YmdjHMS%")):
            raise ValueError(f"knows %Y %m %d %j %H %M %S and %% only, not {', '.join('%' + code for code in unknown)}")
        return value.strip("/") + "/"


class CalendarSettings(_Section):
    """Which days exist as partitions."""

    time_zone: TimeZone = "UTC"
    first_day: date = date(2025, 11, 1)
    last_day: date | None = Field(None, description="for a closed history; unset: today, tomorrow, ...")

    @model_validator(mode="after")
    def _order(self) -> "CalendarSettings":
        if self.last_day is not None and self.last_day < self.first_day:
            raise ValueError("last_day lies before first_day")
        return self


class IngestSettings(_Section):
    """When the sensor asks for a day, and what `raw_events` refuses."""

    window_days: int = Field(14, ge=1, le=3660, description="days back from today that each sensor tick compares")
    quiet_minutes: float = Field(5, ge=0, description="a day is asked for once its newest object is this old")
    reconcile_hours: float = Field(
        24, ge=0, description="a change to a day before the window is found within so many hours; 0: never looked for"
    )
    max_requests_per_tick: int = Field(
        20, ge=1, le=500, description="runs asked for per tick; with far more new days a backfill is proposed instead"
    )
    max_list_requests_per_tick: int = Field(
        1000, ge=10, description="listing requests (1,000 objects each) for the folders of days, per tick"
    )
    max_attempts: int = Field(3, ge=1, description="runs asked for with the same content before the sensor gives up")
    max_shrink_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a day that would lose more than this share of its bytes, or of its events by a change of rules, "
        "or become empty, is refused",
    )
    session_gap_minutes: float | None = Field(
        None, gt=0, description="interactions get a session_id; a pause this long begins a new one; unset: none"
    )
    max_events_per_hour: int | None = Field(
        None, ge=1, description="users with more events in one hour are set aside for the day; unset: nobody is"
    )


class JobEventSettings(_Section):
    """An event of an upstream job, as EventBridge delivers it: the logs of the newest days are complete, look now."""

    source: str | list[str] = Field(description="glob, or several, such as aws.glue")
    detail_type: str | list[str] = Field(description="glob, or several, such as Glue Job State Change")
    detail: dict[str, str | list[str]] = Field({}, description="field of the detail -> glob, or several; all must fit")
    days: int = Field(2, ge=1, le=3660, description="days to look at, counted back from today")


class QueueSettings(_Section):
    """An SQS queue of the bucket's events: the sensor bucket_events reads it. Off while url is unset."""

    url: str | None = Field(None, description="the queue's URL; read with the usual AWS chain")
    profile: str | None = Field(None, description="AWS profile name; the bucket's if unset")
    wait_seconds: int = Field(5, ge=0, le=20, description="long poll: how long a tick waits for the first message")
    max_messages_per_tick: int = Field(2000, ge=1, le=100_000, description="messages read per tick, at most")
    job_events: list[JobEventSettings] = Field([], description="upstream jobs whose end means: look at once")
    dead_letter_url: str | None = Field(
        None, description="queue for messages that cannot be understood; unset: store/queue_rejected/"
    )

    @field_validator("url", "dead_letter_url")
    @classmethod
    def _queue_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/@]+/.", value):
            raise ValueError("must be a queue's URL such as https://sqs.eu-west-1.amazonaws.com/123456789012/logs")
        return value


class SqlDimensionSettings(_Section):
    """A table or view of things: the catalogue, the users."""

    table: str = Field(description="TABLE or SCHEMA.TABLE")
    columns: list[str] = Field([], description="empty: all")
    key: list[str] = Field([], description="columns that together are unique and never null; empty: the primary key")


class SqlClicksSettings(_Section):
    """A table or view whose rows say: this user, this item, then."""

    table: str = Field(description="TABLE or SCHEMA.TABLE")
    user: str
    item: str
    time: str = Field(description="a date and time, or a number (time_unit); index it")
    time_zone: TimeZone = Field("UTC", description="of a date and time that has none of its own")
    time_unit: Literal["ms", "s"] = Field("ms", description="since 1970 UTC, of a column of numbers")
    key: list[str] = Field([], description="columns that together are unique and never null; empty: the primary key")


class SqlWatchesSettings(SqlClicksSettings):
    """A table of watches; the item is the programme."""

    seconds: str = Field(description="watched")
    length: str = Field(description="of the programme, in seconds")


class SqlEventsSettings(SqlClicksSettings):
    """A table or view whose rows are events: which column is what."""

    action: str | None = Field(None, description="column of the action")
    actions: dict[str, str] = Field({}, description="what stands in that column -> action; empty: as it stands")
    always: str | None = Field(None, description="the action of every row, where there is no such column")
    value: str | None = Field(None, description="column of a number that decides the action (value_actions)")
    value_of: str | None = Field(None, description="column that the value is divided by: 40 of 60 seconds")
    value_actions: dict[str, float] = Field({}, description="action -> least value; the highest one reached counts")
    category: str | None = None
    price: str | None = None

    @model_validator(mode="after")
    def _one_action(self) -> "SqlEventsSettings":
        if sum(each is not None for each in (self.action, self.always, self.value)) != 1:
            raise ValueError("needs one of action, always and value")
        if (self.value is not None) != bool(self.value_actions):
            raise ValueError("value and value_actions go together")
        return self

    @property
    def named(self) -> list[str]:
        """The actions that these settings name."""
        return [*self.actions.values(), *self.value_actions, *([self.always] if self.always else [])]


class SqlSettings(_Section):
    """Tables of a database as a source. Off while url is unset; set it by RECSYS_SQL__URL: it holds a password."""

    url: SecretStr | None = Field(None, description="SQLAlchemy URL, such as postgresql+psycopg://USER:...@HOST/NAME")
    events: dict[str, SqlEventsSettings] = Field({}, description="name -> table of events")
    catalogue: SqlDimensionSettings | None = Field(None, description="table of items")
    users: SqlDimensionSettings | None = Field(None, description="table of users")
    watches: SqlWatchesSettings | None = Field(None, description="table of watches, for watch_ratings")
    clicks: SqlClicksSettings | None = Field(None, description="table of clicks, for watch_ratings")
    watch_window_days: int = Field(365, ge=1, description="history that watch_ratings looks at")
    batch_rows: int = Field(20_000, ge=1, le=1_000_000, description="rows read at once, and records in an object")
    retries: int = Field(3, ge=0, le=20, description="times a read is begun again after the connection broke")
    reread_days: int = Field(3, ge=1, le=60, description="newest days read every night: rows may come late")

    @field_validator("events")
    @classmethod
    def _plain_names(cls, value: dict[str, SqlEventsSettings]) -> dict[str, SqlEventsSettings]:
        if bad := [name for name in value if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,39}", name)]:
            raise ValueError(f"names are lower-case letters, digits and _: not {', '.join(bad)}")
        return value

    @model_validator(mode="after")
    def _something_to_read(self) -> "SqlSettings":
        if self.url is not None and not (self.events or self.catalogue or self.users or self.watches):
            raise ValueError("url is set, but none of events, catalogue, users and watches")
        if self.clicks is not None and self.watches is None:
            raise ValueError("clicks goes with watches")
        return self


class HoldoutSettings(_Section):
    """The frozen validation and test hold-outs: drawn once, never merged into training."""

    users_share: float = Field(0.03, ge=0, le=0.4, description="share of the users, for each of the two splits")
    window_days: int = Field(7, ge=1, description="a user qualifies when last seen within these days")
    min_users: int = Field(10, ge=1, description="fewer users than this for a split: nothing is drawn yet")


class TrainingSettings(_Section):
    window_days: int = Field(365, ge=2, description="days of history the models learn from")
    validation_days: int = Field(7, ge=1, description="days before the newest on which ranking weights are learned")
    full_refit_days: int = Field(7, ge=1, description="updates in a row before a full refit")
    seed: int = 7


class PopularitySettings(_Section):
    half_life_days: float = Field(7.0, gt=0)


class RepeatSettings(_Section):
    half_life_days: float = Field(60.0, gt=0, description="of a user's events, while there is too little to learn from")
    learn_days: int = Field(21, ge=1, description="newest days from which returning is learned")
    learn_lists: int = Field(3000, ge=0, description="users' days looked at, at most; 0: decayed frequency always")
    learning_rate: float = Field(0.01, gt=0)
    epochs: int = Field(12, ge=1)


class TransitionSettings(_Section):
    half_life_days: float = Field(90.0, gt=0, description="how fast a transition ages")
    max_gap: int = Field(12, ge=1, description="steps between the two items of a transition, at most")
    reverse: float = Field(0.3, ge=0, description="weight of the reverse direction")
    popularity_power: float = Field(0.3, ge=0, le=1)
    history_decay: float = Field(0.7, gt=0, le=1, description="weight of each older visit of a user's history")
    neighbours: int = Field(500, ge=1, description="transitions kept per item")


class AlsSettings(_Section):
    factors: int = Field(128, ge=1)
    regularization: float = Field(30.0, ge=0)
    alpha: float = Field(4.0, gt=0, description="confidence is 1 + alpha * weight * decay")
    half_life_days: float = Field(90.0, gt=0)
    iterations: int = Field(12, ge=1)
    update_iterations: int = Field(1, ge=1, description="sweeps of an update, over all users and the items met since")


class SequenceSettings(_Section):
    dimension: int = Field(64, ge=8)
    blocks: int = Field(1, ge=1)
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    max_length: int = Field(50, ge=2, description="items of a user's history the model reads")
    negatives: int = Field(256, ge=1, description="shared sampled negatives; all items when the catalogue is small")
    full_softmax_items: int = Field(3000, ge=0, description="catalogues up to this size use the full softmax")
    learning_rate: float = Field(1e-3, gt=0)
    batch_tokens: int = Field(1024, ge=64)
    epochs: int = Field(30, ge=1)
    patience: int = Field(3, ge=1, description="epochs without a better validation before training stops")
    max_tokens: int = Field(4_000_000, ge=1000, description="steps read in all epochs together; the newest count most")
    update_epochs: int = Field(1, ge=1)


class RankerSettings(_Section):
    """A network that ranks the members' candidates by recency, rhythm, category, price and popularity."""

    learn_days: int = Field(140, ge=1, description="days before the validation days from which ranking is learned")
    learn_lists: int = Field(45_000, ge=0, description="users' days looked at, at most; 0: no ranker")
    bins: int = Field(6, ge=0, description="of each number, between its quantiles; 0: the number alone")
    hidden: list[int] = Field([128, 48], min_length=1, description="widths of the network's layers")
    learning_rate: float = Field(2e-3, gt=0)
    epochs: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)


class SearchSettings(_Section):
    """How long `recsys search` looks for better parameters of a model."""

    trials: int = Field(30, ge=1, description="sets of parameters tried in all; a search that was stopped goes on")
    seconds: float = Field(1800, gt=0, description="no new trial is begun after this long")
    lists: int = Field(2000, ge=1, description="users' days a trial is judged by, at most")


class RecommendSettings(_Section):
    candidates: int = Field(250, ge=1, description="K: candidates taken from each member")
    count: int = Field(50, ge=1, description="N: length of the lists")
    bought_items: Literal["remove", "keep"] = Field("remove", description="groceries repeat, sofas do not")
    bought_actions: list[str] = Field(["PURCHASE"], description="the actions that make an item 'bought'")
    available_items_file: str | None = Field(
        None, description="text file in the home, an item id a line: only these are recommended"
    )
    similar_items: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _k_covers_n(self) -> "RecommendSettings":
        if self.candidates < self.count:
            raise ValueError("candidates must be at least count")
        return self


class EvaluationSettings(_Section):
    target_actions: list[str] = Field([], description="actions that count as a hit; empty: all of them")
    bootstrap_samples: int = Field(1000, ge=100)
    diversity_users: int = Field(20_000, ge=2, description="users whose lists are compared for the diversity of all")


class PromotionSettings(_Section):
    tolerance: float = Field(0.02, ge=0, le=1, description="relative NDCG@10 loss that still counts as not worse")
    member_tolerance: float = Field(
        0.3,
        ge=0,
        le=1,
        description="relative NDCG@10 loss of a member alone, on a day it has learned; 1: not looked at",
    )
    min_coverage: float = Field(0.001, ge=0, le=1, description="share of the catalogue that the lists must reach")
    pooled_days: int = Field(7, ge=1, description="unseen days since the champion's that are compared together")


class RetentionSettings(_Section):
    """Which versions of training sets and models stay; the rest is pruned after each promotion. The champion and all it
    was made of always stay."""

    days: int = Field(30, ge=1, description="newest days, each with its present version")
    months: int = Field(12, ge=0, description="newest months, each with its last day")
    champions: int = Field(5, ge=1, description="newest champions, whole, so that a rollback finds them")
    min_age_hours: float = Field(24, ge=0, description="what was made since then stays: another run may be reading it")


class PublishSettings(_Section):
    """Metrics for a dashboard and the champion's files, in a bucket of yours. Each is off while its URL is unset."""

    metrics_url: str | None = Field(None, description="s3://BUCKET/PREFIX or file://FOLDER: METRIC.json, a row a day")
    model_url: str | None = Field(None, description="s3://BUCKET/PREFIX or file://FOLDER: the champion's files")
    region: str | None = Field(None, description="AWS region of both; the AWS chain's if unset")
    endpoint_url: str | None = Field(None, description="for an S3-compatible store")
    profile: str | None = Field(None, description="AWS profile name")

    @field_validator("metrics_url", "model_url")
    @classmethod
    def _folder_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"(s3|file)://[^@]", value):
            raise ValueError("must be s3://BUCKET/PREFIX or file://FOLDER")
        return value.rstrip("/") if value else value


class AudienceSettings(_Section):
    """Who is likely to take an offer. Off while action is unset."""

    action: str | None = Field(None, description="the action that counts as taking it")
    items: list[str] = Field([], description="items that are the offer; with categories: either; both empty: any item")
    categories: list[str] = Field([], description="categories that are the offer")
    window_days: int = Field(28, ge=1, description="days of behaviour that the features are made of")
    label_days: int = Field(7, ge=1, description="days after it in which a user takes the offer or does not")
    periods: int = Field(3, ge=1, description="periods to learn from, label_days apart, before the one that measures")
    budget: int | None = Field(1000, ge=1, description="users in the audience, at most; unset: no limit")
    threshold: float | None = Field(None, ge=0, le=1, description="probability from which a user is in; unset: all")
    mobile_field: str | None = Field(None, description="field of the raw records that tells the device")
    mobile_column: str | None = Field(None, description="instead: column of sql.users that tells the user's device")
    user_column: str = Field("user_id", description="column of sql.users that holds the user's id, with mobile_column")
    mobile_values: list[str] = Field(["mobile"], description="what stands there for a mobile device")
    regularization: float = Field(1e-2, gt=0, description="of the support vector machine; less: slower to fit")

    @model_validator(mode="after")
    def _one_source_of_devices(self) -> "AudienceSettings":
        if self.mobile_field is not None and self.mobile_column is not None:
            raise ValueError("takes one of mobile_field and mobile_column")
        return self


class PersonalizeSettings(_Section):
    """Amazon Personalize, kept up to date from here. Off while url is unset; credentials come from the AWS chain."""

    url: str | None = Field(
        None, description="s3://BUCKET/PREFIX that the CSV files go to; Personalize reads them there"
    )
    role_arn: str | None = Field(None, description="the IAM role by which Personalize reads that bucket")
    dataset_group_arn: str | None = Field(None, description="its datasets are imported into, by their own schemas")
    solution_arn: str | None = Field(None, description="a version of it is trained a day; unset: imports only")
    campaign: str | None = Field(None, description="name; made with the first version, then updated; unset: none")
    name: str = Field("recsys", description="what the names of jobs and versions begin with; unique in the account")
    window_days: int = Field(365, ge=1, description="newest days whose CSV files stay in the bucket, and are imported")
    incremental: bool = Field(True, description="append a day where Personalize allows it; false: always import all")
    full_import_days: int = Field(30, ge=1, description="days after which everything is imported again")
    full_training_days: int = Field(7, ge=1, description="days between full trainings, where the recipe has UPDATE")
    max_attempts: int = Field(2, ge=1, description="jobs of one step and day that the sensor starts by itself")
    timeout_hours: float = Field(24, gt=0, description="a job that takes longer is an error")
    item_column: str = Field("item_id", description="column of sql.catalogue that holds the item's id")
    user_column: str = Field("user_id", description="column of sql.users that holds the user's id")
    region: str | None = Field(None, description="AWS region; that of dataset_group_arn if unset")
    profile: str | None = Field(None, description="AWS profile name")
    endpoint_url: str | None = Field(None, description="of Personalize itself, for a stand-in")
    s3_endpoint_url: str | None = Field(None, description="of the bucket, for an S3-compatible store")

    @field_validator("url")
    @classmethod
    def _bucket_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"s3://[^@/]+", value):
            raise ValueError("must be s3://BUCKET/PREFIX")
        return value.rstrip("/") if value else value

    @field_validator("role_arn", "dataset_group_arn", "solution_arn")
    @classmethod
    def _an_arn(cls, value: str | None, info: ValidationInfo) -> str | None:
        kind = str(info.field_name).removesuffix("_arn").replace("_", "-")
        service, region = ("iam", "") if kind == "role" else ("personalize", "eu-west-1")
        where = rf"{service}:[a-z\d-]+" if region else f"{service}:"
        if value is not None and not re.fullmatch(rf"arn:[a-z\d-]+:{where}:\d{{12}}:{kind}/.+", value):
            raise ValueError(f"must be an ARN such as arn:aws:{service}:{region}:123456789012:{kind}/shop")
        return value

    @field_validator("name", "campaign")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,29}", value):
            raise ValueError("is up to 30 letters, digits, - and _")
        return value

    @model_validator(mode="after")
    def _whole(self) -> "PersonalizeSettings":
        if self.url is not None and not (self.role_arn and self.dataset_group_arn):
            raise ValueError("url is set: role_arn and dataset_group_arn are needed too")
        if self.campaign is not None and self.solution_arn is None:
            raise ValueError("campaign is set: solution_arn is needed too")
        where = self.dataset_group_arn.split(":")[:5] if self.dataset_group_arn else []
        if where and self.solution_arn and self.solution_arn.split(":")[:5] != where:
            raise ValueError("solution_arn is of another region or account than dataset_group_arn")
        if where and self.region and self.region != where[3]:
            raise ValueError("region is another than that of dataset_group_arn")
        return self


class JobSettings(_Section):
    """What a step that fails does. What a retry cannot mend (settings, permissions, inputs) is never retried."""

    retries: int = Field(0, ge=0, le=20, description="times a failed step is tried again in its run")
    retry_minutes: float = Field(10, ge=0, description="between two tries")


class Settings(_Section):
    """All settings. Unknown names are errors."""

    home: Path
    bucket: BucketSettings = BucketSettings()
    calendar: CalendarSettings = CalendarSettings()
    actions: dict[str, float] = Field(
        {"VIEW": 1, "CLICK": 2, "ADD_CART": 3, "PURCHASE": 5}, description="each action's weight"
    )
    ingest: IngestSettings = IngestSettings()
    queue: QueueSettings = QueueSettings()
    sql: SqlSettings = SqlSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    training: TrainingSettings = TrainingSettings()
    popularity: PopularitySettings = PopularitySettings()
    repeat: RepeatSettings = RepeatSettings()
    transition: TransitionSettings = TransitionSettings()
    als: AlsSettings = AlsSettings()
    sequence: SequenceSettings = SequenceSettings()
    ranker: RankerSettings = RankerSettings()
    search: SearchSettings = SearchSettings()
    recommend: RecommendSettings = RecommendSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    promotion: PromotionSettings = PromotionSettings()
    publish: PublishSettings = PublishSettings()
    audience: AudienceSettings = AudienceSettings()
    personalize: PersonalizeSettings = PersonalizeSettings()
    jobs: JobSettings = JobSettings()
    retention: RetentionSettings = RetentionSettings()

    @field_validator("actions")
    @classmethod
    def _weights(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("names no action")
        if bad := [name for name, weight in value.items() if not 0 < weight < 1000]:
            raise ValueError(f"weights must lie above 0 and below 1000: {', '.join(bad)}")
        return value

    @model_validator(mode="after")
    def _actions_exist(self) -> "Settings":
        for name, listed in (
            ("recommend.bought_actions", self.recommend.bought_actions),
            ("evaluation.target_actions", self.evaluation.target_actions),
            ("audience.action", [self.audience.action] if self.audience.action else []),
            *((f"sql.events.{name}", each.named) for name, each in self.sql.events.items()),
        ):
            if unknown := sorted(set(listed) - set(self.actions)):
                raise ValueError(f"{name} names {', '.join(unknown)}, which actions does not have")
        return self

    @property
    def store(self) -> Path:
        return self.home / "store"


def home_path(environ: Mapping[str, str] = os.environ) -> Path:
    return Path(environ.get("RECSYS_HOME") or DEFAULT_HOME).resolve()


class _Loader(yaml.SafeLoader):
    """Leaves an impossible date such as 2025-02-30 a text, so that the setting that wants a date can name it."""

    def construct_yaml_timestamp(self, node: yaml.ScalarNode) -> Any:
        try:
            return super().construct_yaml_timestamp(node)
        except ValueError:
            return node.value


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_yaml_timestamp)


def load_settings(home: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Reads `settings.yaml` of the home and the environment.

    Raises:
        SettingsError: naming every unknown or mistyped setting and where it stands.
    """
    folder = Path(home).resolve() if home is not None else home_path(environ)
    path = folder / "settings.yaml"
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not readable as YAML: {error}") from error
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: must hold named sections such as 'bucket:', not {type(values).__name__}")
    values = {name: section for name, section in values.items() if section is not None}  # all of it commented out
    if "home" in values:
        raise SettingsError(f"{path}: 'home' is set by RECSYS_HOME, not in the file")
    origin: dict[tuple[str, ...], str] = {}
    for variable, text in sorted(environ.items()):
        if variable.startswith(_ENV_PREFIX) and variable not in _ENV_RESERVED:
            keys = tuple(part.lower() for part in variable[len(_ENV_PREFIX) :].split("__"))
            if keys[0] == "actions" and len(keys) == 2:  # action names keep their case
                keys = ("actions", variable.split("__", 1)[1])
                values.setdefault("actions", dict(Settings.model_fields["actions"].default))
            section: Any = values
            for key in keys[:-1]:
                section = section.setdefault(key, {})
                if not isinstance(section, dict):
                    raise SettingsError(f"{variable}: '{key}' is no section")
            try:  # a secret is taken as it stands: what YAML says of a wrong text shows the text
                section[keys[-1]] = yaml.load(text, _Loader) if keys != _SECRET else text or None
            except yaml.YAMLError as error:
                raise SettingsError(f"{variable}: not readable: {error}") from error
            origin[keys] = variable
    try:
        return Settings(home=folder, **values)
    except ValidationError as error:
        lines = [_explain(item, path, origin) for item in error.errors()]
        raise SettingsError("Wrong settings:\n" + "\n".join(f"  {line}" for line in lines)) from None
    except TypeError as error:  # a section name that is no string
        raise SettingsError(f"{path}: {error}") from None


def _explain(error: Any, path: Path, origin: dict[tuple[str, ...], str]) -> str:
    where = tuple(str(part) for part in error["loc"])
    # A variable may set a part of what is wrong (an unknown section), or hold it (an entry of a list).
    source = next((origin[key] for key in origin if key[: len(where)] == where[: len(key)]), str(path))
    name = ".".join(where) or "settings"
    if error["type"] == "extra_forbidden":
        known = _names_at(where[:-1])
        close = difflib.get_close_matches(where[-1], known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
        return f"{name} ({source}): unknown setting; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    secret = where in (_SECRET, _SECRET[:1])
    given = "" if secret or (error["type"] == "value_error" and not where) else f", not {error['input']!r}"
    return f"{name} ({source}): {message[:1].lower() + message[1:]}{given}"


def _names_at(where: tuple[str, ...]) -> list[str]:
    section: Any = Settings
    for part in where:
        if get_origin(section) in (list, dict):  # of sections: the part is a position or a name
            section = get_args(section)[-1]
            continue
        field = section.model_fields.get(part) if _is_section(section) else None
        section = field.annotation if field is not None else None
    return [name for name in section.model_fields if name != "home"] if _is_section(section) else []


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def described(settings: Settings) -> str:
    """The settings as YAML, each line with what it means."""
    lines = [f"# home: {settings.home}"]
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines.append(f"\n{name}:")
            for inner, inner_field in type(value).model_fields.items():
                text = yaml.safe_dump(value.model_dump(mode="json")[inner], default_flow_style=True)
                meaning = f"  # {inner_field.description}" if inner_field.description else ""
                lines.append(f"  {inner}: {text.removesuffix('...' + chr(10)).strip()}{meaning}")
        elif name != "home":
            text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False).strip()
            lines.append(f"\n{name}: {text}  # {field.description}")
    return "\n".join(lines)
