"""A corpus of mutated records and files, by a seed: each file with what a person would say is in it.

Of a `File` without damage every record is known, so what becomes of each is decided exactly. A damaged one has bytes
changed in some of its records: what happens to those depends on where the cut is made, but the others must stay.
"""

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa

DAY = "2025-12-01"
NOON = 1_764_590_400_000  # of DAY, UTC
MAX_BYTES = 1 << 20  # of an object's text
BROKEN = None  # stands for what cannot be read: one rejection


@dataclass
class File:
    """An object of the bucket.

    Attributes:
        content: its bytes.
        pieces: the texts of its records, in order. BROKEN is one malformed_json.
        too_large: it is one rejection for its size; no pieces.
        damaged: bytes of some records or between them were changed; `pieces` are those of which no byte was.
        partly: a compressed stream is cut off: of `pieces` the first ones come out, as many as may be, then BROKEN.
        modified: LastModified.
    """

    content: bytes
    pieces: list[bytes | None]
    too_large: bool = False
    damaged: bool = False
    partly: bool = False
    modified: datetime = field(default=datetime(2025, 12, 1, 23, tzinfo=UTC))

    @property
    def limit_ms(self) -> int:
        """Moments from here on are too late: the day of LastModified and two more are over."""
        return int((datetime.combine(self.modified.date(), datetime.min.time(), UTC) + timedelta(3)).timestamp()) * 1000


# -------------------------------------------------------------------------------------------------------------- records

_SHARED = [
    "null", "true", "false", "0", "-0", "-0.0", "1", "31", "31.0", "31.5", "-7", "1e3", "1E+3", "1e-3", "2.5e1", "1e30",
    "9007199254740991", "9007199254740991.0", "9007199254740992.0", "123456789012345678901234567890", "1" * 256,
    "1" * 257, "9" * 1000, "-" + "9" * 400, "1e400", "-1e400", "1e-400", "1e99999", "18446744073709551615",
    "18446744073709551616", "9223372036854775807", "-9223372036854775808", "-9223372036854775809",
    "9223372036854775808", "0.1", "12.50", "12345678901234567.5", "4503599627370497.5", "31.00000000000000000001",
    "NaN", "-NaN", "nan", "Infinity", "-Infinity", "inf", "INF",
    '""', '" "', '"\\t\\n\\r\\u000b\\u000c "', '"\\u00a0"', '"\u00a0x"', '"\ufeffx"', '"\u2028"', '"31"', '" 31 "',
    '"31\\n"', '"31.0"', '"-0"', '"+5"', '"007"', '"1e3"', '"0x1F"', '"1_000"', '"12,50"', '"12.50"', '"-1"', '"1e400"',
    '"1e-400"', '".5"', '"5."', '"."', '"e5"', '"NaN"', '"nan"', '"inf"', '"Infinity"', '"-Infinity"', '"-0.0"',
    '"null"', '"true"', '"undefined"', '"{}"', '"[]"', '"\u0661\u0662"', '"\uff11\uff12"',
    '"\u00e9"', '"\\u00e9"', '"\\u00E9"', '"e\u0301"', '"\U0001f600"', '"\\ud83d\\ude00"', '"\\uD83D\\uDE00"',
    '"\\ud800"', '"\\udc00"', '"\\ude00\\ud83d"', '"\\ud83dx"', '"\\ud83d\\u0041"', '"\\uffff"', '"\ufffd"',
    '"\\u0000"',
    '"a\\u0000b"', '"a\\"b"', '"a\\\\"', '"\\\\\\""', '"\\/"', '"\\b\\f"', '"}{"', '"},{"', '"]["', '"],["',
    '"[{\\"a\\":"',
    '"\\"},{\\""', '"\\u007f"', '"\x7f"', '"\x85"', '"\u200b"', "\"it's\"", '"%s%d{}"', '"\\\\u0041"',
    "{}", "[]", "[1]", '[""]', '{"a": 1}', '{"a": [{"b": "}"}, "]"]}', "[null]", '{"item_id": 5}',
    '"' + "x" * 256 + '"', '"' + "x" * 257 + '"', '" ' + "\u00e9" * 256 + ' "', '"' + "\U0001f600" * 257 + '"',
    '"' + "\\u00e9" * 256 + '"', '"' + " " * 300 + 'x"', '"' + "y" * 5000 + '"',
    "[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "[" * 900 + "1" + "]" * 900,
]  # fmt: skip
_BROKEN_VALUES = [  # quotes and brackets match, yet no JSON: the record is lost, and nobody else
    "tru", "nul", "True", "None", "undefined", "01", "+1", ".5", "1.", "1e", "0x10", "1_000", "--1", "-", "1 2", "'x'",
    "x", '"\\x41"', '"\\u12"', '"\\u12g4"', '"a\tb"', '"\x01"', '"\x1f"', '"\x00"', "[1,,2]", "[,]", "{,}",
    '{"a"}', '{"a":}', "{1: 2}", "[1 2]", "1 /* c */", "nanx", "infin", "\u221e", '{"a": 1 "b": 2}', "NaN5", "1e5x",
]  # fmt: skip
_BAD_BYTES = [b'"\xff"', b'"\xc3"', b'"a\xe2\x82"', b'"\xed\xa0\x80"', b'"\xc0\xaf"', b'"\xf5\x80\x80\x80"', b'"\x80x"']
_MOMENTS: list[Callable[[random.Random], str]] = [
    lambda r: str(NOON + r.randrange(-(10**6), 10**6)),
    lambda r: str(NOON + r.randrange(-5 * 86_400_000, 5 * 86_400_000)),
    lambda r: str(r.choice([1_764_547_200_000, 1_764_633_600_000, 946_684_800_000]) + r.randrange(-1, 2)),
    lambda r: f'"{NOON + r.randrange(1000)}"',
    lambda r: f'" {NOON + r.randrange(1000)}\\n"',
    lambda r: f"{NOON + r.randrange(1000)}.0",
    lambda r: f"{NOON + r.randrange(1000)}.5",
    lambda r: f'"{NOON}.0"',
    lambda r: f"{NOON / 1e12}e12",
    lambda r: f'"000{NOON}"',
    lambda r: f'"-{NOON}"',
    lambda r: str(NOON // 1000 + r.randrange(1000)),
    lambda r: f"{NOON // 1000}.{r.randrange(1000)}",
    lambda r: f'"{NOON // 1000}"',
    lambda r: str(NOON * 1000 + r.randrange(10**6)),
    lambda r: str(NOON * 10**6 + r.randrange(10**9)),
    lambda r: f"{NOON * 1000}.0",
    lambda r: str(NOON * r.choice([10, 100, 10**4, 10**5, 10**7])),
    lambda r: str(r.choice([1, -1]) * r.randrange(10 ** r.randrange(1, 25))),
    lambda r: json.dumps((datetime(2025, 12, 1, tzinfo=UTC) + timedelta(seconds=r.randrange(86400))).isoformat()),
    lambda r: r.choice(['"2025-12-01"', '"01.12.2025"', '"today"', '"1764590400000ms"', '"1,764,590,400,000"']),
]
_ACTIONS = [
    '"view"', '"View"', '"vIEW"', '" VIEW"', '"VIEW\\t"', '"\\u0056IEW"', '"VIEW\\u0000"', '"VIEWS"', '"V IEW"',
    '"add_cart"', '"ADD-CART"', '"add cart"', '"addCart"', '"Purchase"', '"PURCHA\u017fE"', '"\uff36IEW"', '"BUY"',
    '"CLICK,VIEW"', '["VIEW"]', '{"name": "VIEW"}', '"CLI\u0441K"', '"\u00a0VIEW"', '"\\"VIEW\\""', "VIEW",
]  # fmt: skip


class Mutator:
    """An endless supply of files."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self._users = 0

    # ---- one record

    def good(self) -> list[tuple[str, bytes]]:
        """The fields of a sound event of a user of its own: nobody's duplicate."""
        rng = self.rng
        self._users += 1
        fields = [
            ("timestamp", str(NOON + rng.randrange(1000))),
            ("item_id", rng.choice([f'"i{rng.randrange(50)}"', str(rng.randrange(50))])),
            ("user_id", f'"user {self._users}"'),
            ("action", f'"{rng.choice(["VIEW", "CLICK", "ADD_CART", "PURCHASE"])}"'),
        ]
        if rng.random() < 0.5:
            fields.append(("category_id", rng.choice(["7", '"shoes"', "null", '""'])))
        if rng.random() < 0.5:
            fields.append(("price", rng.choice(["20000", "12.5", '"12.50"', "null", "0"])))
        return [(name, text.encode()) for name, text in fields]

    def value(self, name: str) -> bytes:
        """Something odd for a field."""
        rng = self.rng
        own: list[Callable[[], str]] = {
            "timestamp": [lambda: rng.choice(_MOMENTS)(rng)],
            "action": [lambda: rng.choice(_ACTIONS)],
            "price": [lambda: repr(rng.uniform(0, 100)), lambda: f'" {rng.randrange(10**6) / 100} "', lambda: "-0.01"],
        }.get(name, [lambda: str(rng.randrange(10 ** rng.randrange(1, 40)))])
        drawn = rng.random()
        if drawn < 0.02:
            return rng.choice(_BAD_BYTES)
        if drawn < 0.06:
            return rng.choice(_BROKEN_VALUES).encode()
        if drawn < 0.5:
            return rng.choice(own)().encode()
        if drawn < 0.54:
            return json.dumps("".join(chr(rng.randrange(1, 0xD800)) for _ in range(rng.randrange(20)))).encode()
        return rng.choice(_SHARED).encode()

    def fields(self) -> list[tuple[str, bytes]]:
        rng = self.rng
        fields = self.good()
        if rng.random() < 0.6:  # few ids and moments: duplicates
            fields[0] = ("timestamp", str(NOON + rng.randrange(3)).encode())
            fields[2] = ("user_id", rng.choice(['"u1"', '"u2"', "1", '"1"', "1.0", '" u1"']).encode())
        for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 3])):
            name = rng.choice(["timestamp", "item_id", "user_id", "action", "category_id", "price", "unknown"])
            at = next((at for at, (given, _) in enumerate(fields) if given == name), None)
            kind = rng.random()
            if kind < 0.12 and at is not None:
                del fields[at]
            elif kind < 0.17 and at is not None:  # another name, or the same one written differently
                spelled = rng.choice(
                    [name.upper(), name.title(), f" {name}", f"{name} ", f"\\u{ord(name[0]):04x}{name[1:]}"]
                )
                fields[at] = (spelled, fields[at][1])
            elif kind < 0.25:
                fields.insert(rng.randrange(len(fields) + 1), (name, self.value(name)))  # perhaps twice
            elif at is not None:
                fields[at] = (name, self.value(name))
            else:
                fields.append((name, self.value(name)))
        if rng.random() < 0.2:
            rng.shuffle(fields)
        return fields

    def text(self, fields: list[tuple[str, bytes]], indent: bool = False) -> bytes:
        rng = self.rng
        colon = rng.choice([b":", b": ", b" :\t"])
        comma = b",\n  " if indent else rng.choice([b",", b", ", b" ,"])
        trailing = b"," if fields and rng.random() < 0.01 else b""
        body = comma.join(b'"' + name.encode() + b'"' + colon + text for name, text in fields) + trailing
        return b"{\n  " + body + b"\n}" if indent else b"{" + body + b"}"

    def element(self, indent: bool = False, objects_only: bool = False) -> bytes:
        """The text of a record, mostly an object."""
        rng = self.rng
        if not objects_only and rng.random() < 0.04:
            return rng.choice(
                [b"5", b'"x"', b"null", b"true", b"[1, 2]", b"[]", b"-1.5e3", b'"}{"', b"[[{}]]", b"nope", b"NaN",
                 b'""',
                 b'[{"timestamp": 1}]', b'"\xff"', b"01", b"-", b'"\\ud800"']
            )  # fmt: skip
        if rng.random() < 0.01:
            return rng.choice(
                [b"{}", b"{ }", b"{,}", b'{"a"}', b"{'a': 1}", b"{a: 1}", b'{"a": 1 "b": 2}', b'{"": ""}']
            )
        return self.text(self.fields(), indent)

    # ---- files of which every record is known

    def file(self) -> File:
        rng = self.rng
        made = rng.choices(
            [self.sound, self.cut, self.damaged, self.compressed_cut, self.odd], weights=[50, 12, 30, 3, 5]
        )[0]()
        made.modified += timedelta(hours=rng.choice([0, 0, 0, -30, 1, 47]))
        return made

    def sound(self, size: int | None = None) -> File:
        text, pieces = self.form(self.rng.randrange(60) if size is None else size)
        return File(self.dressed(text), pieces)

    def form(self, size: int, objects_only: bool = False, kind: str | None = None) -> tuple[bytes, list[bytes | None]]:
        """A text of records in one of the ways in which files hold them, and the records."""
        rng = self.rng
        kind = kind or rng.choice(
            ["array", "array", "lines", "lines", "line arrays", "sequence", "pretty", "indented", "mixed"]
        )
        comma = rng.choice([b",", b", ", b",\n", b",\r\n", b" ,\t"])
        if kind == "lines":
            elements = [self.element(objects_only=objects_only) for _ in range(size)]
            if not elements or not elements[0].startswith(b"{"):  # else it is no file of lines
                elements.insert(0, self.text(self.good()))
            end = rng.choice([b"\n", b"\n", b"\r\n", b",\n", b"\n\n", b" \n\r\n"])
            return end.join(elements) + rng.choice([b"", end]), list(elements)
        if kind == "sequence":
            elements = [self.element(objects_only=True) for _ in range(size)]
            return rng.choice([b"", b" ", b",", b", "]).join(elements), list(elements)
        if kind in ("indented", "mixed"):
            elements = [self.text(self.fields(), kind == "indented" or rng.random() < 0.5) for _ in range(size)]
            return b"\n".join(elements) + b"\n", list(elements)
        elements = [self.element(kind == "pretty", objects_only) for _ in range(size)]
        if kind == "line arrays":  # a batch a line
            parts = [elements[at : at + 5] for at in range(0, size, 5)]
            return b"\n".join(b"[" + comma.join(part) + b"]" for part in parts), list(elements)
        body = b""
        for at, each in enumerate(elements):
            between = comma
            if at and rng.random() < 0.005:
                both_objects = each.startswith(b"{") and elements[at - 1].startswith(b"{")
                between = rng.choice([b",,", b" , ,", b"", b"\n"]) if both_objects else b",,"
            body += (between if at else b"") + each
        space = rng.choice([b"", b"", b" ", b"\n"])
        trailing = b"," if elements and rng.random() < 0.05 else b""
        return space + b"[" + space + body + trailing + space + b"]" + space, list(elements)

    def dressed(self, text: bytes) -> bytes:
        """The same text in another character set, with a mark, compressed."""
        rng = self.rng
        drawn = rng.random()
        if drawn < 0.1:
            text = b"\xef\xbb\xbf" + text
        elif drawn < 0.25:
            plain = text.decode() if _is_utf8(text) else ""
            if plain.startswith(("{", "[")) and plain[1:2].isascii() and len(plain) > 3:
                text = rng.choice(
                    [plain.encode("utf-16"), b"\xfe\xff" + plain.encode("utf-16-be"), plain.encode("utf-16-le"),
                     plain.encode("utf-16-be")]
                )  # fmt: skip
        return self.packed(text) if rng.random() < 0.3 else text

    def packed(self, text: bytes) -> bytes:
        rng = self.rng
        at = rng.randrange(len(text) + 1) if rng.random() < 0.3 else 0
        pack = rng.choice([_gzip, _zstd])
        packed = b"".join(pack(part) for part in ([text[:at], text[at:]] if at else [text]))
        return packed + (b"\0" * rng.randrange(1, 600) if pack is _gzip and rng.random() < 0.1 else b"")

    def cut(self) -> File:
        """Records whose end is missing."""
        rng = self.rng
        kind = rng.choice(["array", "pretty", "lines", "sequence", "indented"])
        text, pieces = self.form(rng.randrange(1, 60), objects_only=True, kind=kind)
        half = b""
        if rng.random() < 0.2 and _is_utf8(text) and text[:1] in b"[{":
            wide = rng.choice(["utf-16", "utf-16-le"])
            content = text.decode().encode(wide)
            content = content[: rng.randrange(6, len(content) + 1)]
            half = content[len(content) // 2 * 2 :]
            text = content[: len(content) // 2 * 2].decode(wide, "ignore").encode()
        else:
            text = text[: rng.randrange(len(text) + 1)]
            content = self.packed(text) if rng.random() < 0.3 else text
        in_array = text.lstrip().startswith(b"[")
        whole: list[bytes | None] = []
        at = text.find(b"[") + 1 if in_array else 0
        for piece in pieces:
            start = text.find(piece or b"", at)
            if start < 0:
                break
            whole.append(piece)
            at = start + len(piece or b"")
        rest = text[at:].strip(b" \t\r\n,")
        if half or rest != (b"]" if in_array else b""):
            whole.append(BROKEN)
        return File(content, whole)

    def compressed_cut(self) -> File:
        """A compressed stream whose end is missing."""
        rng = self.rng
        text, pieces = self.form(rng.randrange(1, 120), objects_only=True, kind=rng.choice(["lines", "sequence"]))
        if rng.random() < 0.5:
            packed = _gzip(text)
            packed = packed[: rng.randrange(2, len(packed))]
        else:
            packed = _zstd(text)
            packed = packed[: rng.randrange(4, len(packed))]
        return File(packed, pieces, partly=True)

    def odd(self) -> File:
        """Whole files that hold nothing, or nothing of use."""
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            empty = rng.choice(
                [b"", b"[]", b" [ ] ", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf[]", b",\n,", b"[]\n[]", b"[,]"]
            )
            return File(rng.choice(_DRESSES)(empty), [])
        if kind == 1:
            page = [
                b"<html><body>503 Slow Down</body></html>",
                b"Not Found",
                b"PK\x03\x04\0\0",
                b"\0" * 100,
                b"PAR1\x15\x04",
            ]
            return File(rng.choice(_DRESSES)(rng.choice(page)), [BROKEN])
        if kind == 2:
            return File(_gzip(_gzip(self.text(self.good()))), [BROKEN])
        if kind == 3:
            inner = self.text(self.good())
            nested = rng.choice([b"[%s]", b'{"events": [%s]}']) % inner
            return File(rng.choice([b"[%s]", b"%s\n" if nested.startswith(b"{") else b"[%s]\n"]) % nested, [nested])
        if kind == 4:
            text, _ = self.form(rng.randrange(1, 20), kind="lines")
            large = text + b" " * (MAX_BYTES + 1 - len(text))
            return File(rng.choice(_DRESSES)(large), [], too_large=True)
        text, _ = self.form(rng.randrange(1, 20), kind="lines")
        while True:  # a changed byte that the checksum finds
            packed = bytearray(_gzip(text))
            packed[rng.randrange(10, len(packed))] ^= 1 << rng.randrange(8)
            try:
                gzip.decompress(bytes(packed))
            except (zlib.error, gzip.BadGzipFile):
                return File(bytes(packed), [BROKEN])
            except EOFError:  # cannot be told from one that is cut off
                continue

    # ---- damaged files

    def damaged(self) -> File:
        """Bytes are changed in some records or around them; all others are sound."""
        rng = self.rng
        elements = [self.text(self.good()) for _ in range(rng.randrange(1, 30))]
        sound = list(elements)
        for at in rng.sample(range(len(elements)), min(len(elements), rng.choice([0, 1, 1, 1, 2, 3]))):
            elements[at] = self.spoiled(elements[at])
        between = rng.choice([b",", b",\n", b", ", b"\n", b"\r\n", b""])
        start, end = (b"[", b"]") if between.startswith(b",") else (b"", b"")
        if rng.random() < 0.2:
            start = rng.choice([b"", start]) + self.garbage()
        if rng.random() < 0.2:
            end = self.garbage() + rng.choice([b"", end])
        if rng.random() < 0.1:  # the file's first bytes are missing
            start, elements[0] = b"", elements[0][rng.randrange(len(elements[0]) + 1) :]
        if rng.random() < 0.1:
            end, elements[-1] = b"", elements[-1][: rng.randrange(len(elements[-1]) + 1)]
        if rng.random() < 0.1:
            between = between + self.garbage() + between
        before = [start, *(each + between for each in elements)]
        untouched: list[bytes | None] = [
            new
            for old, new, behind in zip(sound, elements, before, strict=False)
            if old == new and not behind.rstrip().endswith(b":")  # what follows a colon is a field's value
        ]
        return File(start + between.join(elements) + end, untouched, damaged=True)

    def garbage(self) -> bytes:
        """No '[' in it: what stands between brackets is one element, not records."""
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 12)).replace(b"[", b"]")
        if kind == 1:
            pages = [b"<html>", b"\0\0\0", b"NaN", b"// x\n", b"HTTP/1.1 200 OK\r\n\r\n", b"---", b"\xef\xbb\xbf"]
            return rng.choice(pages)
        return "".join(rng.choice('{}]",:\\\n 0a') for _ in range(rng.randrange(1, 5))).encode()

    def spoiled(self, text: bytes) -> bytes:
        """The record with some bytes changed; may still be one."""
        rng = self.rng
        at, more = rng.randrange(len(text)), rng.randrange(1, 20)
        kind = rng.randrange(7)
        if kind == 0:
            return text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]
        if kind == 1:
            at = rng.choice([at for at, byte in enumerate(text) if byte in b'{}",:'])
            return text[:at] + rng.choice([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\n", b"\\"]) + text[at + 1 :]
        if kind == 2:
            at = rng.choice([at for at, byte in enumerate(text) if byte in b'{}"'])
            return text[:at] + text[at + 1 :]
        if kind == 3:
            return text[:at] + text[at + more :]
        if kind == 4:
            return text[:at] + self.garbage() + text[at:]
        if kind == 5:
            return text[:at] + text[at : at + more] + text[at:]
        return self.garbage()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _gzip(text: bytes) -> bytes:
    return gzip.compress(text, 1, mtime=0)


def _zstd(text: bytes) -> bytes:
    packed: bytes = pa.compress(text, codec="zstd", asbytes=True)
    return packed


_DRESSES: list[Callable[[bytes], bytes]] = [bytes, _gzip, _zstd]
