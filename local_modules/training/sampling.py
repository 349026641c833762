"""The order in which training sees the utterances."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized

from speechbrain.dataio.sampler import ReproducibleRandomSampler

from local_modules.distributed import rank_and_count
from local_modules.errors import InputError


class PassSampler(ReproducibleRandomSampler):
    """A new random order for each pass over the data. A pass takes one or several
    epochs: shorter epochs validate more often.

    The order depends only on the seed and the epoch, so a resumed training sees the
    same utterances.

    Arguments
    ---------
    data_source : Sized
        What to draw from.
    epochs_per_pass : int
        Epochs in a pass, of equally many utterances; those left over are left out.
    seed : int
        Seed of the order.

    Raises
    ------
    InputError
        An epoch would have fewer than two utterances per process, or a pass no
        epochs.

    Example
    -------
    >>> sampler = PassSampler(range(6), epochs_per_pass=2, seed=1)
    >>> orders = []
    >>> for epoch in (1, 2):
    ...     sampler.set_epoch(epoch)
    ...     orders.append(list(sampler))
    >>> [len(order) for order in orders], sorted(sum(orders, []))
    ([3, 3], [0, 1, 2, 3, 4, 5])
    """

    def __init__(self, data_source: Sized, epochs_per_pass: int, seed: int):
        most = len(data_source) // (2 * rank_and_count()[1])
        if not 1 <= epochs_per_pass <= most:
            raise InputError(
                f"--epochs_per_pass {epochs_per_pass}: has to be from 1 to {most}; "
                f"each process needs two of the {len(data_source)} training utterances"
            )
        super().__init__(data_source, seed=seed, epoch=1)
        self.epochs_per_pass = epochs_per_pass

    def __len__(self) -> int:
        return len(self.data_source) // self.epochs_per_pass

    def __iter__(self) -> Iterator[int]:
        n_passes, part = divmod(self.epoch - 1, self.epochs_per_pass)
        order = self.order(n_passes + 1)
        yield from order[part * len(self) : (part + 1) * len(self)]

    def order(self, n_pass: int) -> list[int]:
        """All utterances in the order of a pass, counted from 1."""
        epoch, self.epoch = self.epoch, n_pass
        order = list(super().__iter__())
        self.epoch = epoch
        return order


class ShardSampler(PassSampler):
    """A random order that reads few shards at a time: the next utterance comes from a
    random open shard, and an exhausted shard is replaced by the next, so that remote
    shards can be fetched while others are read.

    Arguments
    ---------
    shard_of : sequence of int
        The shard of each utterance.
    epochs_per_pass, seed
        As of `PassSampler`.
    n_open : int
        Number of shards open at a time.

    Raises
    ------
    InputError
        Wrong `epochs_per_pass` or `n_open`.

    Example
    -------
    >>> sampler = ShardSampler([0, 0, 1, 1], epochs_per_pass=1, seed=1, n_open=1)
    >>> order = list(sampler)
    >>> {*order[:2]} in ({0, 1}, {2, 3}), sorted(order)
    (True, [0, 1, 2, 3])
    """

    def __init__(
        self, shard_of: Sequence[int], epochs_per_pass: int, seed: int, n_open: int
    ):
        super().__init__(shard_of, epochs_per_pass, seed)
        if n_open < 1:
            raise InputError(f"--open_shards {n_open}: has to be at least 1")
        self.n_open = n_open

    def order(self, n_pass: int) -> list[int]:
        """All utterances in the order of a pass, counted from 1."""
        rng = random.Random(f"{self.seed}/{n_pass}")
        shards = defaultdict(list)
        for utterance, shard in enumerate(self.data_source):
            shards[shard].append(utterance)
        waiting, opened, order = list(shards.values()), [], []
        rng.shuffle(waiting)
        for utterances in waiting:
            rng.shuffle(utterances)
        while waiting or opened:
            while waiting and len(opened) < self.n_open:
                opened.append(waiting.pop())
            chosen = rng.randrange(len(opened))
            order.append(opened[chosen].pop())
            if not opened[chosen]:
                del opened[chosen]
        return order
