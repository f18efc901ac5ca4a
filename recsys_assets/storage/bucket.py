"""The bucket of behaviour logs: listing, fetching, and errors that say what to do.

Two kinds behave alike: `s3://BUCKET` (any S3 service) and `file://FOLDER`. A key is text with `/` between its parts;
the bucket is flat, "folders" are only prefixes.

Why two S3 clients: obstore fetches 5-15 times faster than boto3 for a tenth of its CPU, but its listing fails as a
whole on one key such as `a//b`, and it strips a leading or trailing `/`. So boto3 lists and writes, obstore fetches,
and boto3 fetches whatever obstore refuses or fails on; its error codes are also the better diagnosis. The entries of a
listing are read by ElementTree alone: botocore's own parser takes five times as long for a page of 1,000.
"""

import logging
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote_plus, urlsplit
from xml.etree import ElementTree

from recsys_assets.settings import BucketSettings
from recsys_assets.storage.files import write_bytes

_log = logging.getLogger(__name__)

S3_ATTEMPTS = 4  # of a request by boto3

_TEMPORARY = ".tmp-"  # how storage.files names a file that is being written; never listed
_BYTES_AHEAD = 256 * 2**20  # fetched objects waiting for their consumer, all together
_WAITING = 4  # objects asked for ahead, for each in flight: behind a slow one the others go on


@dataclass(frozen=True, slots=True)
class LogObject:
    """One object as a listing shows it.

    Attributes:
        etag: opaque change token, compared only for equality (no MD5 for multipart or encrypted objects).
        size: bytes as stored.
        last_modified: UTC, whole seconds.
    """

    key: str
    etag: str
    size: int
    last_modified: datetime


class BucketError(RuntimeError):
    """The bucket cannot be used as asked. The message says what failed, where and what to do, without secrets."""


class BucketUnavailable(BucketError):
    """The service is too busy or cannot be reached: the same may succeed later."""


class ObjectChanged(BucketError):
    """The object is not the listed version any more: overwritten, or gone."""


class Bucket(Protocol):
    """What the pipeline asks of a bucket. All methods may be called from several threads; all raise BucketError."""

    url: str
    """For display; holds no credentials."""
    list_requests: int
    """Listing requests (pages) sent so far."""

    def level(self, prefix: str) -> tuple[list[LogObject], list[str]]:
        """The objects directly below a prefix ending in '/' (or ''), and the longer prefixes, each ending in '/'."""

    def walk(self, prefix: str) -> Iterator[LogObject]:
        """Every object below a prefix, in byte order of the UTF-8 keys."""

    def head(self, key: str) -> LogObject | None:
        """The object's entry as it is now; None if there is none."""

    def get(self, obj: LogObject) -> bytes:
        """The bytes of exactly the listed version, of exactly the listed length.

        Raises:
            ObjectChanged: it was overwritten or deleted since it was listed.
        """

    def put(self, key: str, content: bytes) -> None:
        """Writes an object whole: a reader sees the old one or the new one."""

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""

    def console_url(self, prefix: str) -> str | None:
        """Where a person can look at the objects below a prefix in a browser, if there is such a place."""


def open_bucket(settings: BucketSettings, home: Path, s3: Callable[[], Any] | None = None) -> Bucket:
    """Opens the bucket of the settings; nothing is sent yet. A relative file:// folder lies in `home`.

    Args:
        s3: dagster-aws's S3Resource.get_client, in Dagster's processes; None: a client like that one is made.

    Raises:
        BucketError: the URL, the profile or the folder is wrong.
    """
    scheme, _, rest = settings.url.partition("://")
    if scheme == "file":
        return FileBucket(home / rest)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}", rest):
        shown = "" if "@" in rest else f" '{settings.url}'"  # what stands before an @ may be a secret
        raise BucketError(
            f"bucket.url{shown} must be s3:// and a bucket's name alone; a folder belongs in bucket.prefix, and "
            "credentials in the environment or an AWS profile"
        )
    if settings.endpoint_url and "@" in settings.endpoint_url:
        raise BucketError("bucket.endpoint_url must not hold credentials; use the environment or an AWS profile")
    return S3Bucket(rest, settings, s3)


def fetch(
    bucket: Bucket,
    objects: Iterable[LogObject],
    in_flight: int,
    max_size: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_gone: Callable[[LogObject], None] | None = None,
) -> Iterator[tuple[LogObject, bytes]]:
    """Fetches objects concurrently and yields them in the order given.

    Memory is bounded: at most 4 * `in_flight` objects, and about 256 MiB by listed size (or one larger object), are
    fetched ahead of the consumer. An object overwritten since the listing is fetched in its new version, and the
    entry yielded is the one whose bytes come with it. An object that is gone is left out, after `on_gone(entry)`.

    Args:
        max_size: an object listed with more bytes is yielded with none of them, and not fetched.
        on_progress: called in the consumer's thread with (objects, bytes) yielded so far, after each.
    """
    listed = list(objects)
    # Threads that take one after the other: a future for each object costs 0.02 ms of CPU.
    lock = threading.Lock()
    come, room = threading.Condition(lock), threading.Condition(lock)  # the next result; a place for one more
    results: dict[int, tuple[LogObject, bytes] | BaseException | None] = {}  # by position in `listed`
    taken = given = ahead = 0

    def may_take() -> bool:
        waiting = taken - given
        return waiting == 0 or (
            waiting < _WAITING * in_flight and ahead + _to_fetch(listed[taken], max_size) <= _BYTES_AHEAD
        )

    def work() -> None:
        nonlocal taken, ahead
        while True:
            with lock:
                while taken < len(listed) and not may_take():
                    room.wait()
                if taken == len(listed):
                    room.notify()  # the next one is to see it too
                    return
                number, obj = taken, listed[taken]
                taken += 1
                ahead += _to_fetch(obj, max_size)
                room.notify()  # there may be more places, and one notice came
            result: tuple[LogObject, bytes] | BaseException | None
            try:
                result = _get_current(bucket, obj, max_size)
            except BaseException as error:
                result = error
            with lock:
                results[number] = result
                if number == given:
                    come.notify()
            del result  # it would keep the bytes alive

    threads = [threading.Thread(target=work, name="fetch", daemon=True) for _ in range(min(in_flight, len(listed)))]
    try:
        for thread in threads:
            thread.start()
        done = done_bytes = 0
        for number, obj in enumerate(listed):
            with lock:
                while number not in results:
                    come.wait()
                result = results.pop(number)
                given += 1
                ahead -= _to_fetch(obj, max_size)
                room.notify()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                _log.warning("%s: %r was deleted after it was listed", bucket.url, obj.key)
                if on_gone is not None:
                    on_gone(obj)
                continue
            done += 1
            done_bytes += len(result[1])
            yield result
            del result
            if on_progress is not None:
                on_progress(done, done_bytes)
    finally:
        with lock:
            taken = len(listed)
            room.notify_all()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def _to_fetch(obj: LogObject, max_size: int | None) -> int:
    return 0 if max_size is not None and obj.size > max_size else obj.size


def _get_current(
    bucket: Bucket, obj: LogObject, max_size: int | None, tries: int = 5
) -> tuple[LogObject, bytes] | None:
    for attempt in range(tries):
        try:
            return obj, bucket.get(obj) if obj.size == _to_fetch(obj, max_size) else b""
        except ObjectChanged:
            if attempt == tries - 1:
                raise
            current = bucket.head(obj.key)
            if current is None:
                return None
            obj = current
    raise AssertionError("unreachable")


# --------------------------------------------------------------------------------------------------------------- S3

_PAUSES = (0.2, 0.5, 1.0, 2.0)  # seconds between our own tries of a GET, each with jitter

_GONE = {"NoSuchKey", "404", "NotFound", "412", "PreconditionFailed"}
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "AccountProblem"}
_BAD_CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "AuthFailure",
}
_BAD_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_BUSY = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequests",
    "429",
    "500",
    "502",
    "503",
    "504",
}


class _Truncated(Exception):
    """Fewer bytes arrived than the listing promised."""


class S3Bucket:
    """A bucket of any S3 service.

    In Dagster's processes the client is that of dagster-aws's S3Resource (pipeline.dagster_resources). A command that
    does without Dagster makes the same one itself: to import S3Resource takes two seconds (Dagster, and every other
    AWS service), more than all else that `recsys run ingest` does where nothing changed.
    """

    def __init__(self, name: str, settings: BucketSettings, s3: Callable[[], Any] | None = None) -> None:
        import boto3  # costs a quarter of a second; a code server with a file:// bucket does without
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.url = f"s3://{name}"
        self.list_requests = 0
        self._name = name
        self._where = f"{self.url} at {settings.endpoint_url}" if settings.endpoint_url else self.url
        self._lock = threading.Lock()
        self._store: Any = None
        try:
            self._session = boto3.Session(profile_name=settings.profile)
            self._client: Any = (
                s3()
                if s3
                else self._session.client(
                    "s3",
                    region_name=settings.region,
                    endpoint_url=settings.endpoint_url,
                    config=Config(retries={"max_attempts": S3_ATTEMPTS, "mode": "standard"}),
                )
            )
        except (BotoCoreError, ValueError) as error:
            raise self._explain(error, "open", "") from error
        self._client.meta.events.register("before-parse.s3.ListObjectsV2", _take_entries)
        self._endpoint: str = self._client.meta.endpoint_url
        self._on_aws = (urlsplit(self._endpoint).hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))

    def level(self, prefix: str) -> tuple[list[LogObject], list[str]]:
        objects: list[LogObject] = []
        prefixes: list[str] = []
        for page in self._pages(prefix, "/"):
            objects += _entries(page)
            prefixes += [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        return objects, prefixes

    def walk(self, prefix: str) -> Iterator[LogObject]:
        for page in self._pages(prefix, ""):
            yield from _entries(page)

    def _pages(self, prefix: str, delimiter: str) -> Iterator[Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._name, Prefix=prefix, Delimiter=delimiter
            ):
                with self._lock:
                    self.list_requests += 1
                yield page
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, "list", prefix) from error

    def head(self, key: str) -> LogObject | None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            found = self._client.head_object(Bucket=self._name, Key=key)
        except (BotoCoreError, ClientError) as error:
            explained = self._explain(error, "get", key)
            if isinstance(explained, ObjectChanged):
                return None
            raise explained from error
        return LogObject(key, found.get("ETag", ""), found["ContentLength"], _utc(found["LastModified"]))

    def get(self, obj: LogObject) -> bytes:
        from botocore.exceptions import BotoCoreError, ClientError

        content = self._get_fast(obj)
        if content is not None:
            return content
        for pause in (*_PAUSES, None):
            try:
                return self._get_plain(obj)
            except (BotoCoreError, ClientError, _Truncated) as error:
                if pause is None or not _is_transient(error):
                    raise self._explain(error, "get", obj.key) from error
                time.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    def _get_fast(self, obj: LogObject) -> bytes | None:
        """By obstore; None where boto3 should try and judge."""
        # The package first: to a second thread its modules are there while it is still without its functions.
        import obstore  # noqa: F401
        from obstore.exceptions import BaseError, PreconditionError

        if obj.key[:1] == "/" or obj.key[-1:] == "/":  # obstore would strip it and fetch another object
            return None
        try:
            store = self._store or self._open_store()
            result = store.get(obj.key, options={"if_match": obj.etag} if obj.etag else None)
            content = result.bytes().to_bytes()
        except PreconditionError as error:
            raise self._changed(obj.key) from error
        except (BaseError, OSError, ValueError) as error:
            _log.debug("%s: %r by boto3 after obstore's %s", self.url, obj.key, type(error).__name__)
            return None
        self._check_version(obj, result.meta.get("e_tag"))
        return content if len(content) == obj.size else None

    def _get_plain(self, obj: LogObject) -> bytes:
        condition = {"IfMatch": obj.etag} if obj.etag else {}
        found = self._client.get_object(Bucket=self._name, Key=obj.key, **condition)
        body = found["Body"]  # no `with`: that gives the raw stream, whose errors are not botocore's
        try:
            content: bytes = body.read()
        finally:
            body.close()
        self._check_version(obj, found.get("ETag"))
        if len(content) != obj.size:
            raise _Truncated(f"{len(content)} bytes of {obj.size}")
        return content

    def _check_version(self, obj: LogObject, etag: str | None) -> None:
        if obj.etag and etag and etag != obj.etag:  # a store that does not know If-Match
            raise self._changed(obj.key)

    def _open_store(self) -> Any:
        from obstore.store import S3Store

        with self._lock:
            if self._store is None:
                credentials = self._session.get_credentials()
                if credentials is None:
                    raise ValueError("no credentials")

                def current() -> Any:
                    frozen = credentials.get_frozen_credentials()
                    return {
                        "access_key_id": frozen.access_key,
                        "secret_access_key": frozen.secret_key,
                        "token": frozen.token,
                        "expires_at": datetime.now(UTC) + timedelta(minutes=10),
                    }

                region = self._region()
                self._store = S3Store(
                    self._name,
                    endpoint=f"https://s3.{region}.amazonaws.com" if self._on_global_aws else self._endpoint,
                    region=region,
                    virtual_hosted_style_request=False,
                    credential_provider=current,
                    client_options={
                        "allow_http": self._endpoint.startswith("http://"),
                        "connect_timeout": timedelta(seconds=10),
                        "timeout": timedelta(minutes=10),
                    },
                    retry_config={
                        "max_retries": 4,
                        "retry_timeout": timedelta(minutes=1),
                        "backoff": {
                            "init_backoff": timedelta(seconds=0.1),
                            "max_backoff": timedelta(seconds=5),
                            "base": 2,
                        },
                    },
                )
        return self._store

    @property
    def _on_global_aws(self) -> bool:
        return bool(re.fullmatch(r"https://s3\.([a-z0-9-]+\.)?amazonaws\.com/?", self._endpoint))

    def _region(self) -> str:
        """The bucket's own region where AWS tells it: boto3 follows a redirect to it, obstore does not."""
        from botocore.exceptions import BotoCoreError, ClientError

        headers: dict[str, str] = {}
        if self._on_aws:
            try:
                answer = self._client.head_bucket(Bucket=self._name)
                headers = answer["ResponseMetadata"]["HTTPHeaders"]
            except ClientError as error:  # a refusal tells the region too
                headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            except BotoCoreError:
                pass
        return headers.get("x-amz-bucket-region") or self._client.meta.region_name or "us-east-1"

    def put(self, key: str, content: bytes) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.put_object(Bucket=self._name, Key=key, Body=content)
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, "put", key) from error

    def delete(self, key: str) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.delete_object(Bucket=self._name, Key=key)
        except (BotoCoreError, ClientError) as error:
            raise self._explain(error, "delete", key) from error

    def console_url(self, prefix: str) -> str | None:
        if not self._on_aws:
            return None
        return f"https://console.aws.amazon.com/s3/buckets/{self._name}?prefix={quote(prefix, safe='')}"

    def _changed(self, key: str) -> ObjectChanged:
        return ObjectChanged(f"{self._where}: {key!r} was overwritten or deleted since it was listed; list again")

    def _explain(self, error: Exception, doing: str, key: str) -> BucketError:
        """The error in a user's terms. Only codes and class names of `error` are shown: they hold no secrets."""
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, NoRegionError, ProfileNotFound

        what = f"{self._where}: cannot {doing} {key!r}" if key else f"{self._where}: cannot {doing}"
        if isinstance(error, ClientError):
            code = str(error.response.get("Error", {}).get("Code", "unknown error"))
            if code == "NoSuchBucket" or (code in ("404", "NotFound") and doing == "list"):
                return BucketError(f"{what}: this bucket does not exist; check bucket.url and bucket.endpoint_url")
            if code in _GONE and doing in ("get", "delete"):
                return self._changed(key)
            if code in _DENIED:
                action = {"list": "s3:ListBucket", "get": "s3:GetObject", "put": "s3:PutObject"}
                needed = action.get(doing, "s3:DeleteObject")
                return BucketError(f"{what}: access denied; the credentials in use need {needed} there")
            if code in _BAD_CREDENTIALS:
                return BucketError(f"{what}: the credentials are not valid any more or never were ({code}); renew them")
            if code in _BAD_REGION:
                return BucketError(f"{what}: the bucket lies in another region ({code}); set bucket.region")
            if code in _BUSY:
                return BucketUnavailable(
                    f"{what}: the service was too busy, also after retries ({code}); try again later"
                )
            return BucketError(f"{what}: the service answered {code}")
        name = type(error).__name__
        if isinstance(error, _Truncated):
            return BucketUnavailable(f"{what}: the transfer kept breaking off ({error}); try again later")
        if isinstance(error, ProfileNotFound):
            return BucketError(f"{what}: bucket.profile names an AWS profile that this machine does not have")
        if isinstance(error, NoRegionError):
            return BucketError(f"{what}: no region is known; set bucket.region or AWS_DEFAULT_REGION")
        if any(word in name for word in ("Credential", "Token", "SSO", "Unauthorized")):
            return BucketError(
                f"{what}: no usable AWS credentials ({name}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "bucket.profile, or run where a role gives them"
            )
        if isinstance(error, (HTTPClientError, ConnectionError)):  # connect, proxy, TLS, timeout
            return BucketUnavailable(
                f"{what}: {self._endpoint} cannot be reached ({name}); check bucket.endpoint_url, "
                "bucket.region and the network"
            )
        if doing == "open":
            return BucketError(f"{what}: {name}; check bucket.endpoint_url, bucket.region and bucket.profile")
        return BucketError(f"{what}: {name}")


def _is_transient(error: Exception) -> bool:
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or str(error.response.get("Error", {}).get("Code")) in _BUSY
    return isinstance(error, (HTTPClientError, ConnectionError, IncompleteReadError, _Truncated))


_ENTRIES = "recsys_entries"  # where _take_entries leaves what it read


def _take_entries(response_dict: Any, customized_response_dict: Any, **_: Any) -> None:
    """Reads the entries of a listing before botocore parses the rest; whatever looks odd is left to botocore."""
    if response_dict["status_code"] != 200:
        return
    try:
        root = ElementTree.fromstring(response_dict["body"])
        space = root.tag[: root.tag.find("}") + 1]
        if root.tag != f"{space}ListBucketResult":
            return
        is_encoded = root.findtext(f"{space}EncodingType") == "url"
        objects = []
        for entry in root.findall(f"{space}Contents"):
            text = {child.tag[len(space) :]: child.text or "" for child in entry}
            key = unquote_plus(text["Key"]) if is_encoded else text["Key"]
            modified = datetime.fromisoformat(text["LastModified"])
            if modified.tzinfo is None:
                return
            objects.append(LogObject(key, text.get("ETag", ""), int(text["Size"]), _utc(modified)))
    except (ElementTree.ParseError, KeyError, ValueError):
        return
    root[:] = [child for child in root if child.tag != f"{space}Contents"]
    response_dict["body"] = ElementTree.tostring(root)
    customized_response_dict[_ENTRIES] = objects


def _entries(page: Any) -> list[LogObject]:
    found: list[LogObject] | None = page.get(_ENTRIES)
    return found if found is not None else [_from_listing(entry) for entry in page.get("Contents", ())]


def _from_listing(entry: Any) -> LogObject:
    return LogObject(entry["Key"], entry.get("ETag", ""), entry["Size"], _utc(entry["LastModified"]))


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


# ------------------------------------------------------------------------------------------------------------- file


class FileBucket:
    """A folder that behaves like a bucket: keys are the relative paths of its regular files.

    Symbolic links are not followed and not listed, so nothing outside the folder is ever read. The ETag is made of
    the inode, the modification time and the size.
    """

    def __init__(self, root: Path) -> None:
        try:
            self._root = root.resolve(strict=True)
        except FileNotFoundError as error:
            raise BucketError(f"file://{root}: this folder does not exist; create it or set bucket.url") from error
        except (OSError, RuntimeError) as error:
            raise BucketError(f"file://{root}: cannot be opened ({type(error).__name__})") from error
        if not self._root.is_dir():
            raise BucketError(f"file://{root}: is not a folder; bucket.url must name one")
        self.url = f"file://{self._root}"
        self.list_requests = 0
        self._lock = threading.Lock()

    def level(self, prefix: str) -> tuple[list[LogObject], list[str]]:
        objects: list[LogObject] = []
        prefixes: list[str] = []
        for name, entry in self._scan(prefix):
            if name.endswith("/"):
                prefixes.append(prefix + name)
            elif (obj := self._entry(prefix + name, entry)) is not None:
                objects.append(obj)
        return objects, prefixes

    def walk(self, prefix: str) -> Iterator[LogObject]:
        for name, entry in self._scan(prefix):
            if name.endswith("/"):
                yield from self.walk(prefix + name)
            elif (obj := self._entry(prefix + name, entry)) is not None:
                yield obj

    def _scan(self, prefix: str) -> list[tuple[str, "os.DirEntry[str]"]]:
        """The entries of a folder in byte order of their keys; a folder's name ends in '/', as it does in its keys."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"prefix {prefix!r} must end in '/'")
        with self._lock:
            self.list_requests += 1
        folder = self._path(prefix)
        if folder is None:
            return []
        found = []
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        found.append((entry.name + "/", entry))
                    elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(_TEMPORARY):
                        found.append((entry.name, entry))
            return sorted(found, key=lambda pair: pair[0].encode())
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self._root.is_dir():
                raise BucketError(f"{self.url}: the folder is gone") from error
            return []
        except UnicodeEncodeError as error:
            raise BucketError(f"{self.url}: below {prefix!r} a file's name is not UTF-8; rename it") from error
        except OSError as error:
            raise self._explain(error, "list", prefix) from error

    def _entry(self, key: str, entry: "os.DirEntry[str]") -> LogObject | None:
        try:
            return _from_stat(key, entry.stat(follow_symlinks=False))
        except FileNotFoundError:  # deleted while we listed
            return None
        except OSError as error:
            raise self._explain(error, "list", key) from error

    def head(self, key: str) -> LogObject | None:
        path = self._path(key)
        try:
            found = os.lstat(path) if path is not None else None
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._explain(error, "get", key) from error
        return _from_stat(key, found) if found is not None and stat.S_ISREG(found.st_mode) else None

    def get(self, obj: LogObject) -> bytes:
        path = self._path(obj.key)
        if path is None:
            raise self._changed(obj.key)
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                before = os.fstat(file.fileno())
                content = file.read()
                after = os.fstat(file.fileno())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise self._changed(obj.key) from error
        except OSError as error:
            raise self._explain(error, "get", obj.key) from error
        if not (_token(before) == _token(after) == obj.etag and len(content) == obj.size):
            raise self._changed(obj.key)
        return content

    def put(self, key: str, content: bytes) -> None:
        path = self._path(key)
        if path is None or key.endswith("/"):
            raise BucketError(f"{self.url}: {key!r} cannot be a file's name")
        try:
            write_bytes(path, content)
        except OSError as error:
            raise self._explain(error, "put", key) from error

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            if path is not None:
                path.unlink(missing_ok=True)
        except NotADirectoryError:
            pass
        except OSError as error:
            raise self._explain(error, "delete", key) from error

    def console_url(self, prefix: str) -> str | None:
        return None  # browsers open no file:// link of a page that came over HTTP

    def _path(self, key: str) -> Path | None:
        """The path of a key; None where a file cannot have such a key, or where it would lead out of the folder."""
        parts = key.removesuffix("/").split("/") if key else []
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            return None
        path = self._root.joinpath(*parts)
        return path if path.parent == self._root or path.parent.resolve() == path.parent else None

    def _changed(self, key: str) -> ObjectChanged:
        return ObjectChanged(f"{self.url}: {key!r} was overwritten or deleted since it was listed; list again")

    def _explain(self, error: OSError, doing: str, key: str) -> BucketError:
        if isinstance(error, PermissionError):
            return BucketError(f"{self.url}: cannot {doing} {key!r}: access denied; check the file permissions")
        return BucketError(f"{self.url}: cannot {doing} {key!r}: {error.strerror or type(error).__name__}")


def _token(found: os.stat_result) -> str:
    return f"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def _from_stat(key: str, found: os.stat_result) -> LogObject:
    return LogObject(key, _token(found), found.st_size, datetime.fromtimestamp(int(found.st_mtime), UTC))
