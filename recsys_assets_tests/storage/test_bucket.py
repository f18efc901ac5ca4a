import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import pytest
from botocore.config import Config
from botocore.stub import Stubber
from dagster_aws.s3 import S3Resource

from recsys_assets.pipeline import Pipeline, dagster_resources
from recsys_assets.settings import BucketSettings, Settings
from recsys_assets.storage import bucket as module
from recsys_assets.storage.bucket import Bucket, BucketError, LogObject, ObjectChanged, S3Bucket, fetch, open_bucket
from recsys_assets_tests.s3_server import SECRET

KEYS = ["a-b/x.json", "a.json", "a/1.json", "a/b/c.json", "a/z.json", "ab.json", "z é ü+&?#%41.json", "ä.json"]


def opened(settings: BucketSettings) -> Bucket:
    return open_bucket(settings, Path("/nowhere"))


def test_lists_in_byte_order_and_reads_back(any_bucket: BucketSettings) -> None:
    bucket = opened(any_bucket)
    for key in reversed(KEYS):
        bucket.put(key, key.encode())
    objects = list(bucket.walk(""))
    assert [obj.key for obj in objects] == sorted(KEYS, key=str.encode)
    assert [bucket.get(obj) for obj in objects] == [obj.key.encode() for obj in objects]
    assert [obj.size for obj in objects] == [len(obj.key.encode()) for obj in objects]
    assert all(abs((datetime.now(UTC) - obj.last_modified).total_seconds()) < 60 for obj in objects)
    assert all(obj.last_modified.utcoffset() is not None and obj.last_modified.microsecond == 0 for obj in objects)
    direct, below = bucket.level("")
    assert [obj.key for obj in direct] == ["a.json", "ab.json", "z é ü+&?#%41.json", "ä.json"]
    assert below == ["a-b/", "a/"]
    assert [obj.key for obj in bucket.level("a/")[0]] == ["a/1.json", "a/z.json"]
    assert bucket.level("a/")[1] == ["a/b/"]
    assert [obj.key for obj in bucket.walk("a/")] == ["a/1.json", "a/b/c.json", "a/z.json"]
    assert bucket.level("nothing/") == ([], [])
    assert list(bucket.walk("nothing/")) == []
    assert bucket.head("a.json") == next(obj for obj in objects if obj.key == "a.json")
    assert bucket.head("b.json") is None
    bucket.delete("a.json")
    bucket.delete("a.json")
    assert bucket.head("a.json") is None


def test_empty_object(any_bucket: BucketSettings) -> None:
    bucket = opened(any_bucket)
    bucket.put("empty.json", b"")
    assert [bucket.get(obj) for obj in bucket.walk("")] == [b""]


def test_an_object_overwritten_or_deleted_since_listing_is_never_read(any_bucket: BucketSettings) -> None:
    bucket = opened(any_bucket)
    bucket.put("logs/a.json", b"old")
    (listed,) = bucket.walk("")
    bucket.put("logs/a.json", b"new")
    with pytest.raises(ObjectChanged, match=r"a\.json"):
        bucket.get(listed)
    bucket.delete("logs/a.json")
    with pytest.raises(ObjectChanged, match=r"a\.json"):
        bucket.get(listed)


def test_fetch_takes_the_new_version_and_reports_what_is_gone(any_bucket: BucketSettings) -> None:
    bucket = opened(any_bucket)
    for name in "abc":
        bucket.put(name, name.encode())
    listed = list(bucket.walk(""))
    bucket.put("a", b"a, rewritten")
    bucket.delete("b")
    gone: list[LogObject] = []
    progress: list[tuple[int, int]] = []
    got = list(fetch(bucket, listed, 2, on_progress=lambda *done: progress.append(done), on_gone=gone.append))
    assert [(obj.key, content) for obj, content in got] == [("a", b"a, rewritten"), ("c", b"c")]
    assert got[0][0] == bucket.head("a") != listed[0]
    assert gone == [listed[1]]
    assert progress == [(1, 12), (2, 13)]


def test_more_than_a_page(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket)
    names = [f"d/{number:04}.json" for number in range(1005)]
    for name in names:
        bucket.put(name, b"x")
    assert [obj.key for obj in bucket.walk("d/")] == names
    assert bucket.list_requests == 2
    assert [obj.key for obj in bucket.level("d/")[0]] == names


HOSTILE = [
    "a//b.json", "a/../c.json", "a/./b.json", "/lead.json", "trail.json/", "tab\t.json", "line\n.json", "%2F.json",
    "x*y[1].json", "a\\b.json", "\u202e.json", "del\x7f.json", "..", " ", "'; drop table x; --.json",
]  # fmt: skip


def test_hostile_keys_are_listed_and_read_as_they_are(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket)
    for key in HOSTILE:
        bucket.put(key, b"content of " + key.encode())
    bucket.put("lead.json", b"another one")
    bucket.put("trail.json", b"another one")
    objects = list(bucket.walk(""))
    assert {obj.key for obj in objects} == {*HOSTILE, "lead.json", "trail.json"}
    for obj, content in fetch(bucket, objects, 4):
        assert content == (
            b"another one" if obj.key in ("lead.json", "trail.json") else b"content of " + obj.key.encode()
        )


def test_a_stored_content_encoding_is_not_undone(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket)
    assert isinstance(bucket, S3Bucket)
    bucket._client.put_object(Bucket=bucket.url[5:], Key="a.gz", Body=b"\x1f\x8bxyz", ContentEncoding="gzip")
    (obj,) = bucket.walk("")
    assert bucket.get(obj) == bucket._get_plain(obj) == b"\x1f\x8bxyz"


def test_the_fast_client_is_used(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket)
    assert isinstance(bucket, S3Bucket)
    bucket.put("a.json", b"x")
    (obj,) = bucket.walk("")
    assert bucket._get_fast(obj) == b"x"


# ---------------------------------------------------------------------------------------------------------- S3 errors


def test_bucket_that_does_not_exist(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket.model_copy(update={"url": "s3://no-such-bucket"}))
    for action in (lambda: list(bucket.walk("")), lambda: bucket.put("a", b""), lambda: bucket.get(_object("a"))):
        with pytest.raises(BucketError, match=r"no-such-bucket.*does not exist.*bucket\.url") as caught:
            action()
        assert not isinstance(caught.value, ObjectChanged)


def test_endpoint_that_cannot_be_reached(aws_environment: None) -> None:
    bucket = opened(BucketSettings(url="s3://logs", endpoint_url="http://127.0.0.1:9"))
    assert isinstance(bucket, S3Bucket)
    bucket._client = boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=Config(retries={"max_attempts": 0}))
    with pytest.raises(BucketError, match=r"http://127\.0\.0\.1:9 cannot be reached.*bucket\.endpoint_url"):
        list(bucket.walk(""))


def test_no_credentials(monkeypatch: pytest.MonkeyPatch, s3_bucket: BucketSettings) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket = opened(s3_bucket)
    for action in (lambda: list(bucket.walk("")), lambda: bucket.get(_object("a"))):
        with pytest.raises(BucketError, match=r"no usable AWS credentials.*AWS_ACCESS_KEY_ID"):
            action()


FETCH = """
import builtins, sys, time
from pathlib import Path

own = builtins.__import__

def slowly(name, globals=None, locals=None, fromlist=(), level=0):
    if name == "_obstore" and "*" in (fromlist or ()):
        time.sleep(0.5)  # obstore's modules are there, its functions are not
    return own(name, globals, locals, fromlist, level)

builtins.__import__ = slowly
from recsys_assets.settings import BucketSettings
from recsys_assets.storage.bucket import fetch, open_bucket

bucket = open_bucket(BucketSettings.model_validate_json(sys.argv[1]), Path("/nowhere"))
print(len(list(fetch(bucket, bucket.walk(""), 8))))
"""


def test_threads_that_fetch_first_wait_for_the_whole_client(s3_bucket: BucketSettings) -> None:
    bucket = opened(s3_bucket)
    for number in range(8):
        bucket.put(f"{number}.json", b"[]")
    done = subprocess.run(
        [sys.executable, "-c", FETCH, s3_bucket.model_dump_json()], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "8\n"), done.stderr


def test_the_client_is_that_of_dagsters_resource(
    aws_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[profile logs]\nregion = eu-west-3\n")
    (tmp_path / "credentials").write_text("[logs]\naws_access_key_id = of-profile\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))

    def described(client: Any) -> dict[str, Any]:
        credentials = client._request_signer._credentials.get_frozen_credentials()
        config = {name: getattr(client.meta.config, name) for name in ("retries", "s3", "signature_version", "proxies")}
        http = client._endpoint.http_session
        return config | {
            "region": client.meta.region_name,
            "endpoint": client.meta.endpoint_url,
            "credentials": (credentials.access_key, credentials.secret_key, credentials.token),
            "verify": http._verify,
            "timeout": vars(http._timeout),
        }

    seen = []
    for region, endpoint, profile in [
        (None, None, None),
        ("eu-central-1", None, None),
        ("us-east-1", "http://127.0.0.1:9", None),
        (None, None, "logs"),
    ]:
        if profile:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.delenv("AWS_DEFAULT_REGION")
        bucket = BucketSettings(url="s3://logs", region=region, endpoint_url=endpoint, profile=profile)
        ours = opened(bucket)
        pipeline = Pipeline(Settings(home=tmp_path, bucket=bucket))
        made = dagster_resources(pipeline)
        assert isinstance(made["s3"], S3Resource)
        with dg.build_resources(made) as resources:
            theirs = resources.pipeline.bucket
        assert isinstance(ours, S3Bucket)
        assert isinstance(theirs, S3Bucket)
        assert resources.pipeline.s3 == made["s3"].get_client
        seen.append(described(ours._client))
        assert seen[-1] == described(theirs._client)
    assert [each["region"] for each in seen] == ["us-east-1", "eu-central-1", "us-east-1", "eu-west-3"]
    assert [each["credentials"][0] for each in seen] == ["tests", "tests", "tests", "of-profile"]


def test_unknown_profile(aws_environment: None) -> None:
    with pytest.raises(BucketError, match=r"bucket\.profile"):
        opened(BucketSettings(url="s3://logs", profile="nobody"))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AccessDenied", r"access denied.*s3:ListBucket"),
        ("InvalidAccessKeyId", r"credentials are not valid"),
        ("ExpiredToken", r"credentials are not valid.*ExpiredToken"),
        ("PermanentRedirect", r"another region.*bucket\.region"),
        ("SlowDown", r"too busy"),
        ("SomethingNew", r"SomethingNew"),
    ],
)
def test_refusals_say_what_to_do_and_hold_no_secret(aws_environment: None, code: str, says: str) -> None:
    bucket = opened(BucketSettings(url="s3://logs"))
    assert isinstance(bucket, S3Bucket)
    with Stubber(bucket._client) as stub:
        stub.add_client_error("list_objects_v2", code, f"the secret is {SECRET}", 400)
        with pytest.raises(BucketError, match=says) as caught:
            list(bucket.walk("logs/"))
    assert SECRET not in str(caught.value)
    assert "s3://logs" in str(caught.value)


@pytest.mark.parametrize("url", ["s3://key:secret@logs", "s3://logs/folder", "s3://x"])
def test_wrong_urls(url: str) -> None:
    with pytest.raises(BucketError, match=r"bucket\.prefix") as caught:
        opened(BucketSettings(url=url))
    assert "secret" not in str(caught.value)


def test_no_secret_from_an_endpoint() -> None:
    with pytest.raises(BucketError, match=r"bucket\.endpoint_url") as caught:
        opened(BucketSettings(url="s3://logs", endpoint_url="http://me:secret@host"))
    assert "secret" not in str(caught.value)


def test_console_urls(aws_environment: None, any_bucket: BucketSettings) -> None:
    assert opened(BucketSettings(url="s3://logs")).console_url("a b/c/") == (
        "https://console.aws.amazon.com/s3/buckets/logs?prefix=a%20b%2Fc%2F"
    )
    assert opened(any_bucket).console_url("a b/c/") is None


# ------------------------------------------------------------------------------------------------- transient S3 faults

CONTENT = b"0123456789" * 1000
ETAG = '"v1"'


def _object(key: str = "a.json", etag: str = ETAG, size: int = len(CONTENT)) -> LogObject:
    return LogObject(key, etag, size, datetime(2025, 12, 1, tzinfo=UTC))


@pytest.fixture
def faulty(aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[S3Bucket, list[str]]]:
    """A bucket on a server that plays the list of faults, one a request, and then behaves."""
    faults: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = faults.pop(0) if faults else "none"
            if fault in ("500", "503"):
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.send_header("ETag", '"v2"' if fault == "changed" else ETAG)
            self.send_header("Last-Modified", "Mon, 01 Dec 2025 00:00:00 GMT")
            self.end_headers()
            if fault == "reset":
                self.wfile.write(CONTENT[:500])
                self.close_connection = True
                return
            self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.01, 0.01, 0.01))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    bucket = opened(BucketSettings(url="s3://logs", endpoint_url=f"http://127.0.0.1:{server.server_address[1]}"))
    assert isinstance(bucket, S3Bucket)
    yield bucket, faults
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("played", [["503"], ["500", "reset"], ["reset"], ["reset", "reset", "503"]])
def test_transient_faults_are_retried(faulty: tuple[S3Bucket, list[str]], played: list[str]) -> None:
    bucket, faults = faulty
    faults += played
    assert bucket.get(_object()) == CONTENT
    assert not faults


@pytest.mark.parametrize(("fault", "says"), [("reset", "cannot be reached"), ("500", "InternalError|too busy|500")])
def test_faults_that_do_not_end_are_reported(
    faulty: tuple[S3Bucket, list[str]], fault: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, faults = faulty
    monkeypatch.setattr(bucket, "_get_fast", lambda obj: None)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    faults += [fault] * 100
    with pytest.raises(BucketError, match=rf"a\.json.*({says})"):
        bucket.get(_object())


def test_a_store_that_ignores_if_match_is_noticed(faulty: tuple[S3Bucket, list[str]]) -> None:
    bucket, faults = faulty
    faults += ["changed", "changed"]
    with pytest.raises(ObjectChanged):
        bucket.get(_object())
    with pytest.raises(ObjectChanged):
        bucket._get_plain(_object())


def test_a_shorter_body_than_listed_is_never_returned(faulty: tuple[S3Bucket, list[str]]) -> None:
    bucket, _ = faulty
    with pytest.raises(BucketError, match="breaking off"):
        bucket.get(_object(size=len(CONTENT) + 1))


# --------------------------------------------------------------------------------------------------------------- fetch


class CountingBucket:
    """Answers with the key after a moment; counts what was begun."""

    url = "test://"
    list_requests = 0

    def __init__(self, slow: Callable[[str], float] = lambda key: 0.0, fails: str = "") -> None:
        self.begun: list[str] = []
        self.slow, self.fails = slow, fails

    def get(self, obj: LogObject) -> bytes:
        self.begun.append(obj.key)
        time.sleep(self.slow(obj.key))
        if obj.key == self.fails:
            raise BucketError("denied")
        return obj.key.encode()


def _numbered(count: int, size: int = 3) -> list[LogObject]:
    return [_object(f"{number:03}", size=size) for number in range(count)]


def test_fetch_keeps_the_order_whatever_comes_first() -> None:
    bucket = CountingBucket(lambda key: 0.02 if int(key) % 5 == 0 else 0)
    got = fetch(bucket, iter(_numbered(40)), 8)  # type: ignore[arg-type]
    assert [content.decode() for _, content in got] == [f"{number:03}" for number in range(40)]


@pytest.mark.parametrize(("size", "most"), [(3, 17), (2**27, 3)])
def test_fetch_is_never_further_ahead_than_allowed(size: int, most: int) -> None:
    """`most`: begun when the consumer holds its first object: it and the objects, or bytes, that may wait."""
    bucket = CountingBucket()
    stream = fetch(bucket, _numbered(50, size), 4)  # type: ignore[arg-type]
    for number in range(10):
        next(stream)
        time.sleep(0.01)
        assert number < len(bucket.begun) <= number + most
    stream.close()
    assert len(bucket.begun) <= 9 + most


def test_a_slow_object_keeps_no_others_waiting() -> None:
    behind = threading.Event()

    class Stuck(CountingBucket):
        def get(self, obj: LogObject) -> bytes:
            if obj.key == "007":
                behind.set()
            if obj.key == "000":
                assert behind.wait(20)
            return super().get(obj)

    got = [obj.key for obj, _ in fetch(Stuck(), _numbered(8), 2)]  # type: ignore[arg-type]
    assert got == [f"{number:03}" for number in range(8)]


def test_fetch_leaves_alone_what_is_too_large() -> None:
    bucket = CountingBucket()
    objects = [_object("small", size=5), _object("huge", size=2**40), _object("exact", size=10)]
    got = [(obj.key, content) for obj, content in fetch(bucket, objects, 2, max_size=10)]  # type: ignore[arg-type]
    assert got == [("small", b"small"), ("huge", b""), ("exact", b"exact")]
    assert sorted(bucket.begun) == ["exact", "small"]


def test_fetch_reads_at_once() -> None:
    began = time.perf_counter()
    assert len(list(fetch(CountingBucket(lambda key: 0.05), _numbered(32), 16))) == 32  # type: ignore[arg-type]
    assert time.perf_counter() - began < 0.05 * 32 / 2


def test_fetch_reports_an_error_and_stops() -> None:
    bucket = CountingBucket(fails="003")
    with pytest.raises(BucketError, match="denied"):
        list(fetch(bucket, _numbered(100), 4))  # type: ignore[arg-type]
    assert len(bucket.begun) < 20


# ---------------------------------------------------------------------------------------------------------------- file


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(BucketError, match=r"does not exist.*bucket\.url"):
        open_bucket(BucketSettings(url="file://missing"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(BucketError, match="not a folder"):
        open_bucket(BucketSettings(url="file://file"), tmp_path)
    (tmp_path / "gone").mkdir()
    bucket = open_bucket(BucketSettings(url="file://gone"), tmp_path)
    (tmp_path / "gone").rmdir()
    with pytest.raises(BucketError, match="gone"):
        list(bucket.walk(""))


def test_access_denied_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = open_bucket(BucketSettings(url="file://."), tmp_path)

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BucketError, match="access denied"):
        list(bucket.walk("logs/"))


def test_nothing_outside_the_folder_is_listed_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_bytes(b"secret")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x.json").write_bytes(b"secret")
    inside = tmp_path / "bucket"
    inside.mkdir()
    (inside / "link.json").symlink_to(tmp_path / "secret.json")
    (inside / "folder").symlink_to(tmp_path / "outside")
    bucket = open_bucket(BucketSettings(url="file://bucket"), tmp_path)
    assert list(bucket.walk("")) == []
    for key in ("link.json", "folder/x.json", "../secret.json", "../outside/x.json", "/etc/passwd"):
        assert bucket.head(key) is None
        with pytest.raises(BucketError):
            bucket.get(_object(key))
    for key in ("../new.json", "folder/new.json"):
        with pytest.raises(BucketError):
            bucket.put(key, b"")
    assert not (tmp_path / "new.json").exists()
    assert not (tmp_path / "outside" / "new.json").exists()


def test_half_written_files_are_not_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = open_bucket(BucketSettings(url="file://."), tmp_path)
    bucket.put("a.json", b"old")
    seen: list[list[str]] = []
    replace = os.replace

    def watched(source: object, target: object) -> None:
        seen.append([obj.key for obj in bucket.walk("")])
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", watched)
    bucket.put("a.json", b"new")
    bucket.put("b.json", b"new")
    assert seen == [["a.json"], ["a.json"]]


def test_a_file_changed_in_place_is_noticed(tmp_path: Path) -> None:
    bucket = open_bucket(BucketSettings(url="file://."), tmp_path)
    bucket.put("a.json", b"old")
    (listed,) = bucket.walk("")
    (tmp_path / "a.json").write_bytes(b"new")
    os.utime(tmp_path / "a.json", ns=(0, 1_700_000_000_123_456_789))
    with pytest.raises(ObjectChanged):
        bucket.get(listed)


def test_a_name_that_is_no_utf8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.json")).write_bytes(b"")
    with pytest.raises(BucketError, match="UTF-8"):
        list(open_bucket(BucketSettings(url="file://."), tmp_path).walk(""))


@pytest.mark.parametrize("harm", [b"", b"<LastModified>yesterday</LastModified>", b"no XML"])
def test_a_listing_that_our_parser_does_not_take_goes_to_botocores(harm: bytes) -> None:
    entry = b"<Key>a%2Bb+c</Key><LastModified>2025-11-01T10:00:00.123Z</LastModified>"
    entry += b"<ETag>&quot;e&quot;</ETag><Size>3</Size>"
    page = b"<ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><EncodingType>url</EncodingType>"
    page += b"<Contents>" + entry + harm + b"</Contents><IsTruncated>false</IsTruncated></ListBucketResult>"
    response = {"status_code": 200, "body": b"no XML" if harm == b"no XML" else page}
    before = dict(response)
    taken: dict[str, Any] = {}
    module._take_entries(response, taken)
    if harm:
        assert response == before
        assert taken == {}
    else:
        assert taken[module._ENTRIES] == [LogObject("a+b c", '"e"', 3, datetime(2025, 11, 1, 10, tzinfo=UTC))]
        assert b"Contents" not in response["body"]
        assert b"IsTruncated" in response["body"]
