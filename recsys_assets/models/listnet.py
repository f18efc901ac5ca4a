"""A small network that orders the items of a list by numbers known of each: what `repeat` and the ranker learn by.

The loss is a softmax over each list against the items that were taken (ListNet, Cao et al., ICML 2007, with one
candidate a rank). Learned by torch on one thread, asked by NumPy alone.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_assets.models.base import Arrays, Floats, Log, Longs, one_thread

_CLIP = 5.0  # deviations: what lies farther out than anything learned from must not run away
_WARM_STEPS = 100
_SAMPLE = 100_000  # items by which the bins of a feature are laid
_RARE = 0.001  # a number that is missing less often than this needs no flag
_FORWARD_ROWS = 4096  # encoded at a time: with bins an item takes a thousand numbers


class Lists(NamedTuple):
    """Lists one after the other: float32[p, f] features (NaN: there is none), bool[p] taken (at least one a list),
    int64[lists] sizes, float32[lists] weights."""

    features: Floats
    taken: NDArray[np.bool_]
    sizes: Longs
    weights: Floats


class Recipe(NamedTuple):
    """How to learn: widths of the hidden layers, the largest step, passes over the lists, lists a step, share of the
    first layer that is silenced in a step, bins of each feature (0: only its deviation from the mean)."""

    hidden: tuple[int, ...]
    learning_rate: float
    epochs: int
    batch: int
    dropout: float = 0.0
    bins: int = 0


def learn(lists: Lists, recipe: Recipe, seed: int, log: Log) -> Arrays:
    """The network: what `encode` goes by, then float32 `w0`, `b0`, `w1`, ... of the layers.

    The size of a step rises to the largest one in a tenth of the steps, at most 100, and then falls to nothing.
    """
    import torch
    from torch.nn import functional

    network = _encoding(lists.features, recipe.bins)
    begins = np.cumsum(lists.sizes) - lists.sizes
    rng = np.random.default_rng(seed)
    widths = (encode(network, lists.features[:1]).shape[1], *recipe.hidden, 1)
    for layer, (wide, narrow) in enumerate(pairwise(widths)):
        network[f"w{layer}"] = (rng.normal(size=(wide, narrow)) / wide**0.5).astype(np.float32)
        network[f"b{layer}"] = np.zeros(narrow, np.float32)
    last = len(recipe.hidden)
    taken = lists.taken.astype(np.float32)
    with one_thread():
        tensors = {name: torch.from_numpy(network[name]).requires_grad_() for name in network if name[0] in "wb"}
        optimizer = torch.optim.AdamW(list(tensors.values()), lr=recipe.learning_rate, weight_decay=1e-2)
        steps = recipe.epochs * -(-len(lists.sizes) // recipe.batch)
        warm = min(_WARM_STEPS, -(-steps // 10))
        step = 0
        for epoch in range(recipe.epochs):
            total = 0.0
            order = rng.permutation(len(lists.sizes))
            for begin in range(0, len(order), recipe.batch):
                chosen = order[begin : begin + recipe.batch]
                sizes = lists.sizes[chosen]
                first = np.cumsum(sizes) - sizes
                at = np.arange(sizes.sum()) + np.repeat(begins[chosen] - first, sizes)
                hidden = torch.from_numpy(encode(network, lists.features[at]))
                rows = torch.from_numpy(np.repeat(np.arange(len(chosen)), sizes))
                y, weight = torch.from_numpy(taken[at]), torch.from_numpy(lists.weights[chosen])
                for layer in range(last):
                    hidden = functional.relu(hidden @ tensors[f"w{layer}"] + tensors[f"b{layer}"])
                    if layer == 0 and recipe.dropout:
                        kept = rng.random(hidden.shape, np.float32) >= recipe.dropout
                        hidden = hidden * torch.from_numpy(kept) / (1 - recipe.dropout)
                logits = (hidden @ tensors[f"w{last}"] + tensors[f"b{last}"])[:, 0]
                zeros = torch.zeros(len(chosen))
                top = zeros.scatter_reduce(0, rows, logits.detach(), "amax", include_self=False)
                log_sum = top + torch.log(zeros.index_add(0, rows, torch.exp(logits - top[rows])))
                loss = -((logits - log_sum[rows]) * y * weight[rows]).sum() / len(chosen)
                rate = recipe.learning_rate * min(1, (step + 1) / warm) * (1 - step / steps)
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                total += float(loss.detach()) * len(chosen)
            log(f"epoch {epoch + 1} of {recipe.epochs}, loss {total / len(order):.4f}")
    return {name: tensors[name].detach().numpy() if name in tensors else value for name, value in network.items()}


def _encoding(features: Floats, bins: int) -> Arrays:
    """`mean` and `scale` of each feature, and with bins `low` and `span` (float32[f, bins]) of its bins, between
    quantiles, and `missing`, the features that need a flag."""
    sample = features[:: max(1, len(features) // _SAMPLE)]
    mean, scale = np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32)
    low = np.zeros((len(mean), bins), np.float32)
    span = np.ones_like(low)
    for place, column in enumerate(features.T):
        known = column[~np.isnan(column)].astype(np.float64)
        if len(known):
            mean[place], scale[place] = known.mean(), known.std() + 1e-3
        some = sample[:, place][~np.isnan(sample[:, place])]
        if bins and len(some):
            edges = np.quantile(some, np.linspace(0.01, 0.99, bins + 1))
            # Where many items share a number, what is above it becomes a step.
            low[place], span[place] = edges[:-1], np.maximum(np.diff(edges), 1e-3)
    encoding: Arrays = {"mean": mean, "scale": scale}
    if bins:
        missing = np.flatnonzero(np.isnan(sample).mean(axis=0) > _RARE).astype(np.int32)
        encoding |= {"low": low, "span": span, "missing": missing}
    return encoding


def encode(network: Arrays, features: Floats) -> Floats:
    """float32[p, inputs]: deviations from the mean, clipped; the mean where there is no number. With bins also how far
    the number goes through each of its bins, -.5 to .5, 0 where there is none (piecewise linear encoding, Gorishniy et
    al., NeurIPS 2022: a small network is bad at telling 3 days from 4), and a flag for what is missing."""
    deviation: Floats = np.clip((features - network["mean"]) / network["scale"], -_CLIP, _CLIP)
    np.nan_to_num(deviation, copy=False)
    if "low" not in network:
        return deviation
    through = features[:, :, None] - network["low"]
    through /= network["span"]
    np.clip(through, 0, 1, out=through)
    through -= 0.5
    np.nan_to_num(through, copy=False)
    missing = np.isnan(features[:, network["missing"]]).astype(np.float32)
    return np.concatenate([deviation, missing, through.reshape(len(features), -1)], axis=1)


def forward(network: Arrays, features: Floats) -> Floats:
    """float32[p]: one score an item, comparable within a list."""
    last = sum(name[0] == "w" for name in network) - 1
    scores = np.empty(len(features), np.float32)
    for begin in range(0, len(features), _FORWARD_ROWS):
        hidden = encode(network, features[begin : begin + _FORWARD_ROWS])
        for layer in range(last):
            hidden = np.maximum(hidden @ network[f"w{layer}"] + network[f"b{layer}"], 0)
        scores[begin : begin + _FORWARD_ROWS] = (hidden @ network[f"w{last}"] + network[f"b{last}"])[:, 0]
    return scores
