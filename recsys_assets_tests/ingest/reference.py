"""A slow, separate reading of the table in validate's docstring: plain Python, a record at a time, none of its code."""

import math
import re
from dataclasses import dataclass
from typing import Any

SPACE = " \t\n\v\f\r"
EARLIEST_MS = 946_684_800_000  # 2000-01-01
LATEST_SECONDS = 4_102_444_800  # 2100-01-01: the moments that another unit is recognised by
ACTIONS = ("VIEW", "CLICK", "ADD_CART", "PURCHASE")

_TOKEN = re.compile(
    r"""[ \t\n\r]*(?:
    (?P<mark>[{}\[\]:,])
    |"(?P<string>(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*)"
    |(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.+-])
        |-?(?i:nan|infinity|inf)(?!\w))
    |(?P<word>true|false|null)\b
    |(?P<end>\Z)
    )""",
    re.VERBOSE | re.ASCII,
)
_ESCAPE = re.compile(r'\\(u[0-9a-fA-F]{4}|["\\/bfnrt])')
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_NUMBER_IN_TEXT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


class Number(str):
    """A JSON number as its text."""


@dataclass(frozen=True)
class Event:
    """A kept record; the first four fields are what makes it a duplicate of another."""

    user_id: str
    item_id: str
    action: str
    ms: int
    category_id: str | None
    price: float | None

    @property
    def identity(self) -> tuple[str, str, str, int]:
        return self.user_id, self.item_id, self.action, self.ms


def _string(raw: str) -> str:
    def plain(match: re.Match[str]) -> str:
        mark = match[1]
        return chr(int(mark[1:], 16)) if mark[0] == "u" and len(mark) == 5 else _ESCAPES.get(mark, mark)

    return _ESCAPE.sub(plain, raw).encode("utf-16-le", "surrogatepass").decode("utf-16-le")  # no lone surrogates


def parse(text: str) -> Any:
    """A JSON value; of a name given twice the first. Numbers stay text; any depth.

    Beyond JSON a comma may trail, and NaN, Infinity and inf stand for numbers.

    Raises:
        ValueError: it is none.
    """
    at = 0
    open_containers: list[Any] = []
    names: list[str | None] = []  # for each open container the name that waits for its value
    result: list[Any] = []
    expect = "value"

    def place(value: Any) -> str:
        if not open_containers:
            result.append(value)
            return "end"
        if isinstance(open_containers[-1], list):
            open_containers[-1].append(value)
        else:
            open_containers[-1].setdefault(names[-1], value)
        return "comma"

    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"no JSON at {at}")
        at, kind, token = match.end(), match.lastgroup, match[match.lastgroup or 0]
        in_list = bool(open_containers) and isinstance(open_containers[-1], list)
        if expect == "end":
            if kind != "end":
                raise ValueError("something behind the value")
            return result[0]
        if kind == "mark" and token in "}]":
            if (
                not open_containers
                or in_list != (token == "]")
                or expect not in ("comma", "value" if in_list else "name")
            ):
                raise ValueError("closed too early")
            value = open_containers.pop()
            names.pop()
            expect = place(value)
        elif expect == "comma" and token == ",":
            expect = "value" if in_list else "name"
        elif expect == "name" and kind == "string":
            names[-1], expect = _string(token), "colon"
        elif expect == "colon" and token == ":" and kind == "mark":
            expect = "value"
        elif expect != "value":
            raise ValueError(f"no {expect} at {at}")
        elif kind == "string":
            expect = place(_string(token))
        elif kind == "number":
            expect = place(Number(token))
        elif kind == "word":
            expect = place({"true": True, "false": False, "null": None}[token])
        elif kind == "mark" and token in "{[":
            open_containers.append({} if token == "{" else [])
            names.append(None)
            expect = "name" if token == "{" else "value"
        else:
            raise ValueError(f"no value at {at}")


def text_of(value: Any) -> str | None:
    """The text of an id or a moment: that of a string, the digits of an integral number; None for anything else."""
    if isinstance(value, Number):
        if re.fullmatch("-?[0-9]+", value):
            return "0" if value == "-0" else str(value)
        number = float(value)
        return str(int(number)) if math.isfinite(number) and number == int(number) and abs(number) < 2**53 else None
    return value.strip(SPACE) if isinstance(value, str) else None


def judge(record: bytes | str, limit_ms: int) -> tuple[str, Event | None]:
    """('kept', the event) or (the reason, None).

    Args:
        record: the text of one element.
        limit_ms: moments from this one on are too late.
    """
    try:
        value = parse(record if isinstance(record, str) else record.decode())
    except ValueError:  # UnicodeDecodeError is one
        return "malformed_json", None
    if not isinstance(value, dict):
        return "not_an_object", None
    try:
        return "kept", _event(value, limit_ms)
    except LookupError as error:
        return str(error.args[0]), None


def _event(value: dict[str, Any], limit_ms: int) -> Event:
    """Raises LookupError with the first defect."""

    def required(name: str) -> Any:
        if value.get(name) is None:
            raise LookupError(f"missing_{name}")
        return value[name]

    def identity(name: str, given: Any) -> str:
        found = text_of(given)
        if found is None:
            raise LookupError(f"wrong_type_{name}")
        if not 1 <= len(found) <= 256:
            raise LookupError(f"out_of_range_{name}")
        return found

    ms = _moment(required("timestamp"), limit_ms)
    item = identity("item_id", required("item_id"))
    user = identity("user_id", required("user_id"))
    action = required("action")
    if not isinstance(action, str) or isinstance(action, Number):
        raise LookupError("wrong_type_action")
    fitting = [name for name in ACTIONS if name.lower() == action.strip(SPACE).lower()]
    if not fitting:
        raise LookupError("unknown_action")
    category = value.get("category_id")
    if isinstance(category, str) and not isinstance(category, Number) and not category.strip(SPACE):
        category = None
    if category is not None:
        category = identity("category_id", category)
    return Event(user, item, fitting[0], ms, category, _price(value.get("price")))


def _moment(given: Any, limit_ms: int) -> int:
    text = text_of(given)
    if text is None:
        raise LookupError("wrong_type_timestamp")
    if not re.fullmatch("-?[0-9]+", text):
        raise LookupError("bad_timestamp")
    digits = text.lstrip("-0")
    ms = int(digits[:30] or "0") * (-1 if text.startswith("-") else 1)
    if EARLIEST_MS <= ms < limit_ms:
        return ms
    # Read as seconds, microseconds or nanoseconds it would be a moment from 2000 to 2100.
    if any(EARLIEST_MS // 1000 * unit <= ms <= LATEST_SECONDS * unit for unit in (1, 10**6, 10**9)):
        raise LookupError("bad_timestamp")
    raise LookupError("out_of_range_timestamp")


def _price(given: Any) -> float | None:
    if isinstance(given, str) and not isinstance(given, Number):
        given = given.strip(SPACE)
        if not given:
            return None
        if not _NUMBER_IN_TEXT.fullmatch(given):
            raise LookupError("wrong_type_price")
    elif given is not None and not isinstance(given, Number):
        raise LookupError("wrong_type_price")
    if given is None:
        return None
    price = float(given)
    if not 0 <= price < math.inf:
        raise LookupError("out_of_range_price")
    return price + 0.0


def events_anywhere(text: str, limit_ms: int) -> set[Event]:
    """Every event that stands anywhere in a text, inside other values too: what may be kept of a damaged file."""
    found = set()
    for match in re.finditer(r"\{", text):
        depth, quoted = 0, False
        for token in re.finditer(r'\\.|["{}]', text[match.start() :]):
            quoted ^= token[0] == '"'
            depth += 0 if quoted else (token[0] == "{") - (token[0] == "}")
            if not depth:
                _, event = judge(text[match.start() :][: token.end()], limit_ms)
                if event is not None:
                    found.add(event)
                break
    return found
