"""The small S3 client against a server that answers what a test tells it to, byte by byte."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from recsys_assets.settings import BucketSettings
from recsys_assets.storage.bucket import LogObject, S3Bucket, open_bucket
from recsys_assets.storage.s3_get import Getter, UnexpectedAnswer, VersionGone

ETAG = '"v1"'
SOUND = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "v1"\r\n\r\nhello'


class Server:
    """Answers each request by the next of `answers`, and closes the connection after one that is told to."""

    def __init__(self) -> None:
        self.answers: list[bytes | None] = []
        self.requests: list[str] = []
        self.connections = 0
        self.close_after: Callable[[bytes | None], bool] = lambda answer: answer is None
        self.tls: ssl.SSLContext | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(connection, server_side=True)
            with connection:
                pending = b""
                while True:
                    while b"\r\n\r\n" not in pending:
                        part = connection.recv(65536)
                        if not part:
                            return
                        pending += part
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    self.requests.append(head.decode())
                    answer = self.answers.pop(0) if self.answers else SOUND
                    if answer is not None:
                        connection.sendall(answer)
                    if self.close_after(answer):
                        return
        except OSError:
            return

    def getter(self, token: str | None = None) -> Getter:
        return Getter(f"http://127.0.0.1:{self.port}", "logs", "us-east-1", lambda: ("me", "secret", token), None)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.mark.parametrize("token", [None, "of the session"])
@pytest.mark.parametrize("key", ["logs/a.json", "a b/ä+%41?&=#~.json", "/a//../b/", "'; x"])
def test_the_signature_is_that_of_botocore(key: str, token: str | None) -> None:
    getter = Getter("http://127.0.0.1:9000", "logs", "eu-west-1", lambda: ("me", "secret", token), None)
    start, *lines = getter.request(key, ETAG).decode().removesuffix("\r\n\r\n").split("\r\n")
    ours = dict(line.split(":", 1) for line in lines)
    assert ours["if-match"] == ETAG

    method, path, protocol = start.split(" ")
    assert (method, protocol) == ("GET", "HTTP/1.1")
    request = AWSRequest("GET", f"http://127.0.0.1:9000{path}")
    signer = S3SigV4Auth(Credentials("me", "secret", token), "s3", "eu-west-1")
    request.context["timestamp"] = ours["x-amz-date"]
    signer._modify_request_before_signing(request)
    for name in ("X-Amz-Content-SHA256", "X-Amz-Date"):
        del request.headers[name]
        request.headers[name] = ours[name.lower()]
    canonical = signer.canonical_request(request)
    signature = signer.signature(signer.string_to_sign(request, canonical), request)
    assert ours["authorization"].endswith(f"Signature={signature}")
    assert ours.get("x-amz-security-token") == token


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_costs_nothing(server: Server) -> None:
    getter = server.getter()
    assert [getter.get("a", ETAG, 5) for _ in range(3)] == [(b"hello", ETAG)] * 3
    assert server.connections == 1
    server.answers = [None]  # read, and closed without a word
    assert getter.get("a", ETAG, 5) == (b"hello", ETAG)
    assert server.connections == 2
    server.answers = [SOUND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")]
    assert getter.get("a", ETAG, 5) == getter.get("a", ETAG, 5)
    assert server.connections == 3


def test_threads_do_not_mix_their_answers(server: Server) -> None:
    getter = server.getter()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: getter.get("a", ETAG, 5), range(500))) == {(b"hello", ETAG)}
    assert len(server.requests) == 500
    assert server.connections <= 16


def test_an_answer_in_pieces_and_a_large_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    large = bytes(range(256)) * 20_000
    server.answers = [b"HTTP/1.1 200 OK\r\ncontent-length:%d\r\n\r\n%s" % (len(large), large)]
    assert server.getter().get("a", "", len(large)) == (large, "")
    assert "if-match" not in server.requests[0]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\n\r\n", 503),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404),
        (SOUND.replace(b"200 OK", b"206 Partial Content"), 206),
        (SOUND.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
        (SOUND.replace(b": 5", b": 4"), 200),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200),
        (b"HTTP/1.1 200 OK\r\nETag: \"v1\"\r\n\r\nhello", 200),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 50_000, 0),
        (SOUND + b"!", 0),
        (SOUND[:-1], 0),
        (SOUND[:20], 0),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 0),
        (b"\r\n\r\n", 0),
        (None, 0),
    ],
)  # fmt: skip
def test_any_other_answer_is_an_error_and_its_connection_is_given_up(
    server: Server, answer: bytes | None, status: int
) -> None:
    getter = server.getter()
    server.close_after = lambda sent: sent != SOUND
    server.answers = [answer]
    with pytest.raises(UnexpectedAnswer) as caught:
        getter.get("a", ETAG, 5)
    assert caught.value.status == status
    assert getter.get("a", ETAG, 5) == (b"hello", ETAG)
    assert server.connections == 2


def test_another_version(server: Server) -> None:
    server.answers = [b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n"]
    with pytest.raises(VersionGone):
        server.getter().get("a", ETAG, 5)
    assert f"\r\nif-match:{ETAG}" in server.requests[0]


@pytest.mark.parametrize("etag", ['"a"\r\nx-amz-acl:public', '"ä"'])
def test_an_etag_that_would_be_another_header_is_not_sent(server: Server, etag: str) -> None:
    with pytest.raises(ValueError, match="ETag"):
        server.getter().get("a", etag, 5)
    assert not server.requests


def _bucket(endpoint: str) -> S3Bucket:
    made = open_bucket(BucketSettings(url="s3://logs", endpoint_url=endpoint), Path("/nowhere"))
    assert isinstance(made, S3Bucket)
    return made


def _object() -> LogObject:
    return LogObject("a.json", ETAG, 5, datetime(2025, 12, 1, tzinfo=UTC))


def test_boto3_fetches_behind_a_proxy(server: Server, aws_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.port}")
    assert _bucket("http://s3.example").get(_object()) == b"hello"
    assert server.requests[0].startswith("GET http://s3.example/logs/a.json ")


def test_tls_trusts_what_boto3_trusts(
    server: Server, aws_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(certificate, key)
    url = f"https://127.0.0.1:{server.port}"
    assert _bucket(url)._get_fast(_object()) is None, "nobody vouches for it"
    assert not server.requests
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    bucket = _bucket(url)
    assert bucket._get_fast(_object()) == bucket._get_fast(_object()) == b"hello"
    assert server.connections == 2
