"""The small network: what it is told of a number, and that it learns by it."""

import numpy as np
import pytest

from recsys_assets.models import listnet


def lessons(lists: int = 400, length: int = 12) -> listnet.Lists:
    """Items with whole numbers from 0 to 20, some unknown: those with a 7 are taken, of another column nothing is."""
    rng = np.random.default_rng(0)
    features = rng.integers(0, 21, (lists * length, 2)).astype(np.float32)
    features[::length, 0] = 7
    features[1::length, 0] = np.nan
    sizes = np.full(lists, length, np.int64)
    return listnet.Lists(features, features[:, 0] == 7, sizes, np.ones(lists, np.float32))


@pytest.mark.parametrize(("bins", "least", "most"), [(20, 0.95, 1), (0, 0, 0.7)])
def test_with_bins_a_step_teaches_what_a_deviation_cannot(bins: int, least: float, most: float) -> None:
    known = lessons()
    recipe = listnet.Recipe((), 0.1, 3, 16, bins=bins)  # no hidden layer: only the encoding can bend
    network = listnet.learn(known, recipe, 1, lambda _: None)
    best = listnet.forward(network, known.features).reshape(len(known.sizes), -1).argmax(axis=1)
    found = known.taken.reshape(len(known.sizes), -1)[np.arange(len(known.sizes)), best]
    assert least <= found.mean() <= most


def test_what_a_number_becomes() -> None:
    known = lessons()
    network = listnet.learn(known, listnet.Recipe((4,), 1e-3, 1, 64, bins=4), 1, lambda _: None)
    low, high, unknown = listnet.encode(network, np.array([[-99, 5], [99, 5], [np.nan, 5]], np.float32))
    assert len(low) == len(network["w0"]) == 2 + 1 + 2 * 4  # deviations, one flag, bins
    np.testing.assert_array_equal([low[2], high[2], unknown[2]], [0, 0, 1])
    np.testing.assert_array_equal([low[3:7], high[3:7], unknown[3:7]], [[-0.5] * 4, [0.5] * 4, [0] * 4])
    assert unknown[0] == 0
    np.testing.assert_array_equal(low[7:], unknown[7:])
    halfway = listnet.encode(network, np.column_stack([np.linspace(0, 20, 50), np.zeros(50)]).astype(np.float32))
    assert (np.diff(halfway[:, 3:7].sum(axis=1)) >= 0).all()


def test_many_rows_are_the_same_as_few() -> None:
    known = lessons(1000)
    network = listnet.learn(known, listnet.Recipe((8, 4), 1e-2, 1, 64, bins=3), 1, lambda _: None)
    whole = listnet.forward(network, known.features)
    parts = [listnet.forward(network, part) for part in np.array_split(known.features, 7)]
    np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=1e-5)


def test_the_same_bytes_on_one_thread_and_on_two() -> None:
    import torch

    known, recipe = lessons(), listnet.Recipe((8, 4), 1e-2, 2, 32, 0.1, bins=5)
    threads, networks = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            networks.append(listnet.learn(known, recipe, 1, lambda _: None))
    finally:
        torch.set_num_threads(threads)
    assert networks[0].keys() == networks[1].keys()
    for name, values in networks[0].items():
        assert values.tobytes() == networks[1][name].tobytes()
