"""Causal self-attention over a user's steps (SASRec, Kang & McAuley, ICDM 2018) with sampled softmax, in torch."""

from functools import cached_property
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from recsys_assets.models.base import (
    Arrays,
    Events,
    Floats,
    Ints,
    Log,
    Longs,
    Params,
    Steps,
    TrainingSet,
    category_means,
    lowest_for_unknown,
    one_thread,
    silent,
    steps,
)
from recsys_assets.settings import SequenceSettings, Settings

if TYPE_CHECKING:
    import torch

_GAP_BUCKETS = 24  # log2 of minutes: 23 is sixteen years
_VALIDATION_SHARE = 0.07  # the newest share of the steps decides when to stop
_VALIDATION_ROWS = 2000
_NEWEST_REPLAY = 0.15  # share of the older windows that a fit shows again with the newest
_UPDATE_REPLAY = 0.3  # and an update with the day's, against forgetting
_SCORE_ROWS = 64
# A step touches a thousand rows of the item table. From this size on the others are left alone (lazy Adam), which is
# three times as fast on 68,000 items, as good; on 12,000 items it costs quality (Beauty validation .046, not .053).
_SPARSE_ITEMS = 30_000


class SequenceModel:
    """Predicts the next visit from the last `max_length` steps.

    A token is the sum of item (+ its category), action, position, log time gap to the step before and log time gap to
    the visit that is to be predicted (HSTU's "target time" as an input, arXiv 2402.17152: at serving that is `at_ms`).
    The target of a step is an item of the user's next visit, drawn anew each epoch: items of one visit (one basket)
    have no order, so predicting one from another would teach nothing about the next day. Where each visit is one step
    this is SASRec's shifted sequence. The loss is softmax over the whole catalogue if small, else over shared uniform
    negatives, weighted by the target's action (as eSASRec, arXiv 2508.06450, found best: sampled softmax, not BCE).
    """

    name: ClassVar[str] = "sequence"

    def __init__(self, weights: Arrays, seen: NDArray[np.bool_], category: Ints, params: Params) -> None:
        """Weights by torch name, bool[n_items] items with events, int32[n_items] category (-1 unknown); params:
        end_ms, n_categories, n_actions, blocks, heads, max_length, dimension."""
        self.weights = weights
        self.seen = seen
        self.category = category
        self.params = params

    @classmethod
    def fit(cls, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Trains until the newest 7 % of the time are predicted no better for `patience` epochs, or `epochs` or
        `max_tokens` are used up, then shows those 7 % once. Same bytes on a rerun (CPU).
        """
        model = cls._empty(data, settings)
        walked = steps(data.events)
        targets = _Targets(walked)
        if not targets.usable.any():
            return model
        network = model._network()
        times = targets.time[targets.usable]
        cut = int(np.quantile(times, 1 - _VALIDATION_SHARE))
        if (times < cut).any() and (times >= cut).any():
            windows = _windows(walked, settings.sequence.max_length)
            _train(network, walked, targets, windows, settings, log, until=cut, epochs=settings.sequence.epochs)
            model.weights = _arrays(network)
        else:
            cut = int(times.min())
        return model._absorb(walked, targets, cut, data.end_ms, settings, log, "newest", _NEWEST_REPLAY)

    def update(self, data: TrainingSet, settings: Settings, log: Log = silent) -> Self:
        """Goes on from these weights: `update_epochs` over the windows of users seen since, and a sample of the rest.

        New items begin at the mean of their category (or small seeded noise)."""
        fresh = self._empty(data, settings)
        same = all(
            fresh.params[k] == self.params[k] for k in ("dimension", "blocks", "heads", "max_length", "n_actions")
        )
        if not same or not self.seen.any():
            return self.fit(data, settings, log)
        weights = dict(fresh.weights)
        for name, old in self.weights.items():
            if name in ("item.weight", "category.weight"):
                weights[name] = weights[name].copy()
                weights[name][: len(old)] = old
            else:
                weights[name] = old
        n_old = len(self.seen)
        filled, known = category_means(
            weights["item.weight"], np.pad(self.seen, (0, len(fresh.seen) - n_old)), fresh.category
        )
        weights["item.weight"] = np.where(known[:, None], filled, weights["item.weight"])
        fresh.weights = weights
        walked = steps(data.events)
        since = int(self.params["end_ms"])
        return fresh._absorb(walked, _Targets(walked), since, data.end_ms, settings, log, "update", _UPDATE_REPLAY)

    @classmethod
    def _empty(cls, data: TrainingSet, settings: Settings) -> Self:
        own, n_items = settings.sequence, data.events.n_items
        params = {
            "end_ms": data.end_ms,
            "n_categories": len(data.items.categories),
            "n_actions": len(data.actions),
            "dimension": own.dimension,
            "blocks": own.blocks,
            "heads": own.heads,
            "max_length": own.max_length,
            "dropout": own.dropout,
        }
        seen = np.bincount(data.events.item, minlength=n_items) > 0
        model = cls({}, seen, data.items.category, params)
        model.weights = _arrays(model._network(settings.training.seed))
        return model

    def _network(self, seed: int = 0) -> Any:
        """A torch module with these weights, or with seeded random ones while there are none."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = _build(self.params, len(self.seen), self.category)
        if self.weights:
            network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights.items()})
        return network.to("cuda" if torch.cuda.is_available() else "cpu")

    def _absorb(
        self,
        walked: Steps,
        targets: "_Targets",
        since_ms: int,
        end_ms: int,
        settings: Settings,
        log: Log,
        label: str,
        replayed: float,
    ) -> Self:
        """Fine-tunes on windows with targets from `since_ms` on, and a seeded sample of the others (other ones each
        day)."""
        starts, lengths = _windows(walked, settings.sequence.max_length)
        new = targets.usable & (targets.time >= since_ms)
        so_far = np.concatenate([[0], np.cumsum(new)])
        touched = so_far[starts + lengths] > so_far[starts]
        draw = np.random.default_rng([settings.training.seed, max(end_ms, 0) // 1000])
        chosen = touched | (draw.random(len(starts)) < replayed)
        params = {**self.params, "end_ms": end_ms}
        if not touched.any():
            return type(self)(self.weights, self.seen, self.category, params)
        network = self._network()
        _train(
            network,
            walked,
            targets,
            (starts[chosen], lengths[chosen]),
            settings,
            log,
            until=None,
            epochs=settings.sequence.update_epochs,
            label=label,
        )
        return type(self)(_arrays(network), self.seen, self.category, params)

    @cached_property
    def _scorer(self) -> Any:
        return self._network().eval()

    @cached_property
    def _table(self) -> tuple[Floats, NDArray[np.bool_]]:
        """float32[n_items, d] what a user's vector is compared with; unseen items by the mean of their category."""
        table = self.weights["item.weight"] + self.weights["category.weight"][self.category + 1]
        return category_means(table, self.seen, self.category)

    def score(self, history: Events, at_ms: int) -> Floats:
        """float32[n_users, n_items] logits; 0 throughout for users without history."""
        import torch

        table, known = self._table
        keep = history.item < len(table)
        walked = steps(history.select(keep) if not keep.all() else history)
        vectors = np.zeros((history.n_users, table.shape[1]), np.float32)
        if len(walked):
            length = int(self.params["max_length"])
            ends = np.append(np.flatnonzero(np.diff(walked.user)) + 1, len(walked))
            starts = np.concatenate([[0], ends[:-1]])
            users = walked.user[starts]
            starts = np.maximum(starts, ends - length)
            goal = _Targets(walked).time
            goal[walked.visit == walked.visit[ends - 1][np.searchsorted(users, walked.user)]] = at_ms
            lengths = ends - starts
            order = np.argsort(lengths, kind="stable")  # little padding
            with torch.inference_mode(), one_thread():
                for begin in range(0, len(users), _SCORE_ROWS):
                    chosen = order[begin : begin + _SCORE_ROWS]
                    batch = _Batch(walked, goal, starts[chosen], lengths[chosen], None)
                    hidden = self._scorer(*batch.inputs(self._scorer))
                    last = torch.from_numpy(lengths[chosen] - 1).to(hidden.device)
                    vectors[users[chosen]] = hidden[torch.arange(len(last), device=hidden.device), last].cpu().numpy()
        return lowest_for_unknown(vectors @ table.T, known, history.n_items)

    def state(self) -> tuple[Arrays, Params]:
        arrays = {f"weights.{name}": value for name, value in self.weights.items()}
        return {**arrays, "seen": self.seen, "category": self.category}, self.params

    @classmethod
    def from_state(cls, arrays: Arrays, params: Params) -> Self:
        weights = {
            name.removeprefix("weights."): value for name, value in arrays.items() if name.startswith("weights.")
        }
        return cls(weights, arrays["seen"], arrays["category"], params)


def _build(params: Params, n_items: int, category: Ints) -> Any:
    import torch
    from torch import nn

    d, heads, rate = params["dimension"], params["heads"], params["dropout"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_attention, self.norm_feed = nn.LayerNorm(d), nn.LayerNorm(d)
            self.query_key_value, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.feed = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Dropout(rate), nn.Linear(4 * d, d))
            self.drop = nn.Dropout(rate)

        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            b, length, _ = x.shape
            q, k, v = (
                part.view(b, length, heads, d // heads).transpose(1, 2)
                for part in self.query_key_value(self.norm_attention(x)).chunk(3, dim=-1)
            )
            # Padding is on the right, where a causal mask already hides it.
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(b, length, d)))
            return x + self.drop(self.feed(self.norm_feed(x)))

    class Network(nn.Module):
        category_of: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.item = nn.Embedding(n_items, d, sparse=n_items > _SPARSE_ITEMS)
            self.category = nn.Embedding(params["n_categories"] + 1, d)
            self.action = nn.Embedding(params["n_actions"], d)
            self.position = nn.Embedding(params["max_length"], d)
            self.gap_before = nn.Embedding(_GAP_BUCKETS, d)
            self.gap_after = nn.Embedding(_GAP_BUCKETS, d)
            self.blocks = nn.ModuleList(Block() for _ in range(params["blocks"]))
            self.norm = nn.LayerNorm(d)
            self.drop = nn.Dropout(rate)
            for table in self.children():
                if isinstance(table, nn.Embedding):
                    nn.init.normal_(table.weight, std=0.02)
            self.register_buffer("category_of", torch.from_numpy(category.astype(np.int64) + 1), persistent=False)

        def rows(self, items: "torch.Tensor") -> "torch.Tensor":
            return self.item(items) + self.category(self.category_of[items])

        def forward(
            self, items: "torch.Tensor", actions: "torch.Tensor", before: "torch.Tensor", after: "torch.Tensor"
        ) -> "torch.Tensor":
            position = torch.arange(items.shape[1], device=items.device)
            x = self.rows(items) * d**0.5 + self.action(actions) + self.position(position)
            x = self.drop(x + self.gap_before(before) + self.gap_after(after))
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

    return Network()


def _arrays(network: Any) -> Arrays:
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


class _Targets:
    """Where each step's next visit lies.

    Attributes (m steps): first, count: int64[m] steps [first, first + count) are the same user's next visit, count 0
    if there is none; usable: bool[m] count > 0; time: int64[m] its timestamp (0 if none).
    """

    def __init__(self, walked: Steps) -> None:
        begins = np.flatnonzero(np.diff(walked.visit, prepend=-1))
        sizes = np.diff(np.append(begins, len(walked)))
        user = walked.user[begins]
        follows = np.append(user[1:] == user[:-1], False)[: len(begins)]
        following = np.minimum(np.arange(len(begins)) + 1, len(begins) - 1)
        self.first = begins[following][walked.visit] if len(begins) else begins
        self.count = np.where(follows, sizes[following], 0)[walked.visit] if len(begins) else begins
        self.usable = self.count > 0
        self.time = np.where(self.usable, walked.timestamp[self.first], 0) if len(begins) else begins


def _windows(walked: Steps, length: int) -> tuple[Longs, Longs]:
    """Starts and lengths of windows of at most `length` steps of one user, cut from the newest step backwards."""
    ends = np.append(np.flatnonzero(np.diff(walked.user)) + 1, len(walked))
    begins = np.concatenate([[0], ends[:-1]])
    counts = -(-(ends - begins) // length)
    last = np.repeat(ends, counts)
    back = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    stop = last - back * length
    start = np.maximum(stop - length, np.repeat(begins, counts))
    order = np.argsort(start, kind="stable")
    return start[order], (stop - start)[order]


class _Batch:
    """Windows side by side, padded on the right to the longest: int64[b, length] arrays and a mask of real steps."""

    def __init__(self, walked: Steps, goal_ms: Longs, starts: Longs, lengths: Longs, order: Longs | None) -> None:
        """`order`: a permutation of the steps that mixes within visits (None: as they are)."""
        offset = np.arange(lengths.max())
        self.mask = offset < lengths[:, None]
        self.at = np.minimum(starts[:, None] + offset, len(walked) - 1)
        shown = self.at if order is None else order[self.at]
        self.items = walked.item[shown].astype(np.int64)
        self.actions = walked.action[shown].astype(np.int64)
        time = walked.timestamp[self.at]
        self.before = _bucket(np.diff(time, axis=1, prepend=time[:, :1]))
        self.after = _bucket(goal_ms[self.at] - time)

    def inputs(self, network: Any) -> list["torch.Tensor"]:
        import torch

        device = network.item.weight.device
        return [torch.from_numpy(a).to(device) for a in (self.items, self.actions, self.before, self.after)]


def _bucket(gap_ms: Longs) -> Longs:
    return np.minimum(np.log2(1 + np.maximum(gap_ms, 0) / 60_000), _GAP_BUCKETS - 1).astype(np.int64)


def _train(
    network: Any,
    walked: Steps,
    targets: _Targets,
    windows: tuple[Longs, Longs],
    settings: Settings,
    log: Log,
    *,
    until: int | None,
    epochs: int,
    label: str = "epoch",
) -> None:
    """Trains in place, on one CPU thread: the matrices are small (a second thread gains little and loses a lot on a
    busy machine), and the bytes then do not depend on the number of cores. With `until`, only targets before it are
    learned from, and the later ones decide which epoch's weights are kept."""
    import torch

    own, began = settings.sequence, monotonic()
    rng = np.random.default_rng(settings.training.seed)
    starts, lengths = windows
    learn = targets.usable if until is None else targets.usable & (targets.time < until)
    so_far = np.concatenate([[0], np.cumsum(learn)])
    useful = so_far[starts + lengths] > so_far[starts]
    validation = None if until is None else _validation(walked, targets, windows, until, rng)
    starts, lengths = starts[useful], lengths[useful]
    tokens = int(lengths.sum())
    if tokens > own.max_tokens:  # the newest windows of a history that is too long for even one epoch
        newest = np.argsort(-walked.timestamp[starts + lengths - 1], kind="stable")
        kept = np.sort(newest[: max(1, int(np.searchsorted(np.cumsum(lengths[newest]), own.max_tokens)))])
        starts, lengths = starts[kept], lengths[kept]
        tokens = int(lengths.sum())
    epochs = max(1, min(epochs, own.max_tokens // max(tokens, 1)))
    mean_weight = float(walked.weight.mean())
    sparse = [network.item.weight] if network.item.sparse else []
    dense = [value for name, value in network.named_parameters() if not (sparse and name == "item.weight")]
    optimizers: list[Any] = [torch.optim.Adam(dense, lr=own.learning_rate, betas=(0.9, 0.98))]
    optimizers += [torch.optim.SparseAdam(sparse, lr=own.learning_rate, betas=(0.9, 0.98))] if sparse else []
    best, best_weights, stale = -1.0, None, 0
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(settings.training.seed)
        for epoch in range(epochs):
            total, count = 0.0, 0
            network.train()
            # Within a visit the order is unknown: another one each epoch.
            order = np.lexsort((rng.random(len(walked)), walked.visit))
            drawn = targets.first + (rng.random(len(walked)) * targets.count).astype(np.int64)
            for rows in _batches(lengths, own.batch_tokens, rng):
                batch = _Batch(walked, targets.time, starts[rows], lengths[rows], order)
                mask = batch.mask & learn[batch.at]
                aim = drawn[batch.at[mask]]
                loss = _loss(network, batch, mask, walked.item[aim], walked.weight[aim] / mean_weight, own)
                network.zero_grad(set_to_none=True)
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
                total, count = total + float(loss.detach()) * len(aim), count + len(aim)
            line = f"sequence: {label} {epoch + 1} of {epochs}, loss {total / max(count, 1):.4f}"
            if validation is not None:
                quality = _quality(network, *validation)
                line += f", validation {quality:.4f}"
                stale = 0 if quality > best else stale + 1
                if quality > best:
                    best, best_weights = quality, {k: v.clone() for k, v in network.state_dict().items()}
            log(f"{line}, {monotonic() - began:.0f} s")
            if stale >= own.patience:
                break
    if best_weights is not None:
        network.load_state_dict(best_weights)


def _batches(lengths: Longs, tokens: int, rng: np.random.Generator) -> list[Longs]:
    """Rows of about equal length together, about `tokens` steps a batch, in random order."""
    order = np.lexsort((rng.random(len(lengths)), lengths))
    batches, begin = [], 0
    while begin < len(order):
        end = begin + max(1, tokens // int(lengths[order[begin]]))
        end = min(end, begin + max(1, tokens // int(lengths[order[min(end, len(order)) - 1]])))
        batches.append(order[begin:end])
        begin = end
    return [batches[i] for i in rng.permutation(len(batches))]


def _loss(
    network: Any, batch: _Batch, mask: NDArray[np.bool_], items: Ints, weights: Floats, own: SequenceSettings
) -> "torch.Tensor":
    import torch
    from torch.nn import functional

    device = network.item.weight.device
    hidden = network(*batch.inputs(network))[torch.from_numpy(mask).to(device)]
    wanted = torch.from_numpy(items.astype(np.int64)).to(device)
    n_items = network.item.num_embeddings
    if n_items <= max(own.full_softmax_items, own.negatives):
        logits = hidden @ network.rows(torch.arange(n_items, device=device)).T
        losses = functional.cross_entropy(logits, wanted, reduction="none")
    else:
        negatives = torch.randint(n_items, (own.negatives,)).to(device)
        logits = hidden @ network.rows(negatives).T
        logits = logits.masked_fill(wanted[:, None] == negatives, -torch.inf)  # a hit by chance is no negative
        positive = (hidden * network.rows(wanted)).sum(dim=1)
        losses = torch.logaddexp(positive, logits.logsumexp(dim=1)) - positive
    return (losses * torch.from_numpy(weights).to(device)).mean()


def _validation(
    walked: Steps, targets: _Targets, windows: tuple[Longs, Longs], until: int, rng: np.random.Generator
) -> tuple[Steps, _Targets, Longs, Longs]:
    """One step (as the end of a window) for at most 2,000 of the visits from `until` on: steps, targets, starts,
    lengths."""
    length = int(windows[1].max())
    last_of_visit = np.append(np.diff(walked.visit) > 0, True)
    ends = np.flatnonzero(targets.usable & (targets.time >= until) & last_of_visit)
    ends = np.sort(rng.permutation(ends)[:_VALIDATION_ROWS])
    user_start = np.searchsorted(walked.user, walked.user[ends])
    starts = np.maximum(user_start, ends + 1 - length)
    return walked, targets, starts, ends + 1 - starts


def _quality(network: Any, walked: Steps, targets: _Targets, starts: Longs, lengths: Longs) -> float:
    """Mean of 1 / log2(1 + rank) of one item of the next visit among all items."""
    import torch

    network.eval()
    total = 0.0
    with torch.inference_mode():
        device = network.item.weight.device
        table = network.rows(torch.arange(network.item.num_embeddings, device=device))
        for begin in range(0, len(starts), 256):
            part = slice(begin, begin + 256)
            batch = _Batch(walked, targets.time, starts[part], lengths[part], None)
            last = torch.from_numpy(lengths[part] - 1).to(device)
            hidden = network(*batch.inputs(network))[torch.arange(len(last), device=device), last]
            wanted = walked.item[targets.first[starts[part] + lengths[part] - 1]].astype(np.int64)
            scores = hidden @ table.T
            own_score = scores.gather(1, torch.from_numpy(wanted).to(device)[:, None])
            rank = (scores > own_score).sum(dim=1) + 1
            total += float((1 / torch.log2(1 + rank.double())).sum())
    return total / max(len(starts), 1)
