"""A classifier whose rows, one per speaker, are split over the ranks of `torchrun`, for
more speakers than one GPU has memory or time for."""

import functools
import math

import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from torch import distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from local_modules.distributed import rank_and_count
from local_modules.rows import copy_common, load_rows, rows_of, save_rows

ROWS_AT_ONCE = 2**16

# SpeechBrain's savers run on the first rank only.
every_rank_saves = functools.partial(register_checkpoint_hooks, save_on_main_only=False)


@every_rank_saves
class SplitClassifier(nn.Module):
    """Cosines between embeddings and speakers, split over the ranks (Deng et al., CVPR
    2019, "ArcFace", parallel acceleration), optionally with only a sample of each
    rank's speakers in a step (An et al., CVPR 2022, "Killing two birds with one stone",
    Partial FC).

    In a recipe, it replaces SpeechBrain's classifier:

        classifier: !new:local_modules.class_parallel.SplitClassifier
            input_size: !ref <emb_dim>
            out_neurons: !ref <n_speakers>
            angular_scale: !ref <angular_scale>
            drawn_share: 0.1

    Of the wrong speakers, the softmax needs only the log-sum-exp. So in training, each
    utterance gets two cosines, to the right speaker and one that stands for all others;
    any loss of `local_modules.losses`, and its gradients, are then as on the whole
    matrix. Each rank sees the embeddings of all ranks, but only its own rows.

    In one process, it has all rows.

    Arguments
    ---------
    input_size : int
        Size of the embedding.
    out_neurons : int
        Number of speakers.
    angular_scale : float
        The loss's factor of the cosines.
    drawn_share : float
        Share of the rows that take part in a step: those of the batch's speakers, and
        random others to make up the share. The rest have zero gradients.

    Raises
    ------
    ValueError
        There are fewer speakers than ranks, or the share is not in (0, 1].

    Example
    -------
    >>> from local_modules.losses import AdditiveAngularMargin
    >>> classifier = SplitClassifier(8, 100, angular_scale=30.0)
    >>> embeddings, speakers = torch.rand(4, 1, 8), torch.tensor([[7], [0], [99], [7]])
    >>> cosines, targets, correct = classifier(embeddings, speakers)
    >>> cosines.shape, correct.shape
    (torch.Size([4, 1, 2]), torch.Size([4, 1]))
    >>> margin_loss = AdditiveAngularMargin(angular_scale=30.0, angular_margin=0.2)
    >>> split = margin_loss(cosines, targets)
    >>> whole = margin_loss(classifier(embeddings), speakers)
    >>> torch.allclose(split, whole)
    True
    """

    def __init__(
        self,
        input_size: int,
        out_neurons: int,
        angular_scale: float,
        drawn_share: float = 1.0,
    ):
        super().__init__()
        rank, count = rank_and_count()
        if out_neurons < count:
            raise ValueError(f"SplitClassifier: {out_neurons} rows for {count} ranks")
        if not 0 < drawn_share <= 1:
            raise ValueError(
                f"SplitClassifier: drawn_share {drawn_share} is not in (0, 1]"
            )
        self.out_neurons = out_neurons
        self.angular_scale = angular_scale
        self.drawn_share = drawn_share
        self.rows = rows_of(rank, count, out_neurons)
        self.weight = nn.Parameter(torch.empty(len(self.rows), input_size))
        # As `xavier_uniform_` draws the whole matrix, however it is split.
        bound = math.sqrt(6 / (out_neurons + input_size))
        for start in range(0, out_neurons, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, out_neurons)
            numbers = torch.empty(stop - start, input_size).uniform_(-bound, bound)
            copy_common(range(start, stop), numbers, self.rows, self.weight.data)

    def forward(self, embeddings: torch.Tensor, targets: torch.Tensor | None = None):
        """Compares a batch with the speakers, in float32.

        Arguments
        ---------
        embeddings : torch.Tensor
            This rank's, [batch, 1, input_size].
        targets : torch.Tensor | None
            Their speakers, [batch, 1]; may be None in a single process.

        Returns
        -------
        torch.Tensor
            Without targets, cosines to all speakers, [batch, 1, out_neurons].
        cosines, targets, correct : torch.Tensor
            With targets, the two cosines that replace those in a softmax of the same
            scale, [batch, 1, 2]; the right speaker's index in them, zeros [batch, 1];
            and whether the right one was the nearest, [batch, 1].
        """
        embeddings = F.normalize(embeddings.squeeze(1).float())
        if targets is None:
            return F.linear(embeddings, F.normalize(self.weight)).unsqueeze(1)
        sizes = _sizes_of_all(len(embeddings), embeddings.device)
        columns = _gathered(targets.flatten(), sizes) - self.rows.start
        is_here = (columns >= 0) & (columns < len(self.rows))
        weight = self.weight
        if self.drawn_share < 1:
            drawn = self.draw(columns[is_here].unique())
            weight = weight[drawn]
            columns = torch.searchsorted(drawn, columns)
        columns = torch.where(is_here, columns, -1)
        target, others, hardest = _SplitCosines.apply(
            embeddings, F.normalize(weight), columns, sizes, self.angular_scale
        )
        cosines = torch.stack([target, others], dim=-1).unsqueeze(1)
        correct = (target >= hardest).unsqueeze(1)
        return cosines, torch.zeros_like(targets), correct

    def draw(self, positives: torch.Tensor) -> torch.Tensor:
        """This rank's rows that take part in a step, in ascending order: those given,
        and others at random."""
        n_drawn = max(len(positives), round(self.drawn_share * len(self.rows)), 1)
        order = torch.rand(len(self.rows), device=self.weight.device)
        order[positives] = 2.0
        return order.topk(n_drawn).indices.sort().values

    def gather_rows(self) -> None:
        """Ends the split: the first rank gets the whole matrix, in CPU memory; the
        other ranks' parts must not be used any more. All ranks have to call it."""
        rank, count = rank_and_count()
        if rank > 0:
            distributed.send(self.weight.data, 0)
            return
        everyone = range(self.out_neurons)
        whole = torch.empty(self.out_neurons, self.weight.shape[1])
        copy_common(self.rows, self.weight.data, everyone, whole)
        for other in range(1, count):
            rows = rows_of(other, count, self.out_neurons)
            part = self.weight.data.new_empty(len(rows), self.weight.shape[1])
            distributed.recv(part, other)
            copy_common(rows, part, everyone, whole)
        self.weight, self.rows = nn.Parameter(whole), everyone

    @mark_as_saver
    def _save(self, path):
        save_rows(path, self.rows, {"weight": self.weight.data})

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        self.weight.data.copy_(load_rows(path, self.rows)["weight"])


@every_rank_saves
class OptimizerRows:
    """Checkpoints the optimizer's state for this rank's rows, such as Adam's moments.
    Load it after the optimizer itself, which is saved by the first rank and loaded on
    all.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        The optimizer.
    classifier : SplitClassifier
        One that it optimizes.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, classifier: SplitClassifier):
        self.optimizer = optimizer
        self.classifier = classifier

    @mark_as_saver
    def _save(self, path):
        weight = self.classifier.weight
        state = {
            name: value
            for name, value in self.optimizer.state[weight].items()
            if isinstance(value, torch.Tensor) and value.shape == weight.shape
        }
        save_rows(path, self.classifier.rows, state)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        del end_of_epoch
        weight = self.classifier.weight
        for name, value in load_rows(path, self.classifier.rows).items():
            self.optimizer.state[weight][name] = value.to(weight.device)


def split_classifiers(module: nn.Module) -> list[SplitClassifier]:
    """The split classifiers in a module, however it is wrapped."""
    return [part for part in module.modules() if isinstance(part, SplitClassifier)]


def gradient_norm(module: nn.Module) -> torch.Tensor:
    """The norm of all gradients of a module, including those of other ranks' rows; the
    same on all ranks.

    Example
    -------
    >>> layer = nn.Linear(1, 1)
    >>> layer.weight.grad, layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    >>> gradient_norm(layer)
    tensor(5.)
    """
    split = {id(part.weight) for part in split_classifiers(module)}
    grads = {id(p): p.grad for p in module.parameters() if p.grad is not None}
    common = [grad for key, grad in grads.items() if key not in split]
    norm = nn.utils.get_total_norm(common)
    for key in split & grads.keys():
        squares = grads[key].square().sum()
        if rank_and_count()[1] > 1:
            distributed.all_reduce(squares)
        norm = torch.hypot(norm, squares.sqrt())
    return norm


class _SplitCosines(torch.autograd.Function):
    """Cosines to the right speakers, to what stands for all others, and to the hardest
    of these, [batch] each, from unit vectors: this rank's embeddings [batch, size] and
    its rows [rows, size].

    `columns` has the right one of these rows for each embedding of all ranks, or -1;
    `sizes` has the number of embeddings of each rank.
    """

    @staticmethod
    def forward(ctx, embeddings, rows, columns, sizes, scale):
        everyone = _gathered(embeddings, sizes)
        cosines = everyone @ rows.T
        utterances = (columns >= 0).nonzero().squeeze(1)
        right = utterances, columns[utterances]
        target = cosines.new_zeros(len(cosines))
        target[utterances] = cosines[right]
        cosines[right] = -torch.inf
        # In place, to hold this matrix only once.
        hardest = cosines.amax(dim=1)
        peak = hardest.clamp(min=-1.0)  # hardest is -inf without other rows here
        exponentials = cosines.sub_(peak.unsqueeze(1)).mul_(scale).exp_()
        log_sum = scale * peak + exponentials.sum(dim=1).log()
        target, hardest, log_sums = _over_ranks(target, hardest, log_sum)
        total = log_sums.logsumexp(dim=0)
        ctx.save_for_backward(
            everyone, rows, exponentials, (scale * peak - total).exp(), *right
        )
        ctx.sizes = sizes
        ctx.mark_non_differentiable(hardest)
        return tuple(_own(x, sizes) for x in (target, total / scale, hardest))

    @staticmethod
    @once_differentiable
    def backward(ctx, target_grad, others_grad, _):
        everyone, rows, exponentials, factor, *right = ctx.saved_tensors
        grads = torch.stack([target_grad, others_grad], dim=1)
        target_grad, others_grad = _gathered(grads, ctx.sizes).unbind(dim=1)
        # The gradient of a log-sum-exp is the softmax.
        grad = exponentials * (factor * others_grad).unsqueeze(1)
        grad[tuple(right)] = target_grad[right[0]]
        embeddings_grad = grad @ rows
        count = len(ctx.sizes)
        if count > 1:
            distributed.all_reduce(embeddings_grad)
        # As in DDP, the loss is the mean of the ranks' losses.
        rows_grad = grad.T @ everyone / count
        return _own(embeddings_grad, ctx.sizes), rows_grad, None, None, None


def _sizes_of_all(size: int, device: torch.device) -> list[int]:
    """How many utterances each rank has: fewer where some can't be decoded."""
    _, count = rank_and_count()
    if count == 1:
        return [size]
    sizes = torch.zeros(count, dtype=torch.int64, device=device)
    own = torch.tensor([size], device=device)
    distributed.all_gather_into_tensor(sizes, own)
    return sizes.tolist()


def _gathered(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """The tensors of all ranks, [size, ...] each, concatenated."""
    if len(sizes) == 1:
        return x
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    parts = x.new_empty(len(sizes) * len(padded), *x.shape[1:])
    distributed.all_gather_into_tensor(parts, padded)
    parts = parts.split(len(padded))
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


def _own(x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """This rank's part of what `_gathered` gives."""
    return x.split(sizes)[rank_and_count()[0]]


def _over_ranks(target, hardest, log_sum):
    """The cosine to the right speaker, which only one rank has, the largest of the
    hardest, and each rank's log-sum-exp, [ranks, utterances]."""
    _, count = rank_and_count()
    if count == 1:
        return target, hardest, log_sum.unsqueeze(0)
    own = torch.stack([target, hardest, log_sum])
    parts = own.new_empty(count * len(own), own.shape[1])
    distributed.all_gather_into_tensor(parts, own)
    parts = parts.unflatten(0, (count, -1))
    return parts[:, 0].sum(dim=0), parts[:, 1].amax(dim=0), parts[:, 2]
