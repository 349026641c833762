"""SpeechBrain's training loop, made repeatable: the same steps however often it is
stopped and, given the same total batch, on any number of processes, except for what
each draws (dropout and augmentation).

It overrides private methods of `Brain`, as they are in SpeechBrain 1.1.2.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.distributed import ddp_all_reduce, ddp_broadcast
from speechbrain.utils.logger import get_logger
from torch.distributed import ReduceOp
from torch.nn.parallel import DistributedDataParallel

from local_modules.class_parallel import (
    OptimizerRows,
    gradient_norm,
    split_classifiers,
)
from local_modules.distributed import (
    rank_and_count,
    rank_share,
    synchronise_batch_norms,
)
from local_modules.errors import InputError, RunError, one_line
from local_modules.training.stopping import noted_signals

logger = get_logger(__name__)


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Says what to do if a GPU's memory runs out.

    Raises
    ------
    RunError
        It has run out.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"{one_line(error)[:200]}: if it was in validation or test, continue with "
            "a smaller --valid_batch_size; otherwise start another run with a smaller "
            "--batch_size, and with a larger --grad_accumulation_factor for steps as "
            "large"
        ) from error


class RepeatableBrain(sb.Brain):
    """A Brain whose budget is counted in steps or minutes, and whose steps depend only
    on their numbers.

    It needs the hyperparameters `seed`, `batch_size`, `number_of_epochs`,
    `epoch_counter`, `history` (`RunHistory`), `lr_schedule` (learning rate by
    progress), `train_time_limit_minutes`, and for messages `output_folder` and
    `save_folder`. Its training data come from `train_loader`, and
    `compute_objectives` has to call `count` for each training batch.
    """

    signals, is_stopping = (), False
    losses_are_finite, bad_gradients = True, 0  # of this step; steps in a row

    @property
    def progress(self):
        """Share of the training budget used, from 0 to 1: of the steps or, if that is
        more, of the minutes; the same on all ranks."""
        return self.budget_used(self.seconds)

    def budget_used(self, seconds):
        """That share after a number of seconds."""
        share = self.optimizer_step / self.total_steps
        if self.hparams.train_time_limit_minutes is not None:
            limit = 60.0 * self.hparams.train_time_limit_minutes
            share = max(share, seconds / limit)
        return min(share, 1.0)

    @property
    def _optimizer_step_limit_exceeded(self):
        return self.progress >= 1.0

    def on_fit_start(self):
        """Resumes, and ends a run that has used its budget."""
        super().on_fit_start()
        self.seconds = self.hparams.history.seconds
        # In the middle of an epoch, its validation is still to be done.
        if self.progress >= 1.0 and self.step == 0:
            self.hparams.epoch_counter.limit = self.hparams.epoch_counter.current

    def on_fit_batch_start(self, batch, should_step):
        """Sets the learning rate, and seeds the step by its number, so that it is the
        same after a restart."""
        if self.hparams.train_time_limit_minutes is not None:
            # All ranks have to agree on the rate and on the end.
            self.seconds = ddp_broadcast(self.hparams.history.seconds)
        if (self.step - 1) % self.grad_accumulation_factor == 0:  # begins a step
            self.losses_are_finite = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.hparams.lr_schedule(self.progress)
        epoch = self.hparams.epoch_counter.current
        key = np.random.SeedSequence(
            [self.hparams.seed, epoch, self.step, rank_and_count()[0]]
        )
        seed = int(key.generate_state(1)[0])
        random.seed(seed)
        torch.manual_seed(seed)

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """As in SpeechBrain, but a signal to stop waits for the end of the step, or of
        the validation, and for the checkpoint."""
        with noted_signals() as self.signals:
            try:
                super().fit(epoch_counter, train_set, *args, **kwargs)
            except InputError:  # a user error
                raise
            except Exception as error:
                if not self.signals:
                    raise
                # The signal may have ended another process or a data worker.
                logger.warning("Besides the signal to stop: %s", one_line(error))
            finally:
                # The loader keeps the epoch's iterator and its data workers, even if
                # the epoch was not finished.
                reading = getattr(train_set, "_speechbrain_iterator", None)
                if hasattr(reading, "_shutdown_workers"):
                    reading._shutdown_workers()
            if self.signals:
                raise KeyboardInterrupt

    def _fit_valid(self, valid_set, epoch, enable):
        """As in SpeechBrain; the epoch's checkpoint is written, so this may stop."""
        super()._fit_valid(valid_set, epoch, enable)
        n_signals = torch.tensor(len(self.signals), device=self.device)
        if ddp_all_reduce(n_signals, ReduceOp.SUM) > 0:
            raise KeyboardInterrupt

    def count(self, loss, correct):
        """Collects a batch's loss and correct classifications from all ranks, because a
        checkpoint has to hold those of the whole batch; also whether a rank has
        received a signal to stop."""
        others = correct.new_tensor([correct.numel(), len(self.signals)], dtype=int)
        figures = torch.stack([loss.detach(), correct.sum(), *others])
        figures = ddp_all_reduce(figures, ReduceOp.SUM).tolist()
        loss_sum, n_correct, n, n_signals = figures
        self.is_stopping = n_signals > 0
        self.hparams.history.count(int(n_correct), int(n))
        self.batch_loss = torch.tensor(loss_sum / rank_and_count()[1])

    def fit_batch(self, batch):
        """As in SpeechBrain, but returns the mean loss of all ranks."""
        super().fit_batch(batch)
        return self.batch_loss

    def optimizers_step(self):
        """Clips all parameters together (SpeechBrain clips only the first group), and
        skips a step whose gradient is not finite."""
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        norm = gradient_norm(self.modules)
        torch.nn.utils.clip_grads_with_norm_(self.modules.parameters(), limit, norm)
        self.gradient_is_finite = bool(torch.isfinite(norm))
        if self.gradient_is_finite:
            self.bad_gradients = 0
        elif self.losses_are_finite and not self.scaler.is_enabled():
            self.bad_gradients += 1
            self.lose_patience("gradient", self.bad_gradients, "in a row")
        if self.gradient_is_finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def check_loss_isfinite(self, loss):
        """As in SpeechBrain, but for the loss of all ranks, and with a one-line error
        once patience is exhausted."""
        if not torch.isfinite(self.batch_loss):
            self.losses_are_finite = False
            self.nonfinite_count += 1
            self.lose_patience("loss", self.nonfinite_count, "of one epoch")

    def lose_patience(self, what, n_steps, of):
        """Warns of a step whose loss or gradient is not finite; ends the run after too
        many."""
        if n_steps > self.nonfinite_patience:
            raise RunError(
                f"{self.hparams.output_folder}: the {what} was not finite in {n_steps} "
                f"steps {of}; the last good checkpoint is kept in "
                f"{self.hparams.save_folder}. A lower --lr or --max_grad_norm in "
                "another run, or in this one a higher --nonfinite_patience, may help"
            )
        logger.warning(
            "epoch %d, batch %d: the %s is not finite; the step is skipped",
            self.hparams.epoch_counter.current,
            self.step,
            what,
        )

    def evaluate_batch(self, batch, stage):
        """As in SpeechBrain, but --compile compiles only for the length of the crops:
        for all lengths, it would take hours."""
        with torch.compiler.set_stance("eager_on_recompile"):
            return super().evaluate_batch(batch, stage)

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time, steps_since_ckpt):
        """As in SpeechBrain, and before a stop, but not between batches whose gradients
        are accumulated: a checkpoint holds no gradients."""
        due = self.is_stopping or super()._should_save_intra_epoch_ckpt(
            last_ckpt_time, steps_since_ckpt
        )
        return due and self.step % self.grad_accumulation_factor == 0

    def _save_intra_epoch_ckpt(self):
        """As in SpeechBrain; a stop comes after it."""
        super()._save_intra_epoch_ckpt()
        if self.is_stopping:
            raise KeyboardInterrupt

    def make_dataloader(self, dataset, stage, **options):
        """As in SpeechBrain, but each rank evaluates a share instead of everything."""
        if stage != sb.Stage.TRAIN:
            options["sampler"] = rank_share(len(dataset))
        return super().make_dataloader(dataset, stage, **options)

    def train_loader(self, dataset, sampler, **options):
        """Batches of the training data; also sets the total number of steps.

        Arguments
        ---------
        dataset : torch.utils.data.Dataset
            The training data.
        sampler : torch.utils.data.Sampler
            Their order.
        **options
            Options of the data loader.

        Returns
        -------
        DataLoader

        Raises
        ------
        InputError
            An epoch has too few batches for a step.
        """
        batch_size = self.hparams.batch_size
        loader = self.make_dataloader(
            dataset,
            sb.Stage.TRAIN,
            batch_size=batch_size,
            sampler=sampler,
            # A last batch of one utterance has no batch statistics.
            drop_last=len(sampler) // rank_and_count()[1] >= batch_size,
            **options,
        )
        if self.train_sampler is None:  # not wrapped for several processes
            self.train_sampler = sampler
        steps_per_epoch = len(loader) // self.grad_accumulation_factor
        if steps_per_epoch == 0:
            raise InputError(
                f"--grad_accumulation_factor {self.grad_accumulation_factor}: an epoch "
                f"has only {len(loader)} batches"
            )
        n_epochs = self.hparams.number_of_epochs
        if self.debug:  # the schedules run over the few batches too
            # SpeechBrain ends an epoch after these: fewer would be no step.
            self.debug_batches = max(self.debug_batches, self.grad_accumulation_factor)
            n_epochs = min(n_epochs, self.debug_epochs)
            n_batches = min(len(loader), self.debug_batches)
            steps_per_epoch = n_batches // self.grad_accumulation_factor
        steps = n_epochs * steps_per_epoch
        # SpeechBrain passes the option on as a string.
        self.total_steps = min(steps, int(self.optimizer_step_limit or steps))
        return loader

    def _wrap_distributed(self):
        """As in SpeechBrain, but with synchronised batch norm on a CPU too, and without
        split classifiers, which differ between ranks."""
        if not self.distributed_launch:
            super()._wrap_distributed()
            return
        for name, module in self.modules.items():
            if split := split_classifiers(module):
                # Without --compile, which may reorder communication between ranks.
                (self.modules[name],) = split
            elif any(parameter.requires_grad for parameter in module.parameters()):
                self.modules[name] = DistributedDataParallel(
                    synchronise_batch_norms(module),
                    broadcast_buffers=False,  # they are the same on all ranks
                    find_unused_parameters=self.find_unused_parameters,
                )

    def init_optimizers(self):
        """As in SpeechBrain, but a checkpoint holds the optimizer state of all ranks'
        rows."""
        super().init_optimizers()
        for classifier in split_classifiers(self.modules):
            if self.scaler.is_enabled():
                raise InputError(
                    "--precision fp16: the ranks of a SplitClassifier must not scale "
                    "their losses differently; --precision bf16 needs no scaling"
                )
            if self.checkpointer is not None:
                rows = OptimizerRows(self.optimizer, classifier)
                self.checkpointer.add_recoverable("optimizer_rows", rows)
