"""Who was erased, without saying who: keyed hashes of user ids, and how an id is recognised in a text.

`HOME/erasure/key` is random and readable by its owner only; `tombstones.json` holds the hashes. Whoever has both can
ask whether a given id was erased, which is what they are for, and cannot read the ids from them. Keep the folder when
the store is built again: it is what keeps an erased user absent.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from recsys_assets.storage import files
from recsys_assets.storage.artifacts import ArtifactError, version_of

_SPACE = " \t\n\v\f\r"
_STRING = re.compile(r'"([^"\\\n]*(?:\\.[^"\\\n]*)*)"')
_BARE = re.compile(r"[^\s\"',:{}\[\]\\]+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_USER_FIELD = re.compile(r"u(?:ser)?[_-]?id|user", re.IGNORECASE)  # user_id, and what others call it
_NUMBERED_USER = re.compile(
    rf'"(?:{_USER_FIELD.pattern})\\?"\s*:\s*\\?"?[ ]*([+-]?[0-9.][0-9.eE+-]*)(?=[\s,}}\]"\\])', re.IGNORECASE
)
_NAMED_USER = re.compile(rf'"(?:{_USER_FIELD.pattern})\\?"\s*:\s*\\?"([^"\\]*)\\?"', re.IGNORECASE)
# Texts of everybody's records: somebody who is called so would take all of them along.
_FORMAT = frozenset(("timestamp", "item_id", "user_id", "action", "category_id", "price", "recsys", "erased"))
_DIGITS = re.compile(r"-?\d+")
_EXACT = 2**53
_REMEMBERED = 1 << 20


class _Digits(str):
    """A JSON number as it was written."""


class Erased:
    """Some erased users. False while nobody was erased.

    Attributes:
        digests: their keyed hashes.
    """

    def __init__(self, key: bytes, digests: Iterable[str], actions: Iterable[str] = ()) -> None:
        self._key = key
        self._common = _FORMAT | {each.casefold() for each in actions}
        self.digests = frozenset(digests)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self.digests)

    def __contains__(self, user: str) -> bool:
        found = self._known.get(user)
        if found is None:
            found = digest_of(self._key, user) in self.digests
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            self._known[user] = found
        return found

    @property
    def version(self) -> str:
        return version_of(digests=sorted(self.digests))

    def may_be_in(self, text: str) -> bool:
        """False only where neither `own` nor `named_in` could find anything in any part of a text. Fast."""
        if any(token in self or _id_of(_Digits(token)) in self for token in set(_BARE.findall(text))):
            return True
        return any(each in self for each in _strings(text))

    def own(self, record: str, words: bool = True) -> bool:
        """Whether a record is an erased user's: a valid one by its user_id at any depth, or by a text in it that is the
        whole id (digits alone, actions and names of our fields are too common: they count as a user_id only); any other
        as `named_in` tells."""
        try:
            found = _parsed(record)
        except (ValueError, RecursionError):
            return self.named_in(record, words)
        return any(each in self and (is_user or not self._is_common(each)) for each, is_user in _ids(found))

    def named_in(self, text: str, words: bool = True) -> bool:
        """Whether a text that is no valid JSON names an erased user: in quotes, behind "user_id", or as a word.

        Args:
            words: False for the start of a record, where a word or text may be another's, cut off.
        """
        if any(each in self and not self._is_common(each) for each in _strings(text)):
            return True
        # Digits at the very end are an id where the record breaks off, but in the start of one may go on.
        if any(_id_of(_Digits(each)) in self for each in _NUMBERED_USER.findall(text + " " if words else text)):
            return True
        if any(trimmed(each) in self for each in _NAMED_USER.findall(text)):
            return True
        return words and any(each in self and not self._is_common(each) for each in set(_BARE.findall(text)))

    def _is_common(self, text: str) -> bool:
        return bool(_DIGITS.fullmatch(text)) or text.casefold() in self._common


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with all its fields, also those that stand in it twice."""


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_Pairs, parse_int=_Digits, parse_float=_Digits)


def _ids(value: Any, is_user: bool = False) -> Iterator[tuple[str, bool]]:
    """What may be an id, and whether it stands where a user's does: as `user_id`, `userId`, `user: {id}`. A text that
    is JSON itself, as an envelope has it, is looked into."""
    if isinstance(value, _Pairs):
        for name, inner in value:
            yield from _ids(name)
            yield from _ids(inner, bool(_USER_FIELD.fullmatch(name)) or (is_user and name == "id"))
    elif isinstance(value, list):
        for inner in value:
            yield from _ids(inner, is_user)
    elif isinstance(value, str) and (is_user or not isinstance(value, _Digits)):
        yield _id_of(value), is_user
        if value.lstrip(_SPACE).startswith(("{", "[", '"')):
            try:
                inner = _parsed(value)
            except (ValueError, RecursionError):
                yield from ((each, False) for each in _strings(value))
            else:
                yield from _ids(inner, is_user)


def _id_of(value: str) -> str:
    """A JSON text or number as the id that cleaning makes of it (ingest/validate.py)."""
    if not isinstance(value, _Digits) or _DIGITS.fullmatch(value) or not _NUMBER.fullmatch(value):
        return "0" if value == "-0" and isinstance(value, _Digits) else trimmed(value)
    number = float(value)
    return str(int(number)) if abs(number) < _EXACT and number == int(number) else str(value)


def _strings(text: str) -> Iterator[str]:
    """The texts in quotes. A quote too few turns inside out what follows, so both readings are given."""
    first = text.find('"')
    found = {*_STRING.findall(text), *(_STRING.findall(text, first + 1) if first >= 0 else ())}
    for each in found:
        if "\\" in each:
            try:
                each = json.loads(f'"{each}"')
            except ValueError:
                each = each.replace('\\"', '"')
            if '"' in each:
                yield from _strings(each)  # JSON in a text
        yield trimmed(each)


def trimmed(user: str) -> str:
    """An id without the white space around it, as cleaning leaves it (ingest/validate.py)."""
    return str(user).strip(_SPACE)


def digest_of(key: bytes, user: str) -> str:
    """BLAKE2b keyed (RFC 7693), 128 bits, in hexadecimal."""
    return hashlib.blake2b(user.encode("utf-8", "surrogatepass"), key=key, digest_size=16).hexdigest()


class Tombstones:
    """The erased users of a home. `actions`: those of the settings, which are nobody's id but in the place of one."""

    def __init__(self, home: Path, actions: Iterable[str] = ()) -> None:
        self.folder = home / "erasure"
        self._actions = frozenset(actions)
        self._key, self._list = self.folder / "key", self.folder / "tombstones.json"

    def read(self) -> Erased:
        """All of them, as they are now.

        Raises:
            ArtifactError: the list or its key is gone or damaged: nobody may pass for not erased then.
        """
        digests = [each["tombstone"] for each in self._entries()]
        return Erased(self._key_bytes() if digests else b"", digests, self._actions)

    def add(self, user: str) -> str:
        """Records an erased user, unless that was done before. Returns the hash."""
        user = trimmed(user)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.lock():
            entries = self._entries()
            if not self._key.exists():
                if entries:
                    self._key_bytes()  # raises
                with (
                    files.replacing(self._key) as temporary,
                    os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as handle,
                ):
                    handle.write(secrets.token_bytes(32))
                    handle.flush()
            digest = digest_of(self._key_bytes(), user)
            if all(each["tombstone"] != digest for each in entries):
                entries.append({"tombstone": digest, "since": datetime.now(UTC).isoformat(timespec="seconds")})
                files.write_bytes(self._list, json.dumps(entries, indent=1).encode())
        return digest

    def only(self, digest: str) -> Erased:
        return Erased(self._key_bytes(), [digest], self._actions)

    def stayed_in_charge(self) -> list[dict[str, str]]:
        """asset, day and version of each champion that had learned from an erased user, as the receipts have them."""
        receipts = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob("receipts/*.json")]
        models = [each for receipt in receipts for each in receipt["refit"] if each["asset"] == "hybrid_model"]
        return [each for each in models if each["in_charge_until_then"]]

    def lock(self) -> filelock.BaseFileLock:
        """The operating system drops it with its process."""
        return filelock.FileLock(self.folder / "tombstones.lock")

    def _entries(self) -> list[dict[str, str]]:
        if not self._list.exists():
            return []
        try:
            found: list[dict[str, str]] = json.loads(self._list.read_text(encoding="utf-8"))
            return [{name: each[name] for name in ("tombstone", "since")} for each in found]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{self._list} is damaged: bring it back from a copy, or erased users return"
            ) from error

    def _key_bytes(self) -> bytes:
        try:
            return self._key.read_bytes()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{self._key} is gone: without it nobody can tell who was erased. Bring it back, or delete "
                f"{self._list} and erase everybody again."
            ) from error
