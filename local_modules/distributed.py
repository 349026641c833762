"""What the processes of `torchrun`, the ranks, do together beyond SpeechBrain: share
the evaluation, and normalise over the batches of all."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from speechbrain.utils.distributed import (
    ddp_all_reduce,
    ddp_broadcast,
    ddp_init_group,
    is_distributed_initialized,
)
from speechbrain.utils.run_opts import RunOptions
from torch import nn
from torch.distributed import ReduceOp
from torch.distributed.nn.functional import all_reduce

from local_modules.errors import InputError, RunError, one_line


def rank_and_count() -> tuple[int, int]:
    """The rank of this process and the number of ranks; 0 and 1 without `torchrun`.

    Example
    -------
    >>> rank_and_count()
    (0, 1)
    """
    if not is_distributed_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def rank_share(n: int) -> range:
    """This rank's share of `n` items, each of which goes to one rank. Ranks take turns,
    so that items sorted by length are spread evenly.

    Example
    -------
    >>> rank_share(3)
    range(0, 3)
    """
    rank, count = rank_and_count()
    return range(rank, n, count)


def meet_ranks(run_opts: RunOptions) -> None:
    """Initialises the process group under `torchrun`; otherwise does nothing.

    Raises
    ------
    InputError
        `--distributed_backend` lacks what it needs, such as a GPU per process.
    """
    try:
        ddp_init_group(run_opts)
    except ValueError as error:
        raise InputError(
            f"--distributed_backend {run_opts['distributed_backend']}: "
            f"{one_line(error)} On CPUs it has to be gloo"
        ) from None


def on_first(call: Callable[..., Any], *args) -> Any:
    """Calls a function on the first rank and returns its result on all. A `RunError`
    there is raised on all ranks: none is left waiting.

    Arguments
    ---------
    call : callable
        Called on the first rank only.
    *args
        Its arguments.

    Raises
    ------
    RunError
        `call` has raised it on the first rank.

    Example
    -------
    >>> on_first(max, 1, 2)
    2
    """
    told = result = None
    if rank_and_count()[0] == 0:
        try:
            result = call(*args)
        except RunError as error:
            told = str(error)
    result, told = ddp_broadcast((result, told))
    if told is not None:
        raise RunError(told)
    return result


def gather_on_first(embeddings: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gathers the embeddings of all ranks on the first.

    Arguments
    ---------
    embeddings : mapping of str to torch.Tensor
        This rank's, on the CPU, [emb_dim] each; may be empty.

    Returns
    -------
    dict
        Those of all ranks on the first, none on the others.

    Example
    -------
    >>> gather_on_first({"a.wav": torch.tensor([1.0, 2.0])})
    {'a.wav': tensor([1., 2.])}
    """
    rank, count = rank_and_count()
    if count == 1:
        return dict(embeddings)
    # One tensor is sent faster than many.
    vectors = torch.stack(list(embeddings.values())) if embeddings else []
    shares = [None] * count if rank == 0 else None
    torch.distributed.gather_object((list(embeddings), vectors), shares)
    return {
        path: vector
        for paths, vectors in shares or []
        for path, vector in zip(paths, vectors, strict=True)
    }


def gather_on_all(items: Sequence[str], device: str | torch.device) -> list[str]:
    """Gathers the items of all ranks, in the order of ranks, on each; fast if there are
    none.

    Arguments
    ---------
    items : sequence of str
        This rank's items.
    device : str or torch.device
        The device of this rank's model.

    Example
    -------
    >>> gather_on_all(["a.wav"], "cpu")
    ['a.wav']
    """
    _, count = rank_and_count()
    n_items = torch.tensor(len(items), device=device)
    if count == 1 or ddp_all_reduce(n_items, ReduceOp.SUM) == 0:
        return list(items)
    shares = [None] * count
    torch.distributed.all_gather_object(shares, list(items))
    return list(itertools.chain.from_iterable(shares))


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all ranks.

    It does in plain operations what `torch.nn.SyncBatchNorm` does on GPUs only.
    Arguments as of `torch.nn.BatchNorm1d`; input [batch, channels] or
    [batch, channels, ...].
    """

    def _check_input_dim(self, input):
        """Accepts any number of dimensions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalises a batch, by its own statistics in training."""
        if not self.training:
            return super().forward(x)
        x, dtype = x.float(), x.dtype
        others = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = all_reduce(x.new_tensor(x.numel() / x.shape[1]))
        mean = all_reduce(x.sum(others)) / count
        x = x - mean.view(shape)
        variance = all_reduce(x.square().sum(others)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = variance * count / (count - 1)
            self.running_var.lerp_(unbiased, self.momentum)
        x = x * (variance + self.eps).rsqrt().view(shape)
        return (x * self.weight.view(shape) + self.bias.view(shape)).to(dtype)


def synchronise_batch_norms(module: nn.Module) -> nn.Module:
    """Makes the batch norms of a module use the batches of all ranks.

    Arguments
    ---------
    module : torch.nn.Module
        On its device; changed in place unless it is a batch norm itself.

    Returns
    -------
    torch.nn.Module
        The module, with the names of its weights as before.

    Example
    -------
    >>> layers = synchronise_batch_norms(nn.Sequential(nn.BatchNorm1d(4)))
    >>> type(layers[0]).__name__
    'SynchronisedBatchNorm'
    """
    if any(parameter.device.type != "cpu" for parameter in module.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # Keeps its weights, statistics and hooks.
            layer.__class__ = SynchronisedBatchNorm
    return module
