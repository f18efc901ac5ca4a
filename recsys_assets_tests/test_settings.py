import re
from pathlib import Path

import pytest

from recsys_assets.settings import Settings, SettingsError, home_path, load_settings


def write(home: Path, text: str) -> Path:
    (home / "settings.yaml").write_text(text, encoding="utf-8")
    return home


def refused(home: Path, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(home, environ or {})
    return str(caught.value)


def test_without_a_file_everything_has_its_default(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {})
    assert settings == Settings(home=tmp_path)
    assert settings.actions == {"VIEW": 1, "CLICK": 2, "ADD_CART": 3, "PURCHASE": 5}
    assert settings.store == tmp_path / "store"
    assert settings.recommend.candidates == 250
    assert settings.recommend.count == 50


@pytest.mark.parametrize("text", ["", "# nothing\n", "bucket:\n", "bucket:\n  # url: s3://logs\ntraining:\n"])
def test_what_is_commented_out_counts_as_unset(tmp_path: Path, text: str) -> None:
    assert load_settings(write(tmp_path, text), {}) == Settings(home=tmp_path)


def test_an_empty_section_takes_a_value_from_the_environment(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, "bucket:\n"), {"RECSYS_BUCKET__URL": "s3://logs"})
    assert settings.bucket.url == "s3://logs"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    write(tmp_path, "bucket:\n  url: s3://file\n  prefix: a/\nals:\n  factors: 8\n")
    settings = load_settings(
        tmp_path,
        {"RECSYS_BUCKET__URL": "s3://environment/", "RECSYS_ALS__FACTORS": "16", "PATH": "/bin", "RECSYS_HOME": "/x"},
    )
    assert settings.bucket.url == "s3://environment"
    assert settings.bucket.prefix == "a/"
    assert settings.als.factors == 16
    assert settings.home == tmp_path


def test_lists_and_nothing_from_the_environment(tmp_path: Path) -> None:
    write(tmp_path, "calendar:\n  last_day: 2025-12-01\n")
    settings = load_settings(
        tmp_path,
        {"RECSYS_RECOMMEND__BOUGHT_ACTIONS": "[PURCHASE, ADD_CART]", "RECSYS_CALENDAR__LAST_DAY": ""},
    )
    assert settings.recommend.bought_actions == ["PURCHASE", "ADD_CART"]
    assert settings.calendar.last_day is None


def test_a_weight_from_the_environment_joins_those_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, "actions:\n  View: 1\n  PURCHASE: 4\n")
    assert load_settings(tmp_path, {"RECSYS_ACTIONS__PURCHASE": "7"}).actions == {"View": 1, "PURCHASE": 7}


def test_a_weight_from_the_environment_joins_the_defaults(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, {"RECSYS_ACTIONS__PURCHASE": "7", "RECSYS_ACTIONS__Wish": "2"})
    assert settings.actions == {"VIEW": 1, "CLICK": 2, "ADD_CART": 3, "PURCHASE": 7, "Wish": 2}
    assert load_settings(tmp_path, {}).actions["PURCHASE"] == 5, "the default itself stays"


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        ("buckett:\n  url: s3://a\n", "buckett", "did you mean 'bucket'"),
        ("bucket:\n  ulr: s3://a\n", "bucket.ulr", "did you mean 'url'"),
        ("holdout:\n  zzz: 1\n", "holdout.zzz", "known here: users_share"),
        ("als:\n  factors: many\n", "als.factors", "'many'"),
        ("als:\n  factors: 0\n", "als.factors", "greater than or equal to 1"),
        ("als: 5\n", "als", "5"),
        ("calendar:\n  time_zone: Mars/Olympus\n", "calendar.time_zone", "Europe/Paris"),
        ("calendar:\n  first_day: 2025-02-30\n", "calendar.first_day", "2025-02-30"),
        ("calendar:\n  first_day: 2025-03-01\n  last_day: 2025-02-01\n", "calendar", "last_day lies before first_day"),
        ("bucket:\n  url: /data\n", "bucket.url", "s3://BUCKET or file://FOLDER"),
        ("bucket:\n  layout: '%Y/%m/'\n", "bucket.layout", "%Y, %m and %d"),
        ("bucket:\n  layout: '%Y/%B/%m/%d'\n", "bucket.layout", "not %B"),
        ("actions:\n  VIEW: 0\n  PURCHASE: 1\n", "actions", "VIEW"),
        ("actions: {}\n", "actions", "names no action"),
        ("recommend:\n  bought_actions: [BUY]\n", "recommend.bought_actions", "BUY"),
        ("evaluation:\n  target_actions: [BUY]\n", "evaluation.target_actions", "BUY"),
        ("recommend:\n  count: 300\n", "recommend", "candidates must be at least count"),
        ("recommend:\n  bought_items: hide\n", "recommend.bought_items", "'hide'"),
        ("ingest:\n  quiet_minutes: .inf\n", "ingest.quiet_minutes", "finite"),
        ("popularity:\n  half_life_days: .nan\n", "popularity.half_life_days", "nan"),
        ("home: /x\n", "home", "RECSYS_HOME"),
        ("1: {}\n", "settings.yaml", "keywords must be strings"),
    ],
)
def test_a_wrong_setting_in_the_file_is_named(tmp_path: Path, text: str, name: str, hint: str) -> None:
    said = refused(write(tmp_path, text))
    assert name in said
    assert hint in said
    assert str(tmp_path / "settings.yaml") in said


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("RECSYS_BUCKET__ULR", "s3://a", "bucket.ulr"),
        ("RECSYS_BUKET__URL", "s3://a", "buket"),
        ("RECSYS_SPEED", "9", "speed"),
        ("RECSYS_BUCKET", "s3://a", "bucket"),
        ("RECSYS_ALS__FACTORS", "many", "als.factors"),
        ("RECSYS_ALS__FACTORS__DEEP", "1", "als.factors"),
        ("RECSYS_RECOMMEND__BOUGHT_ACTIONS", "[[1]]", "recommend.bought_actions"),
        ("RECSYS_ACTIONS__VIEW", "heavy", "actions.VIEW"),
        ("RECSYS_BUCKET__URL", "{", "RECSYS_BUCKET__URL"),
        ("RECSYS_CALENDAR__FIRST_DAY", "2025-13-01", "calendar.first_day"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, name: str) -> None:
    said = refused(write(tmp_path, "calendar:\n  first_day: 2025-11-01\n"), {variable: value})
    assert name in said
    assert variable in said
    assert "settings.yaml" not in said, "the file is not to blame"


def test_a_variable_below_a_value_of_the_file(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "als: 5\n"), {"RECSYS_ALS__FACTORS": "3"})
    assert "RECSYS_ALS__FACTORS: 'als' is no section" in said


def test_all_wrong_settings_are_named_at_once(tmp_path: Path) -> None:
    said = refused(write(tmp_path, "als:\n  factors: x\n  alhpa: 1\n"), {"RECSYS_BUCKET__IN_FLIGHT": "0"})
    assert len(re.findall(r"als\.factors|als\.alhpa|bucket\.in_flight", said)) == 3


@pytest.mark.parametrize("content", [b"bucket: [", b"\xff\xfe\x00", b"- a\n- b\n", b"just text"])
def test_a_file_that_is_no_settings(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "settings.yaml").write_bytes(content)
    assert str(tmp_path / "settings.yaml") in refused(tmp_path)


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        ("prefix", "/logs", "logs/"),
        ("prefix", "", ""),
        ("prefix", "a/b/", "a/b/"),
        ("layout", "%Y/%m/%d", "%Y/%m/%d/"),
        ("layout", "dt=%Y-%m-%d/", "dt=%Y-%m-%d/"),
        ("url", "file:///srv/logs/", "file:///srv/logs"),
        ("url", "file:///", "file:///"),
    ],
)
def test_folders_are_brought_into_one_form(tmp_path: Path, field: str, given: str, kept: str) -> None:
    assert getattr(load_settings(write(tmp_path, f"bucket:\n  {field}: '{given}'\n"), {}).bucket, field) == kept


def test_the_home_comes_from_the_environment(tmp_path: Path) -> None:
    assert home_path({"RECSYS_HOME": str(tmp_path)}) == tmp_path
    assert home_path({"RECSYS_HOME": ""}) == Path("data/sample").resolve()
    assert load_settings(None, {"RECSYS_HOME": str(tmp_path)}).home == tmp_path


def test_the_settings_of_the_sample_and_of_the_tests_are_right() -> None:
    root = Path(__file__).parent.parent
    assert load_settings(root / "data/sample", {}).calendar.last_day is not None
    assert load_settings(root / "recsys_assets_tests/home", {}).calendar.last_day is None
