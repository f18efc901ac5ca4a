"""What goes wrong, what comes late, what is asked for twice, and what is exported."""

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import polars as pl
import pytest

from recsys_assets.days import shift
from recsys_assets.personalize import assets
from recsys_assets.personalize.export import Exports, Field, cut, schema_fields, to_csv
from recsys_assets.personalize.service import Personalize
from recsys_assets.pipeline import InputError
from recsys_assets.settings import BucketSettings, PersonalizeSettings
from recsys_assets.storage.bucket import S3Bucket
from recsys_assets.storage.tombstones import Erased, digest_of
from recsys_assets.trust.erasure import erase, finish
from recsys_assets_tests.personalize.fake import Refused, Server
from recsys_assets_tests.personalize.shop import DAYS, FIELDS, GROUP, ROLE, SOLUTION, Shop, events
from recsys_assets_tests.personalize.test_chain import server

__all__ = ["server"]
FIRST, SECOND, THIRD = DAYS
DATASET = GROUP.replace("dataset-group", "dataset")


@pytest.fixture
def shop(tmp_path: Path, s3_bucket: BucketSettings, server: Server) -> Iterator[Shop]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Shop(tmp_path / "home", s3_bucket, instance, server)


def test_a_failed_job_says_what_and_why_and_is_started_once_more(shop: Shop) -> None:
    shop.fake.to_fail = {"The disk was full.": [f"solution-version recsys-{FIRST}{again}" for again in ("", "-2")]}
    assert shop.run([FIRST])
    shop.settle_until(lambda: len(shop.said) == 2)
    for said in shop.said:
        assert f"{GROUP.replace('dataset-group', 'solution')}/" in said, "the ARN"
        assert "The disk was full." in said
        assert f"materialize personalize_solution_version for {FIRST} again" in said
    for _ in range(3):
        assert shop.tick() == 0, "personalize.max_attempts"
    assert shop.run([FIRST], "solution_version", "campaign"), "by hand it may be tried as often as one likes"
    shop.settle()
    assert shop.names("solution-version") == [f"recsys-{FIRST}-3"]
    assert [each.values["solutionVersionArn"] for each in shop.fake.all("campaign")] == [
        each.arn for each in shop.fake.all("solution-version") if each.status == "ACTIVE"
    ]


def test_a_job_that_takes_too_long_is_said_once_and_still_followed(shop: Shop) -> None:
    shop.open(timeout_hours=1e-6)
    assert shop.run([FIRST])
    shop.tick(0)
    (said,) = shop.said
    assert "CREATE PENDING" in said
    assert "longer than personalize.timeout_hours" in said
    assert f"dataset-import-job/recsys-interactions-{FIRST}" in said
    assert shop.look().run_requests == []
    shop.open(timeout_hours=24)
    shop.settle()
    assert shop.metadata("campaign", FIRST)["status"] == "ACTIVE"
    assert len(shop.fake.all("dataset-import-job")) == 1


def test_a_backfill_of_old_days_does_not_take_the_campaign_back(shop: Shop) -> None:
    shop.go(THIRD)
    shop.go(FIRST, SECOND)
    assert shop.fake.all("campaign-update") == []
    (campaign,) = shop.fake.all("campaign")
    assert campaign.values["solutionVersionArn"] == shop.record(THIRD)["version"]["jobs"]["version"]["arn"]
    for day in (FIRST, SECOND):
        job = shop.record(day)["campaign"]["jobs"]["campaign"]
        assert (job["mode"], job["what"]) == ("kept", f"it serves the version of {THIRD}: a campaign never goes back")
    (shop.folder / f"store/personalize/{THIRD}.json").unlink()  # and with the store lost: the version bears its day
    (shop.folder / f"store/personalize/{SECOND}.json").unlink()
    shop.go(SECOND)
    assert shop.fake.all("campaign-update") == []
    assert len(shop.fake.all("solution-version")) == 3, "found by its name, not trained again"


def test_late_data_is_another_job_of_its_day_and_replaces_everything(shop: Shop) -> None:
    for day in (FIRST, SECOND):
        shop.go(day)
    shop.publish(FIRST, events(FIRST, rows=1300))
    shop.go(FIRST)
    jobs = shop.record(FIRST)["import"]["jobs"]
    assert (jobs["interactions"]["name"], jobs["interactions"]["mode"]) == (f"recsys-interactions-{FIRST}-2", "FULL")
    assert len(shop.fake.rows(f"{DATASET}/INTERACTIONS")) == 2500, "the second day's rows are still there, once"
    shop.go(THIRD)
    assert shop.record(THIRD)["import"]["jobs"]["interactions"]["mode"] == "INCREMENTAL"
    assert len(shop.fake.rows(f"{DATASET}/INTERACTIONS")) == 3700


def test_a_small_day_cannot_be_appended(shop: Shop) -> None:
    shop.go(FIRST)
    shop.publish(SECOND, events(SECOND, rows=40))
    shop.go(SECOND)
    job = shop.record(SECOND)["import"]["jobs"]["interactions"]
    assert (job["mode"], job["what"]) == ("FULL", "fewer than 1000 rows")
    assert len(shop.fake.rows(f"{DATASET}/INTERACTIONS")) == 1240


def test_too_little_for_personalize_is_said_before_it_is_asked(shop: Shop) -> None:
    shop.publish(FIRST, events(FIRST, rows=999))
    assert not shop.run([FIRST])
    assert "holds 999 interactions, and Personalize takes no fewer than 1000" in shop.said[0]
    assert shop.fake.all("dataset-import-job") == []


def test_other_recipes_train_in_full_and_full_training_comes_round(shop: Shop) -> None:
    days = [shift(FIRST, n) for n in range(4)]
    shop.publish(days[3], events(days[3]))
    shop.open(full_training_days=2)
    for day in days:
        shop.go(day)
    modes = [each.values["trainingMode"] for each in shop.fake.all("solution-version")]
    assert modes == ["FULL", "UPDATE", "FULL", "UPDATE"]


def test_the_files_hold_to_the_schema_of_each_dataset(shop: Shop) -> None:
    shop.add_dataset("items")
    shop.add_dataset("users")
    odd = events(FIRST).with_columns(
        user_id=pl.when(pl.col("record") == 0)
        .then(pl.lit('o\\"dd, user'))
        .when(pl.col("record") == 1)
        .then(pl.lit("u" * 257))
        .otherwise("user_id")
    )
    shop.publish(FIRST, odd)
    customers = pl.DataFrame({"customer": ["user-3", 'o\\"dd, user'], "country": ['"Çôte"\nd\'Or', None]})
    shop.pipeline.tables.publish_frame("users", FIRST, customers, {})
    shop.open(user_column="customer")
    assert {kind: file["left_out"] for kind, file in shop.go(FIRST).items()} == {
        "interactions": 1, "items": 0, "users": 1
    }  # fmt: skip
    rows = shop.fake.rows(f"{DATASET}/INTERACTIONS")
    assert len(rows) == 1199
    (first,) = [row for row in rows if row["USER_ID"] == 'o\\"dd, user']
    start = int(odd["timestamp"].dt.epoch("s").item(0))
    assert first == {
        "USER_ID": 'o\\"dd, user',
        "ITEM_ID": "item-0",
        "TIMESTAMP": str(start),
        "EVENT_TYPE": "VIEW",
        "EVENT_VALUE": "1.0",
    }
    assert {row["EVENT_TYPE"]: float(row["EVENT_VALUE"]) for row in rows} == {"VIEW": 1, "CLICK": 2, "PURCHASE": 5}
    users = {row["USER_ID"]: row["COUNTRY"] for row in shop.fake.rows(f"{DATASET}/USERS")}
    assert (users["user-3"], users['o\\"dd, user'], users["user-4"]) == ('"Çôte" d\'Or', "", "")
    items = {row["ITEM_ID"]: row for row in shop.fake.rows(f"{DATASET}/ITEMS")}
    assert len(items) == 40
    kept = odd.filter(pl.col("item_id") == "item-7")
    assert items["item-7"]["CREATION_TIMESTAMP"] == str(kept["timestamp"].dt.epoch("s").min())
    assert float(items["item-7"]["PRICE"]) == kept.drop_nulls("price").sort("timestamp")["price"][-1]
    assert items["item-7"]["CATEGORY_L1"] == "c2"


@pytest.mark.parametrize(
    ("types", "error"),
    [
        (
            "string",
            'requires COLOUR, which is not to be had here; make it nullable in the schema ("type": ["null", …])',
        ),
        (["null", "string"], None),
    ],
)
def test_a_column_that_is_not_to_be_had(types: Any, error: str | None) -> None:
    fields = schema_fields(
        json.dumps({"fields": [{"name": n, "type": t} for n, t in [*FIELDS["interactions"], ("COLOUR", types)]]}),
        "interactions",
    )
    frame = pl.DataFrame(
        {"USER_ID": ["u"], "ITEM_ID": ["i"], "TIMESTAMP": [1], "EVENT_TYPE": ["VIEW"], "EVENT_VALUE": [1.0]}
    )
    if error:
        with pytest.raises(InputError, match="requires COLOUR") as said:
            to_csv(frame, fields, "interactions")
        assert error in str(said.value)
    else:
        assert to_csv(frame, fields, "interactions").decode().splitlines()[1] == '"u","i",1,"VIEW",1.0,'


@pytest.mark.parametrize(
    ("types", "values", "written"),
    [
        (["null", "long"], [datetime(2025, 11, 1), None], ["1761955200", ""]),
        (["null", "long"], [date(2025, 11, 1), None], ["1761955200", ""]),
        (["null", "int"], ["12", None], ["12", ""]),
        ("boolean", [True, False], ["true", "false"]),
        (["null", "float"], [Decimal("1.50"), None], ["1.5", ""]),
        (["null", "int"], ["12", "a dozen"], None),
        ("boolean", ["yes", "no"], None),
    ],
)
def test_values_are_written_as_the_types_of_the_schema(
    types: Any, values: list[Any], written: list[str] | None
) -> None:
    schema = json.dumps({"fields": [{"name": "ITEM_ID", "type": "string"}, {"name": "MORE", "type": types}]})
    frame = pl.DataFrame({"ITEM_ID": ["i", "j"], "MORE": values})
    if written is None:
        with pytest.raises(InputError, match=r"the dataset of items requires MORE to be .*rows hold something else"):
            to_csv(frame, schema_fields(schema, "items"), "items")
    else:
        lines = to_csv(frame, schema_fields(schema, "items"), "items").decode().splitlines()[1:]
        assert lines == [f'"i",{written[0]}', f'"j",{written[1]}']


def test_the_region_is_that_of_the_datasets(shop: Shop) -> None:
    shop.open(region=None)
    assert shop.chain().export(FIRST)["interactions"]["rows"] == 1200
    bucket = Exports(shop.pipeline).bucket
    assert isinstance(bucket, S3Bucket)
    assert bucket._client.meta.region_name == "eu-west-1"


@pytest.mark.parametrize("operation", ["CreateDatasetImportJob", "CreateSolutionVersion", "CreateCampaign"])
def test_a_permission_that_is_missing_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch, operation: str) -> None:
    def denied(asked: str) -> None:
        if asked == operation:
            raise Refused("AccessDeniedException", "User: arn:… is not authorized")

    with monkeypatch.context() as patched:
        patched.setattr(shop.fake, "_fault", denied)
        shop.run([FIRST])
        shop.settle_until(lambda: bool(shop.said))
    assert f"the credentials in use need personalize:{operation}" in shop.said[0]
    assert ("iam:PassRole of personalize.role_arn" in shop.said[0]) == (operation == "CreateDatasetImportJob")
    shop.settle()
    assert [len(shop.fake.all(kind)) for kind in ("dataset-import-job", "solution-version", "campaign")] == [1, 1, 1]


def test_a_tick_that_is_cut_short_loses_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it saw is written down by then, and told on no page."""
    assert shop.run([FIRST])
    shop.fake.skip(2)
    with monkeypatch.context() as patched:
        patched.setattr(assets, "_told_last", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shop.look()
    assert shop.record(FIRST)["import"]["jobs"]["interactions"]["status"] == "ACTIVE"
    shop.settle()
    for step in ("import", "solution_version", "campaign"):
        assert shop.metadata(step, FIRST)["status"] == "ACTIVE"
    assert len(shop.fake.all("dataset-import-job")) == len(shop.fake.all("solution-version")) == 1


def test_a_tick_of_a_long_backfill_is_short(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "_LINES", 1)
    for day in DAYS:
        shop.chain().export(day)
        shop.chain().advance(day, "import")
    first, last = str(shop.look().skip_reason.skip_message).split("; ")  # type: ignore[union-attr]
    assert first.startswith(f"{FIRST}: import CREATE PENDING")
    assert last == "and 2 more"


def test_after_an_outage_it_goes_on_by_itself(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.run([FIRST], "export")
    shop.fake.rates = {"error": 1.0}
    assert not shop.run([FIRST], "import", "solution_version", "campaign")
    assert [shop.tick() for _ in range(5)] == [1, 1, 1, 0, 0]
    assert "3 runs came to nothing" in str(shop.look().skip_reason)
    shop.fake.rates = {}
    assert shop.tick() == 0
    monkeypatch.setattr(assets, "_NOW_AND_THEN", timedelta(0))
    shop.settle()
    assert shop.metadata("campaign", FIRST)["status"] == "ACTIVE"


def test_erased_users_are_cut_out_of_a_file() -> None:
    fields = [Field("ITEM_ID", ("string",)), Field("USER_ID", ("string",)), Field("N", ("long",))]
    users = ["a", 'b"\\,', "c\u2028d", "a", "e"]
    frame = pl.DataFrame({"ITEM_ID": ["i"] * 5, "USER_ID": users, "N": range(5)})
    content = to_csv(frame, fields, "interactions")
    erased = Erased(b"key", [digest_of(b"key", user) for user in ("a", 'b"\\,')])
    left, rows = cut(content, erased)
    assert rows == 3
    read = csv.DictReader(io.StringIO(left.decode(), newline="\n"), doublequote=False, escapechar="\\")
    assert [row["USER_ID"] for row in read] == ["c\u2028d", "e"]
    assert cut(left, erased) == (left, 0)


def test_erasing_a_user_reaches_the_files_and_the_next_import(shop: Shop) -> None:
    shop.add_dataset("users")
    shop.go(*DAYS)
    shop.publish(shift(THIRD, 1), events(shift(THIRD, 1)))
    assert shop.run([shift(THIRD, 1)], "export")
    s3 = boto3.client("s3", endpoint_url=shop.settings["s3_endpoint_url"])

    def files_with(user: str) -> list[str]:
        keys = [each["Key"] for each in s3.list_objects_v2(Bucket=shop.bucket_name)["Contents"]]
        return [
            key
            for key in keys
            if f'"{user}"' in s3.get_object(Bucket=shop.bucket_name, Key=key)["Body"].read().decode()
        ]

    assert len(files_with("user-3")) == 6, "four days, and the users of the newest two"
    for day in [*DAYS, shift(THIRD, 1)]:  # as cleaning again from raw_events leaves them
        shop.publish(day, events(day).filter(pl.col("user_id") != "user-3"))
    shop.pipeline.tables.path("raw_events", FIRST).parent.mkdir()
    (receipt,) = erase(shop.pipeline, "user-3", False, lambda *_: None, lambda _: None)
    finish(shop.pipeline, "user-3", [receipt], lambda _: None)
    assert files_with("user-3") == []
    touched = [each for each in receipt.content["touched"] if each["what"] == "personalize"]
    assert len(touched) == 6
    assert sum(each["records"] for each in touched) == 4 * 20 + 2
    assert [each["what"] for each in receipt.content["left"]] == ["Amazon Personalize"]
    assert receipt.content["finished"]
    assert any(row["USER_ID"] == "user-3" for row in shop.fake.rows(f"{DATASET}/INTERACTIONS")), "until the next import"
    assert shop.run([shift(THIRD, 1)], "import"), "what the sensor asks for: the files are those that erasing left"
    job = shop.record(shift(THIRD, 1))["import"]["jobs"]["interactions"]
    assert (job["mode"], job["what"]) == ("FULL", f"the file of {FIRST} has changed since it was imported")
    shop.go(shift(THIRD, 1))
    for kind in ("INTERACTIONS", "USERS"):
        assert not any(row["USER_ID"] == "user-3" for row in shop.fake.rows(f"{DATASET}/{kind}"))


def test_what_lies_before_the_window_leaves_the_bucket(shop: Shop) -> None:
    shop.open(window_days=2)
    for day in DAYS:
        shop.go(day)
    s3 = boto3.client("s3", endpoint_url=shop.settings["s3_endpoint_url"])
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=shop.bucket_name)["Contents"]]
    assert keys == [f"for/personalize/interactions/{day}.csv" for day in DAYS[1:]]


def test_what_is_missing_is_said(shop: Shop) -> None:
    assert not shop.run([shift(THIRD, 5)])
    assert "Materialize interactions for 2025-11-08 first" in shop.said[-1]
    assert not shop.run([FIRST], "import")
    assert "materialize personalize_export for it first" in shop.said[-1]
    shop.open(dataset_group_arn=GROUP.replace("shop", "other"))
    assert not shop.run([FIRST])
    assert "has no dataset of interactions" in shop.said[-1]
    shop.open(dataset_group_arn=GROUP, solution_arn=GROUP.replace("dataset-group/shop", "solution/other"))
    assert shop.run([FIRST])
    shop.settle_until(lambda: len(shop.said) > 3)
    assert "personalize:DescribeSolution" in shop.said[-1]
    assert "solution/other was not found" in shop.said[-1]


def test_a_campaign_that_follows_by_itself_is_refused(shop: Shop) -> None:
    shop.go(FIRST)
    shop.fake.all("campaign")[0].values["campaignConfig"] = {"syncWithLatestSolutionVersion": True}
    assert shop.run([SECOND])
    shop.settle_until(lambda: bool(shop.said))
    assert "syncWithLatestSolutionVersion" in shop.said[0]


def test_nobody_answers(shop: Shop) -> None:
    shop.open(endpoint_url="http://127.0.0.1:1")
    assert not shop.run([FIRST])
    assert "http://127.0.0.1:1 does not answer" in shop.said[0]


@pytest.mark.parametrize("asked", [True, False], ids=["asked for", "written down only"])
def test_a_job_that_nobody_noted_is_found_when_the_day_has_changed(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    shop.go(FIRST)
    chain = shop.chain()
    with monkeypatch.context() as patched, chain.records.lock():
        patched.setattr(Personalize, "import_job" if asked else "import_into", lambda *_: 1 / 0)
        chain.export(SECOND)
        with pytest.raises(ZeroDivisionError):
            chain.advance(SECOND, "import")
    assert shop.record(SECOND)["import"]["jobs"]["interactions"]["arn"] is None
    assert len(shop.fake.all("dataset-import-job")) == 1 + asked
    shop.publish(SECOND, events(SECOND, rows=1300))
    shop.go(SECOND)
    names = [f"recsys-interactions-{FIRST}", f"recsys-interactions-{SECOND}"]
    assert shop.names("dataset-import-job") == (names if not asked else [*names, f"{names[1]}-2"])
    assert len(shop.fake.rows(f"{DATASET}/INTERACTIONS")) == 2500, "the day's first file is in it no more"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"role_arn": GROUP}, "must be an ARN such as arn:aws:iam::123456789012:role/shop"),
        ({"dataset_group_arn": ROLE}, "arn:aws:personalize:eu-west-1:123456789012:dataset-group/shop"),
        ({"solution_arn": GROUP}, "arn:aws:personalize:eu-west-1:123456789012:solution/shop"),
        ({"solution_arn": SOLUTION.replace("west-1", "west-2")}, "another region or account"),
        ({"region": "eu-west-2"}, "region is another than that of dataset_group_arn"),
        ({"solution_arn": None}, "campaign is set: solution_arn is needed too"),
    ],
)
def test_arns_that_do_not_fit_are_refused(changed: dict[str, Any], said: str) -> None:
    whole = {"url": "s3://b/p", "role_arn": ROLE, "dataset_group_arn": GROUP, "solution_arn": SOLUTION, "campaign": "a"}
    PersonalizeSettings.model_validate(whole | {"region": "eu-west-1"})
    with pytest.raises(ValueError, match=re.escape(said)):
        PersonalizeSettings.model_validate(whole | changed)
