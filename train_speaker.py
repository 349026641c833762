#!/usr/bin/env python3
"""Trains a speaker-verification system and measures its equal error rate.

    python train_speaker.py hparams/conformer.yaml [--key value ...]

Prepares the corpus, trains, validates each epoch by the equal error rate (EER) on
held-out speakers, tests the best epoch once, and writes a folder that SpeechBrain's
`EncoderClassifier` loads. The same command resumes a stopped run.

To read this file, begin with `train()`, then `SpeakerBrain`.
"""

import contextlib
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import speechbrain as sb
import torch
from speechbrain.utils.distributed import (
    ddp_broadcast,
    if_main_process,
    run_on_main,
)
from speechbrain.utils.run_opts import RunOptions

from local_modules.audio import ReadableBatch, SpeechCache, UtteranceReader, speaker_at
from local_modules.class_parallel import split_classifiers
from local_modules.command_line import parse_command_line
from local_modules.corpus import overview
from local_modules.distributed import gather_on_first, meet_ranks, on_first
from local_modules.errors import exit_status
from local_modules.files import put_on_disk
from local_modules.inference.model_folder import check_parts
from local_modules.manifest import Utterance
from local_modules.masking import pad_to_multiple
from local_modules.training import adaptation
from local_modules.training.brain import RepeatableBrain, memory_told
from local_modules.training.datasets import make_datasets
from local_modules.training.finish import finish_run, summary
from local_modules.training.history import best_row
from local_modules.training.report import RunReporter
from local_modules.training.run import LABELS, begin_run, claimed
from local_modules.training.sampling import PassSampler, ShardSampler
from local_modules.training.stopping import outlive_signals
from local_modules.training.unreadable import UnreadableRecordings
from local_modules.training.validation import verify
from local_modules.tuning.hpopt import Driven
from local_modules.yaml_trees import as_lines, load_plain


class SpeakerBrain(RepeatableBrain):
    """Trains by classifying the training speakers, validates by verifying others.

    `train` sets the attributes that a Brain lacks: `train_reader` (chooses the crops),
    `unreadable`, `cache`, `features_text` (the features' YAML), `trials` by split,
    `reporter` and, optionally, `on_epoch` and the `teacher` whose embeddings to stay
    close to. Validation, test and the saved model use `eval_model`, the weights of
    `averaged_model`; `finish_run` also evaluates the model that a run started from.
    """

    on_epoch = teacher = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.eval_model = self.hparams.averaged_model.to(self.device)

    def compute_forward(self, batch, stage):
        """Waveforms to speaker embeddings, [batch, 1, emb_dim]."""
        batch = batch.to(self.device, non_blocking=True)
        if stage == sb.Stage.TRAIN:
            # In bf16, filters add noise, and a GPU can't compute Fourier transforms.
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
        return self.eval_model(feats, lens)

    def whole_features(self, batch, stage):
        """Features of whole utterances, [batch, frames, mels], and relative lengths.

        Those of `valid` are the same in every epoch and every training that shares the
        cache. A GPU computes them faster than it could copy them from memory.
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
        """The margin loss in training; otherwise collects embeddings for the trials."""
        if stage != sb.Stage.TRAIN:
            vectors = embeddings.squeeze(1).float().cpu()
            self.embeddings.update(zip(batch.name, vectors, strict=True))
            return torch.zeros(())
        targets = batch.spk_id_encoded.data
        for augment in (self.hparams.wav_augment, self.hparams.feats_augment):
            targets = augment.replicate_labels(targets)  # as often as the crops
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
        """Reports the epochs that an earlier process completed."""
        super().on_fit_start()
        self.frozen = adaptation.frozen_modules(self.modules)
        if self.on_epoch is not None and self.hparams.history.epochs:
            # That process may have been killed after the checkpoint, before the report.
            self.on_epoch(self.hparams.history.epochs)

    def on_fit_batch_start(self, batch, should_step):
        """Sets the margin, and keeps frozen modules in evaluation mode."""
        self.unreadable.check(batch, self.device)
        super().on_fit_batch_start(batch, should_step)
        # Here, as SpeechBrain puts all modules into training mode in each epoch.
        for module in self.frozen:
            module.eval()
        self.margin_share = self.hparams.margin_schedule(self.progress)

    def fit_batch(self, batch):
        """Restores the batch norms' statistics after a batch with a non-finite loss,
        even if no optimizer step follows, as at the end of an epoch."""
        loss = super().fit_batch(batch)
        if not torch.isfinite(loss):
            self.hparams.averaged_model.restore_buffers(self.hparams.embedding_model)
        return loss

    def optimizers_step(self):
        """Updates the averaged model after the step."""
        super().optimizers_step()
        model, averaged = self.hparams.embedding_model, self.hparams.averaged_model
        if not self.gradient_is_finite:
            averaged.restore_buffers(model)
        averaged.update_parameters(model)

    def evaluate_batch(self, batch, stage):
        """Skips a batch without a readable recording; it may have held only one."""
        if batch.is_empty:
            return torch.zeros(())
        return super().evaluate_batch(batch, stage)

    def on_stage_start(self, stage, epoch=None):
        """Advances to the crops of this epoch, or starts collecting embeddings."""
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
                    * getattr(self.hparams.loss, "angular_margin", 0.0),
                    "valid_eer": metrics["eer"],
                    "valid_min_dcf": metrics["min_dcf"],
                    "seconds": history.seconds,
                    "budget_used": self.budget_used(history.seconds),
                }
            )
            self.checkpointer.save_and_keep_only(
                meta={"epoch": epoch, "eer": metrics["eer"]}, min_keys=["eer"]
            )
            run_on_main(self.reporter.report, [history.epochs, history.best_epoch])
            if self.on_epoch is not None:
                self.on_epoch(history.epochs)

    def verify(self, split):
        """Scores the trials of a split with the embeddings just collected: on the first
        rank, which has them all. Returns the result on every rank."""
        return on_first(
            verify,
            split,
            self.embeddings,
            self.trials[split],
            self.hparams.max_bad_share,
            self.debug,
        )


def dataio_prep(
    hparams: dict, splits: Mapping[str, list[Utterance]], cache: SpeechCache
) -> tuple[dict, UtteranceReader, PassSampler]:
    """Datasets of the splits, and the reader and the sampler of the training crops.

    Arguments
    ---------
    hparams, splits, cache
        See `make_datasets`.

    Returns
    -------
    datasets : dict
        `train` gives crops and encoded speakers; `valid`, `test` and `cohort`, a part
        of `train`, whole utterances, the longest first, named as in the trials or, in
        `cohort`, by ID.
    train_reader : UtteranceReader
        Chooses and reads the crops.
    train_sampler : PassSampler
        Decides their order.
    """
    datasets, train_reader, train_shards = make_datasets(hparams, splits, cache)
    label_encoder = hparams["label_encoder"]
    label_encoder.expect_len(hparams["n_speakers"])
    labels = Path(hparams["save_folder"]) / LABELS
    label_encoder.load_or_create(
        path=labels,
        from_iterables=[
            [speaker_at(row.speaker, speed) for row in splits["train"]]
            for speed in hparams["speaker_speeds"]
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
    order = hparams["epochs_per_pass"], hparams["seed"]
    if train_shards is None:
        train_sampler = PassSampler(datasets["train"], *order)
    else:
        shard_of = train_shards.numbers(
            datasets["train"].data_ids, hparams["max_bad_share"]
        )
        train_sampler = ShardSampler(shard_of, *order, hparams["open_shards"])
    return datasets, train_reader, train_sampler


@memory_told()
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
        Decoded speech, and features of `valid`, to share with other trainings in this
        process; default: a new one of the YAML's `cache_gib`.
    on_epoch : callable
        Called after each epoch with the rows of all epochs so far (`RunHistory`); an
        exception from it ends the training and keeps the checkpoint.
    test : bool
        False ends after the last epoch: `test` is not read, and no plots, model folder
        or description of the environment are written.

    Returns
    -------
    dict
        The contents of `metrics.json` in the run's folder; if `test` is False, without
        that part, and of `valid` only the rates.

    Raises
    ------
    InputError
        A user error.
    RunError
        The run can't be finished.
    """
    run_opts = run_opts or RunOptions()
    hparams, hparams_text, splits, trials = begin_run(
        hparams_file, run_opts, dict(overrides or {})
    )
    sb.create_experiment_directory(hparams["output_folder"], save_env_desc=test)
    if test:
        check_parts(hparams_text)
        run_on_main(print, [overview(splits, trials)])
    if cache is None:
        cache = SpeechCache(hparams["cache_gib"])
    datasets, train_reader, train_sampler = dataio_prep(hparams, splits, cache)
    old_model = None
    if hparams["pretrained"]:
        parts = ("embedding_model", "classifier", "label_encoder")
        old_model = adaptation.start_from(
            hparams["pretrained"], *(hparams[part] for part in parts)
        )
        hparams["averaged_model"].module.load_state_dict(old_model.state_dict())
        adaptation.freeze(hparams["embedding_model"], hparams.get("frozen_blocks", 0))
    brain = SpeakerBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    brain.train_reader = train_reader
    brain.unreadable = UnreadableRecordings(
        len(datasets["train"]), hparams["max_bad_share"], hparams["output_folder"]
    )
    brain.cache = cache
    lines = as_lines(load_plain("hyperparams.yaml", hparams_text))
    brain.features_text = lines["compute_features"]
    brain.trials = trials
    brain.reporter = RunReporter(hparams["output_folder"], draws=test)
    brain.on_epoch = on_epoch
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
    train_loader = brain.train_loader(
        datasets["train"], train_sampler, **loader_options
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
    return finish_run(
        brain, hparams, hparams_text, datasets, splits, old_model, eval_options
    )


def run(argv: list[str]) -> None:
    """Trains as the command line says."""
    if {"-h", "--help"} & {*argv}:
        print(
            f"{__doc__}\nEvery top-level key of the YAML file is an option; its "
            "comment there says what it\ndoes. SpeechBrain's run options are "
            "the same for all files:\n"
        )
    # For messages about the corpus, before SpeechBrain sets up its log.
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # That one of a recipe's two augmenters has nothing to do is no news.
    logging.getLogger("speechbrain.augment.augmenter").addFilter(
        lambda record: "list is empty" not in record.getMessage()
    )
    hparams_file, run_opts, overrides = parse_command_line(argv)
    meet_ranks(run_opts)
    if run_opts["debug"] and not run_opts["debug_persistently"]:
        # As in SpeechBrain, a few batches must not overwrite a training.
        folder = tempfile.mkdtemp(prefix="debug-") if if_main_process() else None
        overrides["output_folder"] = ddp_broadcast(folder)
    if "hpopt" in overrides:
        driven = Driven(overrides)
        with claimed(hparams_file, driven.overrides):
            metrics = train(hparams_file, run_opts, driven.overrides, test=False)
        driven.report(metrics)
    else:
        with claimed(hparams_file, overrides):
            train(hparams_file, run_opts, overrides)


def main(argv: list[str]) -> int:
    """Runs the command line.

    Returns
    -------
    int
        Exit status: 0, 1 for a failed run, 2 for wrong usage, 130 for Ctrl-C.
    """
    return exit_status("train_speaker.py", lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
