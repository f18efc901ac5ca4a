"""Generated behaviour of which the truth is known: how likely each user is to take the offer."""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recsys_assets.audience.features import DAY_MS
from recsys_assets.days import day_start_ms

FIRST = "2025-11-01"
_HOURS = {"night": (22, 7), "morning": (5, 7), "afternoon": (12, 5), "evening": (17, 5)}  # begins, lasts


@dataclass(frozen=True)
class Crowd:
    """Events as `read_events` gives them (with the device's name), and each user's chance to take the offer a week.

    Attributes:
        chance: user_id -> probability that the user takes the offer in any seven days.
    """

    events: pl.DataFrame
    chance: dict[str, float]


def crowd(users: int = 3000, days: int = 42, daily: float = 1.5, seed: int = 0, rate: float = -3.4) -> Crowd:
    """Users with a taste for parts of the day, for a device and for variety. Those of the evening and of mobiles take
    the offer, those of the night do not; how active they are hardly matters."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(4, 1.5), users)  # night, morning, afternoon, evening
    mobile = rng.beta(1, 1, users)
    activity = daily * rng.lognormal(-0.18, 0.6, users)
    logit = rate + 3.5 * taste[:, 3] - 3.0 * taste[:, 0] + 2.0 * mobile + 0.1 * np.log(activity)
    chance = 1 / (1 + np.exp(-logit))
    counts = rng.poisson(activity[:, None], (users, days))
    user, day = (np.repeat(index.ravel(), counts.ravel()) for index in np.indices(counts.shape))
    part = (rng.random(len(user))[:, None] > np.cumsum(taste, axis=1)[user, :3]).sum(axis=1)
    begins, lasts = (np.array(column)[part] for column in zip(*_HOURS.values(), strict=True))
    frames = [
        _events(user, day, (begins + rng.random(len(user)) * lasts) % 24, rng.integers(0, 400, len(user)), "VIEW")
    ]
    device = rng.random(len(user)) < mobile[user]
    weekly = rng.random((users, days // 7)) < chance[:, None]
    taker, week = np.nonzero(weekly)
    frames.append(_events(taker, week * 7 + rng.integers(0, 7, len(taker)), 12 + rng.random(len(taker)), 999, "CLICK"))
    told = np.concatenate([np.where(device, "mobile", "desktop"), np.full(len(taker), None)])
    names = [f"u{n:05d}" for n in range(users)]
    return Crowd(
        pl.concat(frames).with_columns(device=pl.Series(told, dtype=pl.String)),
        dict(zip(names, chance.tolist(), strict=True)),
    )


def _events(
    user: NDArray[np.int64],
    day: NDArray[np.int64],
    hour: NDArray[np.float64],
    item: NDArray[np.int64] | int,
    action: str,
) -> pl.DataFrame:
    start = day_start_ms(FIRST, "UTC")
    return pl.DataFrame(
        {
            "user_id": [f"u{n:05d}" for n in user],
            "item_id": [f"i{n}" for n in np.broadcast_to(item, len(user))],
            "ms": start + day * DAY_MS + (hour * 3_600_000).astype(np.int64),
            "action": [action] * len(user),
        }
    )
