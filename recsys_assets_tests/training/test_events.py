import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_assets.training.events import Events

rows = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 2), st.integers(0, 50)), max_size=30)


def events(found: list[tuple[int, int, int, int]]) -> Events:
    user, item, action, timestamp = np.array(found, np.int64).reshape(-1, 4).T
    return Events.sort(user, item, action, np.ones(len(found)), timestamp, 5, 4)


def as_rows(found: Events) -> list[tuple[int, int, int, int]]:
    return list(
        zip(*(array.tolist() for array in (found.user, found.item, found.action, found.timestamp)), strict=True)
    )


@given(rows, st.permutations(range(5)), st.integers(0, 5), st.integers(0, 51))
@settings(deadline=None)
def test_events_of_users_and_before(found: list, order: list[int], count: int, moment: int) -> None:
    whole = events(found)
    assert as_rows(whole) == sorted(found, key=lambda row: (row[0], row[3], row[1], row[2]))
    assert as_rows(whole.before(moment)) == [row for row in as_rows(whole) if row[3] < moment]
    users = np.array(order[:count], np.int32)
    part = whole.of_users(users)
    assert (part.n_users, part.n_items) == (count, 4)
    expected = [(r, *row[1:]) for r, user in enumerate(users) for row in as_rows(whole) if row[0] == user]
    assert as_rows(part) == expected
    assert part.offsets.tolist() == [sum(row[0] < r for row in expected) for r in range(count + 1)]
    assert part.user.dtype == np.int32
    assert part.timestamp.dtype == np.int64


def test_nobody_did_anything() -> None:
    empty = Events.empty(3, 2)
    assert len(empty) == 0
    assert empty.offsets.tolist() == [0, 0, 0, 0]
    assert len(empty.of_users(np.array([2, 0], np.int32))) == 0
