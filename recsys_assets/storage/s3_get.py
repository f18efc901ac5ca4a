"""GET of S3 objects that are known from a listing, over connections that are kept.

A GET of 20 KB takes boto3 1.1 ms of CPU and obstore (Rust) in a bare thread pool 0.14. All that `bucket.fetch` does is
0.12 over this one, and was 0.21 over obstore (medians of 5,000 on an idle machine). That is because only one thing is
done, in the calling thread: the whole of a known version, signed, over HTTP/1.1. Any answer but the expected one is an
error, and a general client has to find out what to make of it.

The signature is AWS Signature Version 4 in a header:
https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
"""

import hashlib
import hmac
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import quote, urlsplit

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 60  # without a byte, as boto3 has it
_HEAD = 1 << 14  # bytes of the answer's status and headers, at most
_NO_BODY = hashlib.sha256(b"").hexdigest()

Credentials = Callable[[], tuple[str, str, str | None]]
"""Gives access key, secret key and session token as they are now. Called for each request."""


class VersionGone(Exception):
    """The object is not there any more with the ETag that was asked for."""


class UnexpectedAnswer(OSError):
    """The service answered with something else than the object.

    Attributes:
        status: the HTTP status, 0 where it is none.
    """

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class Getter:
    """The objects of one bucket. May be used by several threads: each takes a connection of its own, or opens one."""

    def __init__(self, endpoint: str, bucket: str, region: str, credentials: Credentials, ca_file: str | None) -> None:
        """Args: endpoint: the service's URL. ca_file: the certificates to trust; None for the system's."""
        parts = urlsplit(endpoint)
        is_tls = parts.scheme == "https"
        self._address = parts.hostname or "", parts.port or (443 if is_tls else 80)
        self._host = parts.netloc
        self._root = f"{parts.path.rstrip('/')}/{bucket}/"
        self._region = region
        self._credentials = credentials
        self._tls = ssl.create_default_context(cafile=ca_file) if is_tls else None
        self._idle: deque[socket.socket] = deque()
        self._signing_key: tuple[tuple[str, str], bytes] = ("", ""), b""

    def get(self, key: str, etag: str, size: int) -> tuple[bytes, str]:
        """The object's bytes and the ETag they came with.

        Args:
            etag: as listed; "" asks for whatever version there is.
            size: as listed, bytes.

        Raises:
            VersionGone: it has another ETag, and the service said so.
            UnexpectedAnswer: any other answer, also one of another length.
            OSError: the connection failed.
            ValueError: the key or the ETag cannot be sent.
        """
        request = self.request(key, etag)
        while True:
            try:
                connection, is_kept = self._idle.pop(), True
            except IndexError:
                connection, is_kept = self._connect(), False
            try:
                content, found, stays = _exchange(connection, request, size)
            except _NoAnswer:
                connection.close()
                if not is_kept:
                    raise
                continue  # the service had closed it meanwhile, as it may at any time
            except BaseException:
                connection.close()
                raise
            if stays:
                self._idle.append(connection)
            else:
                connection.close()
            return content, found

    def request(self, key: str, etag: str) -> bytes:
        """What is sent to ask for an object."""
        if not (etag.isascii() and etag.isprintable()):
            raise ValueError("an ETag that cannot stand in a header")
        access_key, secret_key, token = self._credentials()
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        path = quote(self._root + key, safe="/-_.~")
        headers = f"host:{self._host}\nx-amz-content-sha256:{_NO_BODY}\nx-amz-date:{now}\n"
        names = "host;x-amz-content-sha256;x-amz-date"
        if token:
            headers += f"x-amz-security-token:{token}\n"
            names += ";x-amz-security-token"
        canonical = f"GET\n{path}\n\n{headers}\n{names}\n{_NO_BODY}"
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = _hmac(self._key_of(secret_key, now[:8]), to_sign).hex()
        headers += (
            f"authorization:AWS4-HMAC-SHA256 Credential={access_key}/{scope}, SignedHeaders={names}, "
            f"Signature={signature}\n"
        )
        headers += f"if-match:{etag}\n" if etag else ""
        return f"GET {path} HTTP/1.1\n{headers}\n".replace("\n", "\r\n").encode("ascii")

    def _key_of(self, secret_key: str, day: str) -> bytes:
        known, key = self._signing_key
        if known != (secret_key, day):
            key = f"AWS4{secret_key}".encode()
            for part in (day, self._region, "s3", "aws4_request"):
                key = _hmac(key, part)
            self._signing_key = (secret_key, day), key
        return key

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, _CONNECT_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_hostname=self._address[0])
        connection.settimeout(_ANSWER_SECONDS)
        return connection

    def __del__(self) -> None:
        for connection in getattr(self, "_idle", ()):
            connection.close()


class _NoAnswer(UnexpectedAnswer):
    """Not one byte came."""


def _exchange(connection: socket.socket, request: bytes, size: int) -> tuple[bytes, str, bool]:
    """The body and its ETag, and whether the connection can be used again."""
    buffer = bytearray(_HEAD + size)
    view = memoryview(buffer)
    try:
        connection.sendall(request)
        got = connection.recv_into(view)
    except TimeoutError:
        raise
    except OSError as error:
        raise _NoAnswer(type(error).__name__) from error
    if not got:
        raise _NoAnswer("closed")
    while (end := buffer.find(b"\r\n\r\n", 0, got)) < 0:
        got += _more(connection, view[got:])
    first, *lines = bytes(view[:end]).decode("latin-1").split("\r\n")
    protocol, _, status = first.partition(" ")
    code = int(status[:3]) if status[:3].isdecimal() else 0
    if code == 412:
        raise VersionGone
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    if protocol != "HTTP/1.1" or code != 200 or length != str(size) or "transfer-encoding" in headers:
        raise UnexpectedAnswer(f"{protocol[:8]} {code}, {length} bytes", code)
    start, end = end + 4, end + 4 + size
    while got < end:
        got += _more(connection, view[got:end])
    if got > end:
        raise UnexpectedAnswer("more bytes than announced")
    return bytes(view[start:end]), headers.get("etag", ""), headers.get("connection", "").lower() != "close"


def _more(connection: socket.socket, place: memoryview) -> int:
    got = connection.recv_into(place) if place else 0
    if not got:
        raise UnexpectedAnswer("cut off")
    return got


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
