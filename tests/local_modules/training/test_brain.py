"""What the training loop decides on before a step, and between two."""

from types import SimpleNamespace

import pytest
import torch

from local_modules.errors import RunError
from local_modules.training import brain as module
from local_modules.training.brain import RepeatableBrain
from local_modules.training.checkpoints import WholeCheckpointer
from local_modules.training.sampling import PassSampler
from local_modules.training.schedules import WarmupCosine


@pytest.fixture
def brain():
    """A quarter through 20 steps, and half a minute in; two groups of parameters."""
    layer = torch.nn.Linear(1, 1)
    hparams = {
        "seed": 1,
        "train_time_limit_minutes": None,
        "lr_schedule": WarmupCosine(1.0, 0.5),
        "epoch_counter": SimpleNamespace(current=1),
        "history": SimpleNamespace(seconds=30.0),
    }
    brain = RepeatableBrain({"layer": layer}, None, hparams, {"device": "cpu"})
    groups = [{"params": [layer.weight]}, {"params": [layer.bias]}]
    brain.optimizer = torch.optim.SGD(groups, lr=9.0)
    brain.optimizer_step, brain.total_steps, brain.seconds = 5, 20, 0.0
    return brain


@pytest.mark.parametrize(("minutes", "rate"), [(None, 0.5), (1.0, 1.0)])
def test_all_groups_have_the_rate_of_the_progress(brain, minutes, rate):
    brain.hparams.train_time_limit_minutes = minutes
    brain.on_fit_batch_start(None, True)
    assert [group["lr"] for group in brain.optimizer.param_groups] == [rate, rate]


def test_each_step_of_each_rank_draws_its_own(brain, monkeypatch):
    drawn = set()
    for place in range(5):  # nothing, or the seed, epoch, step or rank is another
        seed, epoch, brain.step, rank = (1 + (place == n) for n in range(1, 5))
        monkeypatch.setattr(module, "rank_and_count", lambda rank=rank: (rank, 3))
        brain.hparams.seed, brain.hparams.epoch_counter.current = seed, epoch
        brain.on_fit_batch_start(None, True)
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 5


def test_another_ranks_loss_counts_as_ones_own(brain):
    brain.batch_loss, brain.nonfinite_count = torch.tensor(torch.nan), 0
    brain.check_loss_isfinite(torch.tensor(1.0))
    assert brain.nonfinite_count == 1


def test_gradients_that_are_never_finite_end_the_run(brain):
    """With a finite loss, SpeechBrain's check has nothing to see."""
    brain.nonfinite_patience = 2
    brain.hparams.output_folder, brain.hparams.save_folder = "run", "run/save"
    layer = brain.modules.layer
    before = layer.weight.detach().clone()
    for _ in range(2):
        brain.batch_loss = torch.tensor(1.0)
        brain.check_loss_isfinite(brain.batch_loss)
        layer.weight.grad = torch.full_like(layer.weight, torch.nan)
        brain.optimizers_step()
    assert torch.equal(layer.weight, before)
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    with pytest.raises(
        RunError, match="run: the gradient was not finite in 3 steps in a row"
    ):
        brain.optimizers_step()


def test_memory_that_runs_out_is_one_line():
    told = "CUDA out of memory: if it was in validation or test, continue with a small"
    with pytest.raises(RunError, match=told), module.memory_told():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_good_step_restores_the_patience(brain):
    brain.nonfinite_patience, layer = 1, brain.modules.layer
    for grad in (torch.inf, 0.5, torch.inf, 0.5, torch.inf):
        layer.weight.grad = torch.full_like(layer.weight, grad)
        brain.optimizers_step()


def test_a_bad_loss_and_its_gradient_are_one_bad_step(brain):
    brain.batch_loss, brain.nonfinite_count = torch.tensor(torch.nan), 0
    brain.check_loss_isfinite(brain.batch_loss)
    layer = brain.modules.layer
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    brain.optimizers_step()
    assert (brain.nonfinite_count, brain.bad_gradients) == (1, 0)


@pytest.mark.parametrize("because", ["of the interval", "of a signal"])
def test_no_checkpoint_between_the_batches_of_one_step(because, tmp_path):
    options = {"device": "cpu", "grad_accumulation_factor": 2}
    if because == "of the interval":
        options["ckpt_interval_steps"] = 1
    brain = RepeatableBrain(
        {"layer": torch.nn.Linear(1, 1)},
        run_opts=options,
        checkpointer=WholeCheckpointer(tmp_path),
    )
    brain.is_stopping = because == "of a signal"
    due = []
    for brain.step in range(1, 5):
        due.append(brain._should_save_intra_epoch_ckpt(0.0, 1))
    assert due == [False, True, False, True]


@pytest.mark.parametrize("limit", [0.001, -1.0])
def test_the_gradient_of_all_groups_is_clipped_together(limit):
    """Two parameter groups with a gradient norm of 5; SpeechBrain alone would clip
    the first only."""
    layer = torch.nn.Linear(1, 1)
    brain = RepeatableBrain(
        modules={"layer": layer},
        opt_class=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        run_opts={"device": "cpu", "max_grad_norm": limit},
    )
    brain.optimizer = torch.optim.SGD(
        [{"params": [layer.weight]}, {"params": [layer.bias]}], lr=1.0
    )
    before = torch.cat([layer.weight.flatten(), layer.bias]).detach().clone()
    layer.weight.grad = torch.tensor([[3.0]])
    layer.bias.grad = torch.tensor([4.0])
    brain.optimizers_step()
    step = before - torch.cat([layer.weight.flatten(), layer.bias]).detach()
    scale = 0.001 / 5 if limit > 0 else 1.0
    assert torch.allclose(step, scale * torch.tensor([3.0, 4.0]), atol=1e-6)


@pytest.mark.parametrize(
    ("n", "sizes"), [(5, [5]), (8, [8]), (9, [8]), (49, 6 * [8]), (50, 6 * [8])]
)
def test_no_batch_is_of_one_utterance(n, sizes):
    """Batch norm has nothing to compare it with. What is left of an epoch waits for
    another one, unless there is nothing else."""
    hparams = {"batch_size": 8, "number_of_epochs": 2}
    modules = {"layer": torch.nn.Linear(1, 1)}
    brain = RepeatableBrain(modules, None, hparams, {"device": "cpu"})
    sampler = PassSampler(range(n), 1, seed=1)
    loader = brain.train_loader(range(n), sampler, collate_fn=list)
    assert [len(batch) for batch in loader] == sizes
    assert len(sizes) == brain.total_steps / 2


def test_nor_where_one_utterance_is_too_many_for_the_ranks(monkeypatch):
    """Each of two would get a ninth by padding, and a step for it."""
    monkeypatch.setattr(module, "rank_and_count", lambda: (0, 2))
    hparams = {"batch_size": 8, "number_of_epochs": 2}
    modules = {"layer": torch.nn.Linear(1, 1)}
    brain = RepeatableBrain(modules, None, hparams, {"device": "cpu"})
    sampler = PassSampler(range(17), 1, seed=1)
    assert brain.train_loader(range(17), sampler, collate_fn=list).drop_last


def test_the_schedule_ends_with_the_epochs_where_the_limit_is_beyond_them():
    hparams = {"batch_size": 8, "number_of_epochs": 2}
    modules = {"layer": torch.nn.Linear(1, 1)}
    for limit, n_steps in (("1000", 12), ("5", 5)):
        options = {"device": "cpu", "optimizer_step_limit": limit}
        brain = RepeatableBrain(modules, None, hparams, options)
        sampler = PassSampler(range(48), 1, seed=1)
        brain.train_loader(range(48), sampler, collate_fn=list)
        assert brain.total_steps == n_steps


def test_a_bad_loss_of_the_first_batch_of_a_step_is_no_bad_gradient_too(brain):
    brain.grad_accumulation_factor, brain.nonfinite_count = 2, 0
    for brain.step, loss in ((1, torch.nan), (2, 1.0)):
        brain.on_fit_batch_start(None, brain.step == 2)
        brain.batch_loss = torch.tensor(loss)
        brain.check_loss_isfinite(brain.batch_loss)
    layer = brain.modules.layer
    layer.weight.grad = torch.full_like(layer.weight, torch.nan)
    brain.optimizers_step()
    assert (brain.nonfinite_count, brain.bad_gradients) == (1, 0)
