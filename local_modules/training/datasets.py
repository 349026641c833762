"""SpeechBrain datasets made from manifests."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import speechbrain as sb
from speechbrain.dataio.dataset import DynamicItemDataset

from local_modules.audio import SpeechCache, UtteranceReader
from local_modules.evaluation.backend import COHORT_UTTERANCES
from local_modules.manifest import Utterance, spread_utterances
from local_modules.shards.reading import ShardReader


def make_datasets(
    hparams: dict, splits: Mapping[str, list[Utterance]], cache: SpeechCache
) -> tuple[dict[str, DynamicItemDataset], UtteranceReader, ShardReader | None]:
    """Datasets that read the speech of the three splits, and of a part of `train`.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.
    splits : mapping of str to list of Utterance
        The utterances of the manifests.
    cache : SpeechCache
        Keeps decoded speech of `train` and `valid`; unused with data workers.

    Returns
    -------
    datasets : dict
        `train` gives crops; `valid`, `test` and `cohort` give whole utterances, the
        longest first. `cohort` is the part of `train` used for score normalisation
        and PLDA.
    train_reader : UtteranceReader
        Reads the crops.
    train_shards : ShardReader | None
        Where they are read from, if not from files.
    """
    rate = hparams["sample_rate"]
    if hparams["num_workers"] > 0:
        cache = None  # each worker would have its own, and lose it after the epoch
    shards = dict.fromkeys(splits)
    if hparams["shards"]:
        for split in splits:
            manifest = Path(hparams["manifest_folder"]) / f"{split}.csv"
            shards[split] = ShardReader(
                hparams["shards"], manifest, hparams["shard_cache"]
            )
    readers = {
        "train": UtteranceReader(
            rate,
            hparams["crop_seconds"],
            hparams["seed"],
            cache,
            shards["train"],
            hparams["speaker_speeds"],
        ),
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
    return datasets, readers["train"], shards["train"]


def make_dataset(
    utterances: Sequence[Utterance],
    split: str,
    reader: UtteranceReader,
    data_folder: str,
) -> DynamicItemDataset:
    """A dataset that reads its utterances.

    Arguments
    ---------
    utterances : sequence of Utterance
        What it holds.
    split : str
        In `valid` and `test`, utterances are named by path, as in the trials; in
        others by ID, because a file may hold several.
    reader : UtteranceReader
        Reads them.
    data_folder : str
        Root of their paths.

    Returns
    -------
    DynamicItemDataset
        Gives `id`, `sig` and `name`.
    """
    dataset = DynamicItemDataset(
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
