"""In which order training sees the utterances."""

from collections.abc import Iterator, Sized

from speechbrain.dataio.sampler import ReproducibleRandomSampler

from local_modules.errors import InputError


class PassSampler(ReproducibleRandomSampler):
    """A random order anew for each pass over the data, which takes one epoch or
    several: shorter epochs validate more often.

    The order depends on the seed and the epoch alone, so a training that is continued
    sees what it would have seen.

    Arguments
    ---------
    data_source : Sized
        What to draw from.
    epochs_per_pass : int
        How many epochs share a pass; what their number does not divide is left out of
        a pass.
    seed : int
        Seed of the order.

    Raises
    ------
    InputError
        There are not so many utterances, or no epochs in a pass.

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
        if not 1 <= epochs_per_pass <= len(data_source):
            raise InputError(
                f"--epochs_per_pass {epochs_per_pass}: has to be from 1 to "
                f"{len(data_source)}, the number of training utterances"
            )
        super().__init__(data_source, seed=seed, epoch=1)
        self.epochs_per_pass = epochs_per_pass

    def __len__(self) -> int:
        return len(self.data_source) // self.epochs_per_pass

    def __iter__(self) -> Iterator[int]:
        n_passes, part = divmod(self.epoch - 1, self.epochs_per_pass)
        epoch, self.epoch = self.epoch, n_passes + 1
        order = list(super().__iter__())
        self.epoch = epoch
        yield from order[part * len(self) : (part + 1) * len(self)]
