"""A server that answers ListObjectsV2 for a bucket too large to be written into a real server for each benchmark.

Paging, prefix, delimiter, start-after and encoding-type behave as in S3; the objects have keys, ETags, sizes and dates,
but no content. Every other request gets 501.

    python -m benchmarks.listing_server DAYS OBJECTS_PER_DAY LATENCY_MS

prints its port, and serves days DAYS back from yesterday until its standard input ends.
"""

import sys
import threading
import time
from bisect import bisect_left, bisect_right
from datetime import UTC, date, datetime, timedelta
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

PAGE = 1000


def keys_of(days: int, objects_per_day: int, last: date) -> list[str]:
    """Sorted keys `logs/YYYY/MM/DD/events-NNNNN.json` of the days up to `last`."""
    first = last - timedelta(days - 1)
    folders = [f"logs/{first + timedelta(n):%Y/%m/%d}/" for n in range(days)]
    return [f"{folder}events-{number:05}.json" for folder in folders for number in range(objects_per_day)]


class Listing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys: list[str]
    latency: float

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        is_listing = query.get("list-type") == "2" and url.path.count("/") == 1
        body = self._page(query) if is_listing else b""
        time.sleep(self.latency)
        self.send_response(200 if is_listing else 501)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after") or ""
        limit = min(int(query.get("max-keys", PAGE)), PAGE)
        at = max(bisect_left(self.keys, prefix), bisect_right(self.keys, after))
        parts: list[str] = []
        last = ""
        while at < len(self.keys) and self.keys[at].startswith(prefix) and len(parts) < limit:
            key = self.keys[at]
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut < 0:
                parts.append(self._entry(key))
                last = key
                at += 1
            else:
                folder = key[: cut + len(delimiter)]
                parts.append(f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>")
                last = folder + "\U0010ffff"
                at = bisect_right(self.keys, last)
        more = at < len(self.keys) and self.keys[at].startswith(prefix)
        token = f"<NextContinuationToken>{quote(last)}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>logs</Name><Prefix>{quote(prefix)}</Prefix><KeyCount>{len(parts)}</KeyCount><MaxKeys>{limit}</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}"
            "</ListBucketResult>"
        ).encode()

    def _entry(self, key: str) -> str:
        return (
            f"<Contents><Key>{quote(key)}</Key><LastModified>{key[5:15].replace('/', '-')}T23:00:00.000Z</LastModified>"
            f"<ETag>&quot;{md5(key.encode()).hexdigest()}&quot;</ETag><Size>20000</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    days, objects_per_day, latency_ms = map(int, sys.argv[1:4])
    Listing.keys = keys_of(days, objects_per_day, datetime.now(UTC).date() - timedelta(1))
    Listing.latency = latency_ms / 1000
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
