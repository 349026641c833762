#!/usr/bin/env python3
"""Trains a speaker-verification system and measures its equal error rate.

    python train_speaker.py hparams/conformer.yaml [--key value ...]

Prepares the corpus, trains, validates each epoch by the equal error rate (EER) on
speakers held out, tests the best epoch once, and writes a folder that SpeechBrain's
`EncoderClassifier` loads. Run again, the same command continues where it stopped.
"""

import contextlib
import copy
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    ddp_broadcast,
    if_main_process,
    main_process_only,
    run_on_main,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.run_opts import RunOptions
from torch.utils.data import DataLoader

from local_modules.audio import ReadableBatch, SpeechCache, UtteranceReader, speaker_at
from local_modules.class_parallel import SplitClassifier, split_classifiers
from local_modules.command_line import parse_command_line
from local_modules.distributed import (
    gather_on_all,
    gather_on_first,
    meet_ranks,
    rank_and_count,
)
from local_modules.errors import InputError, RunError, exit_status
from local_modules.evaluation.backend import COHORT_UTTERANCES, Backend, fit_backend
from local_modules.files import put_on_disk
from local_modules.inference.model_folder import check_parts
from local_modules.manifest import Utterance, spread_utterances
from local_modules.masking import pad_to_multiple
from local_modules.metrics import verification_rates
from local_modules.scoring import score_trials
from local_modules.shards.reading import ShardReader
from local_modules.training import adaptation
from local_modules.training.brain import RepeatableBrain
from local_modules.training.history import RunHistory, best_row
from local_modules.training.report import RunReporter
from local_modules.training.run import LABELS, begin_run, claimed, finish_run, summary
from local_modules.training.sampling import PassSampler, ShardSampler
from local_modules.training.stopping import outlive_signals
from local_modules.tuning.hpopt import Driven
from local_modules.yaml_trees import as_lines, load_plain

logger = get_logger(__name__)


class SpeakerBrain(RepeatableBrain):
    """Trains by classifying the training speakers, validates by verifying others.

    `train` gives it what it needs beside a Brain's own: `train_reader` (decides on the
    crops), `n_train` (how many utterances there are), `cache`, `features_text` (what
    the YAML says of the features), `trials` by split, `reporter`, and where there are
    such, `on_epoch`, the modules that are `frozen`, and the `teacher` to stay near to.
    What is validated and tested is `judged`: the weights of `averaged_model`, which
    are also what is kept.
    """

    on_epoch = teacher = None
    frozen = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.judged = self.hparams.averaged_model.to(self.device)

    def compute_forward(self, batch, stage):
        """Waveforms to speaker embeddings, [batch, 1, emb_dim]."""
        batch = batch.to(self.device, non_blocking=True)
        if stage == sb.Stage.TRAIN:
            # In bf16 filters would add noise, and a GPU has no Fourier transform of it.
            with torch.autocast(self.device_type, enabled=False):
                wavs, lens = self.hparams.wav_augment(*batch.sig)
            feats = self.modules.compute_features(wavs)
        else:
            feats, lens = self.whole_features(batch, stage)
        feats = self.modules.mean_var_norm(feats, lens)
        if stage == sb.Stage.TRAIN:
            feats, lens = self.hparams.feats_augment(feats, lens)
            if self.teacher is not None:
                with torch.no_grad():
                    self.anchors = self.teacher(feats, lens)
            return self.modules.embedding_model(feats, lens)
        return self.judged(feats, lens)

    def whole_features(self, batch, stage):
        """Features of whole utterances, [batch, frames, mels], and relative lengths.

        Those of `valid` are the same in every epoch, and in every training that shares
        the cache. A GPU makes them faster than it could fetch them.
        """
        key = self.features_text, *batch.id, *batch.name
        if (kept := self.cache.get(key)) is not None:
            return kept
        hop_length = self.hparams.compute_features.compute_STFT.hop_length
        wavs, lens = pad_to_multiple(*batch.sig, hop_length)
        feats = self.modules.compute_features(wavs)
        if stage == sb.Stage.VALID and self.device_type == "cpu":
            self.cache.put(key, feats, lens)
        return feats, lens

    def compute_objectives(self, embeddings, batch, stage):
        """The margin loss in training; elsewhere embeddings are kept for the trials."""
        if stage != sb.Stage.TRAIN:
            vectors = embeddings.squeeze(1).float().cpu()
            self.embeddings.update(zip(batch.name, vectors, strict=True))
            return torch.zeros(())
        targets = batch.spk_id_encoded.data
        # Cosines of bf16 vectors are too coarse for a margin.
        with torch.autocast(self.device_type, enabled=False):
            if split_classifiers(self.modules.classifier):
                cosines, targets, correct = self.modules.classifier(
                    embeddings.float(), targets
                )
            else:
                cosines = self.modules.classifier(embeddings.float())
                correct = cosines.argmax(dim=-1) == targets
        loss = self.hparams.loss(cosines, targets, self.margin_share)
        if self.teacher is not None:
            drift = adaptation.distance(embeddings, self.anchors)
            loss = loss + self.hparams.distillation * drift
        self.count(loss, correct)
        return loss

    def on_fit_start(self):
        """Tells of the epochs that an earlier process has done."""
        super().on_fit_start()
        self.lost = {}  # IDs, in the order found
        if self.on_epoch is not None and self.hparams.history.epochs:
            # A kill may have come between the last checkpoint and this.
            self.on_epoch(self.hparams.history.epochs)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the margin, and holds what is frozen still; ends the run if too many
        recordings can't be read, by whichever rank, or nearly all of a batch can't."""
        self.lost.update(dict.fromkeys(gather_on_all(batch.lost, self.device)))
        if batch.is_empty or (len(batch) == 1 and rank_and_count()[1] == 1):
            ids = ", ".join(batch.lost[:3])
            raise RunError(
                f"{ids}: of the recordings of a batch {0 if batch.is_empty else 1} can "
                "be decoded, and batch norm wants two: repair the recordings, or begin "
                "another run with a larger --batch_size"
            )
        if len(self.lost) > self.hparams.max_bad_share * self.n_train:
            raise RunError(
                f"{len(self.lost)} of {self.n_train} training recordings can't be "
                f"decoded, over max_bad_share {self.hparams.max_bad_share:.2%}; the "
                f"first is {next(iter(self.lost))}; "
                f"{self.hparams.output_folder}/log.txt names all: repair them or raise "
                "max_bad_share"
            )
        super().on_fit_batch_start(batch, should_step)
        # Not earlier: SpeechBrain puts all into training mode when an epoch begins.
        for module in self.frozen:
            module.eval()
        self.margin_share = self.hparams.margin_schedule(self.progress)

    def fit_batch(self, batch):
        """Lets batch norms forget a batch that is not finite, also one after which no
        step comes: the last of an epoch, whose gradients are left over."""
        loss = super().fit_batch(batch)
        if not torch.isfinite(loss):
            self.hparams.averaged_model.restore_buffers(self.hparams.embedding_model)
        return loss

    def optimizers_step(self):
        """Lets the averaged model follow."""
        super().optimizers_step()
        model, averaged = self.hparams.embedding_model, self.hparams.averaged_model
        if not self.gradient_is_finite:
            averaged.restore_buffers(model)
        averaged.update_parameters(model)

    def evaluate_batch(self, batch, stage):
        """Passes over a batch of which nothing can be read: it may have been one."""
        if batch.is_empty:
            return torch.zeros(())
        return super().evaluate_batch(batch, stage)

    def on_stage_start(self, stage, epoch=None):
        """Moves on to the crops of this epoch, or begins to collect embeddings."""
        if stage == sb.Stage.TRAIN:
            self.hparams.history.start_clock()
            self.train_reader.set_epoch(epoch)
        else:
            self.embeddings = {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Validates the epoch, and keeps the best checkpoint and the latest."""
        history = self.hparams.history
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        self.embeddings = gather_on_first(self.embeddings)
        if epoch is not None:
            metrics = self.verify("valid")[0]
            history.stop_clock()
            # The validation may have used up the minutes.
            self.seconds = ddp_broadcast(history.seconds)
            history.end_epoch(
                {
                    "epoch": epoch,
                    "train_loss": self.train_loss,
                    "train_accuracy": history.accuracy,
                    "train_utterances": history.seen,
                    "learning_rate": self.optimizer.param_groups[0]["lr"],
                    "margin": self.hparams.margin_schedule(self.progress)
                    * self.hparams.angular_margin,
                    "valid_eer": metrics["eer"],
                    "valid_min_dcf": metrics["min_dcf"],
                    "seconds": history.seconds,
                    "budget_used": self.budget_used(history.seconds),
                }
            )
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "eer": metrics["eer"]},
                min_keys=["eer"],
                importance_keys=[],
            )
            run_on_main(self.reporter.report, [history.epochs, history.best_epoch])
            if self.on_epoch is not None:
                self.on_epoch(history.epochs)

    @main_process_only
    def verify(self, split):
        """Scores the trials of a split with the embeddings just collected, for all
        ranks on the first, which has them.

        Returns
        -------
        metrics : dict
            As `metrics.json` holds them.
        target, nontarget : torch.Tensor
            Scores.
        """
        trials = self.trials[split]
        names = dict.fromkeys((*trials.enrol, *trials.test))
        lost = [name for name in names if name not in self.embeddings]
        if lost and not self.debug:
            told = (
                f"{split}: {len(lost)} of {len(names)} recordings can't be decoded, "
                f"the first is {lost[0]}"
            )
            if len(lost) > self.hparams.max_bad_share * len(names):
                raise RunError(
                    f"{told}; that is over max_bad_share "
                    f"{self.hparams.max_bad_share:.2%}: repair them or raise "
                    "max_bad_share, and the same command goes on"
                )
            logger.warning(f"{told}; trials with them are left out")
        target, nontarget = score_trials(self.embeddings, trials)
        if not (len(target) and len(nontarget)):
            more = "raise --debug_batches" if self.debug else "repair the recordings"
            raise RunError(f"{split}: of one kind of trials none can be scored; {more}")
        try:
            return verification_rates(target, nontarget), target, nontarget
        except ValueError as error:
            raise RunError(f"{split}: {error}") from None


def dataio_prep(
    hparams: dict, splits: Mapping[str, list[Utterance]], cache: SpeechCache
) -> tuple[dict, UtteranceReader, PassSampler]:
    """Datasets of the three splits, and what decides on the crops of an epoch and on
    their order.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.
    splits : mapping of str to list of Utterance
        What the manifests hold.
    cache : SpeechCache
        Keeps decoded speech of `train` and `valid`, without data workers.

    Returns
    -------
    datasets : dict
        `train` gives crops and encoded speakers; `valid`, `test` and `cohort` whole
        utterances, the longest first, by the names that the trials know them by or,
        those of `cohort`, a part of `train`, by their IDs.
    train_reader : UtteranceReader
        Of the crops.
    train_sampler : PassSampler
        Of their order.
    """
    rate, seed = hparams["sample_rate"], hparams["seed"]
    if hparams["num_workers"] > 0:
        cache = None  # each worker would have its own, and lose it after the epoch
    shards = dict.fromkeys(splits)
    if hparams["shards"]:
        for split in splits:
            manifest = Path(hparams["manifest_folder"]) / f"{split}.csv"
            shards[split] = ShardReader(
                hparams["shards"], manifest, hparams["shard_cache"]
            )
    speeds = hparams["speaker_speeds"]
    train_reader = UtteranceReader(
        rate, hparams["crop_seconds"], seed, cache, shards["train"], speeds
    )
    readers = {
        "train": train_reader,
        "valid": UtteranceReader(rate, cache=cache, shards=shards["valid"]),
        "test": UtteranceReader(rate, shards=shards["test"]),
        "cohort": UtteranceReader(rate, cache=cache, shards=shards["train"]),
    }
    people = {u.id: u.speaker for u in splits["train"]}
    kept = spread_utterances(people, COHORT_UTTERANCES)
    cohort = [u for u in splits["train"] if u.id in kept]
    datasets = {
        split: make_dataset(utterances, split, readers[split], hparams["data_folder"])
        for split, utterances in {**splits, "cohort": cohort}.items()
    }
    for split in ("valid", "test", "cohort"):
        if shards.get(split):
            shards[split].numbers(datasets[split].data_ids, hparams["max_bad_share"])
        datasets[split] = datasets[split].filtered_sorted(
            sort_key="duration", reverse=True
        )

    label_encoder = hparams["label_encoder"]
    label_encoder.expect_len(hparams["n_speakers"])
    labels = Path(hparams["save_folder"]) / LABELS
    label_encoder.load_or_create(
        path=labels,
        from_iterables=[
            [speaker_at(person, speed) for person in people.values()]
            for speed in speeds
        ],
    )
    put_on_disk(labels)

    @sb.utils.data_pipeline.takes("id", "spk_id")
    @sb.utils.data_pipeline.provides("spk_id_encoded")
    def label_pipeline(utt_id, spk_id):
        speaker = speaker_at(spk_id, train_reader.speed(utt_id))
        return label_encoder.encode_label_torch(speaker)

    datasets["train"].add_dynamic_item(label_pipeline)
    datasets["train"].set_output_keys(["id", "sig", "spk_id_encoded"])
    order = hparams["epochs_per_pass"], seed
    train_sampler = PassSampler(datasets["train"], *order)
    if shards["train"]:
        shard_of = shards["train"].numbers(
            datasets["train"].data_ids, hparams["max_bad_share"]
        )
        train_sampler = ShardSampler(shard_of, *order, hparams["open_shards"])
    return datasets, train_reader, train_sampler


def make_dataset(
    utterances: Sequence[Utterance],
    split: str,
    reader: UtteranceReader,
    data_folder: str,
) -> sb.dataio.dataset.DynamicItemDataset:
    """A dataset that reads its utterances.

    Arguments
    ---------
    utterances : sequence of Utterance
        What it holds.
    split : str
        Those of `valid` and `test` are called by their paths, as in the trials; of the
        others, a file may hold several.
    reader : UtteranceReader
        What reads them.
    data_folder : str
        Where their paths begin.

    Returns
    -------
    DynamicItemDataset
        Gives `id`, `sig` and `name`.
    """
    dataset = sb.dataio.dataset.DynamicItemDataset(
        {
            u.id: {
                "wav": os.path.join(data_folder, u.path),
                "start": u.start,
                "stop": u.stop,
                "duration": u.duration,
                "spk_id": u.speaker,
                "name": u.path if split in ("valid", "test") else u.id,
            }
            for u in utterances
        }
    )

    @sb.utils.data_pipeline.takes("id", "wav", "start", "stop")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(utt_id, wav, start, stop):
        return reader(utt_id, wav, start, stop)

    dataset.add_dynamic_item(audio_pipeline)
    dataset.set_output_keys(["id", "sig", "name"])
    return dataset


def make_train_loader(
    brain: SpeakerBrain,
    dataset: sb.dataio.dataset.DynamicItemDataset,
    sampler: PassSampler,
    options: dict,
) -> DataLoader:
    """Batches of crops; the brain learns how many steps its training has.

    Arguments
    ---------
    brain : SpeakerBrain
        What is trained.
    dataset : DynamicItemDataset
        The crops.
    sampler : PassSampler
        Their order.
    options : dict
        Of any data loader.

    Returns
    -------
    DataLoader

    Raises
    ------
    InputError
        An epoch has too few batches for a step.
    """
    loader = brain.make_dataloader(
        dataset,
        sb.Stage.TRAIN,
        batch_size=brain.hparams.batch_size,
        sampler=sampler,
        # A last batch of one utterance has no batch statistics.
        drop_last=len(sampler) // rank_and_count()[1] > brain.hparams.batch_size,
        **options,
    )
    if brain.train_sampler is None:  # not wrapped for several processes
        brain.train_sampler = sampler
    brain.steps_per_epoch = len(loader) // brain.grad_accumulation_factor
    if brain.steps_per_epoch == 0:
        raise InputError(
            f"--grad_accumulation_factor {brain.grad_accumulation_factor}: an epoch "
            f"has {len(loader)} batches only"
        )
    steps = brain.hparams.number_of_epochs * brain.steps_per_epoch
    # SpeechBrain hands the option over as it was typed.
    brain.total_steps = min(steps, int(brain.optimizer_step_limit or steps))
    return loader


def train(
    hparams_file: str,
    run_opts: RunOptions | None = None,
    overrides: dict | None = None,
    cache: SpeechCache | None = None,
    on_epoch: Callable[[list[dict]], None] | None = None,
    test: bool = True,
) -> dict:
    """Trains one configuration.

    Arguments
    ---------
    hparams_file : str
        A HyperPyYAML file of `hparams/`.
    run_opts : speechbrain.utils.run_opts.RunOptions
        SpeechBrain's run options.
    overrides : dict
        Values for top-level keys of the file.
    cache : SpeechCache
        Decoded speech, and features of `valid`, to share with other trainings of this
        process; of the YAML's `cache_gib` if there is none.
    on_epoch : callable
        Called after each epoch with the rows of all epochs so far (`RunHistory`);
        what it raises ends the training, whose checkpoint is kept.
    test : bool
        False ends after the last epoch: nothing of `test` is read, nothing drawn, no
        model folder and no description of the environment written.

    Returns
    -------
    dict
        What `metrics.json` in the run's folder holds; without `test`, no such part, and
        of `valid` the rates only.

    Raises
    ------
    InputError
        Something that a person has to change.
    RunError
        The run can't be finished.
    """
    run_opts = run_opts or RunOptions()
    hparams, hparams_text, splits, trials = begin_run(
        hparams_file, run_opts, dict(overrides or {}), save_env_desc=test
    )
    if test:
        check_parts(hparams_text)
    if cache is None:
        cache = SpeechCache(hparams["cache_gib"])
    datasets, train_reader, train_sampler = dataio_prep(hparams, splits, cache)
    old_model, frozen = None, []
    if hparams["pretrained"]:
        parts = ("embedding_model", "classifier", "label_encoder")
        old_model = adaptation.start_from(
            hparams["pretrained"], hparams_text, *(hparams[part] for part in parts)
        )
        hparams["averaged_model"].module.load_state_dict(old_model.state_dict())
        frozen = adaptation.freeze(
            hparams["embedding_model"], hparams.get("frozen_blocks", 0)
        )
    brain = SpeakerBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.train_reader = train_reader
    brain.n_train = len(datasets["train"])
    brain.cache = cache
    lines = as_lines(load_plain("hyperparams.yaml", hparams_text))
    brain.features_text = lines["compute_features"]
    brain.trials = trials
    brain.reporter = RunReporter(hparams["output_folder"], draws=test)
    brain.on_epoch = on_epoch
    brain.frozen = frozen
    if old_model is not None:
        old_model.to(brain.device)
        if hparams["distillation"]:
            brain.teacher = old_model

    loader_options = {
        "num_workers": hparams["num_workers"],
        "collate_fn": ReadableBatch,
        "pin_memory": brain.device_type == "cuda",
        "worker_init_fn": outlive_signals,
    }
    train_loader = make_train_loader(
        brain, datasets["train"], train_sampler, loader_options
    )
    eval_options = {"batch_size": hparams["valid_batch_size"], **loader_options}
    with contextlib.closing(brain.reporter):
        brain.fit(
            hparams["epoch_counter"],
            train_loader,
            datasets["valid"],
            valid_loader_kwargs=eval_options,
        )

    if not test:
        history = hparams["history"]
        best = best_row(history.epochs)
        rates = {"eer": best["valid_eer"], "min_dcf": best["valid_min_dcf"]}
        return {"valid": rates} | summary(hparams, history)
    history, scores, backend, drift = evaluate_best(
        brain, datasets, splits, old_model, eval_options
    )
    return finish_run(hparams, hparams_text, history, scores, backend, drift)


def evaluate_best(
    brain: SpeakerBrain,
    datasets: dict,
    splits: dict,
    old_model: torch.nn.Module | None,
    options: dict,
) -> tuple[RunHistory, dict, Backend, dict | None]:
    """Validates and tests the best epoch, and makes of the training speakers what
    scores beyond the cosine need.

    Arguments
    ---------
    brain : SpeakerBrain
        After its training.
    datasets : dict
        `valid`, `test` and `cohort`.
    splits : dict
        Utterances of the manifests.
    old_model : torch.nn.Module | None
        What the run began with, to measure the drift from.
    options : dict
        Of the data loaders.

    Returns
    -------
    history, scores, backend, drift
        As `finish_run` wants them.

    Raises
    ------
    InputError
        With --test_only, nothing is trained.
    """
    if brain.test_only:
        if not brain.checkpointer.find_checkpoint(min_key="eer"):
            raise InputError(
                f"--test_only: {brain.hparams.save_folder} has no checkpoint of a "
                "whole epoch"
            )
        brain.checkpointer.recover_if_possible()  # the latest knows all epochs
    # Evaluation loads the best checkpoint, and with it the history up to there.
    history = copy.deepcopy(brain.hparams.history)
    scores, embeddings = {}, {}
    for split in ("valid", "test", "cohort"):
        brain.evaluate(datasets[split], min_key="eer", test_loader_kwargs=options)
        embeddings[split] = brain.embeddings
        if split in brain.trials:
            scores[split] = brain.verify(split)
    backend = run_on_main(
        fit_backend,
        [
            embeddings["valid"],
            {row.path: row.duration for row in splits["valid"]},
            {row.path: row.speaker for row in splits["valid"]},
            brain.trials["valid"],
            embeddings["cohort"],
            {row.id: row.speaker for row in splits["train"]},
        ],
    )
    drift = None
    if old_model is not None:
        new, brain.checkpointer = embeddings["valid"], None  # to recover nothing
        brain.judged = old_model
        brain.evaluate(datasets["valid"], test_loader_kwargs=options)
        drift = run_on_main(
            adaptation.drift, [brain.embeddings, new, brain.trials["valid"]]
        )
    if isinstance(brain.hparams.classifier, SplitClassifier):
        brain.hparams.classifier.gather_rows()
    return history, scores, backend, drift


def run(argv: list[str]) -> None:
    """Trains as the command line says."""
    if {"-h", "--help"} & {*argv}:
        print(
            f"{__doc__}\nEvery top-level key of the YAML file is an option; its "
            "comment there says what it\ndoes. SpeechBrain's run options are "
            "the same for all files:\n"
        )
    hparams_file, run_opts, overrides = parse_command_line(argv)
    meet_ranks(run_opts)
    if run_opts["debug"] and not run_opts["debug_persistently"]:
        # A few batches shall not take the place of a training, as in SpeechBrain.
        folder = tempfile.mkdtemp(prefix="debug-") if if_main_process() else None
        overrides["output_folder"] = ddp_broadcast(folder)
    if "hpopt" in overrides:
        driven = Driven(overrides)
        metrics = train(hparams_file, run_opts, driven.overrides, test=False)
        driven.report(metrics)
    else:
        with claimed(hparams_file, overrides):
            train(hparams_file, run_opts, overrides)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    return exit_status("train_speaker.py", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
