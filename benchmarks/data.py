#!/usr/bin/env python3
"""Augmented crops per second on one core, and how long a step waits for them.

    python benchmarks/data.py [--files 400] [--rounds 5] [--epochs 3] [--key value ...]

Makes its own corpus in a temporary folder (`TMPDIR`): WAV files of 8 s, as VoxCeleb's,
noises of 10 s and room responses of half a second. One thread reads crops of 3 s, from
the files, from shards (of FLAC, or of the same bytes) and from memory, and adds noise
and reverberation to each; so does the loader of SpeechBrain's VoxCeleb recipe with its
own augmentation. Loaders take turns within a round; times are medians of CPU time
(files just written are in the page cache).

Then hparams/conformer.yaml, with the keys given, is trained on the same files, to
measure the share of a step that goes to waiting for data and to augmenting it.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import speechbrain as sb
import torch
from speechbrain.augment import time_domain
from speechbrain.augment.augmenter import Augmenter
from speechbrain.augment.preparation import write_csv
from speechbrain.dataio import audio_io
from speechbrain.dataio.dataloader import SaveableDataLoader, make_dataloader
from speechbrain.dataio.encoder import CategoricalEncoder
from tqdm import trange

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train_speaker  # noqa: E402
from benchmarks.measuring import markdown, show  # noqa: E402
from local_modules.audio import ReadableBatch, SpeechCache  # noqa: E402
from local_modules.augmentation.waveforms import AddNoise, AddReverb  # noqa: E402
from local_modules.command_line import parse_command_line  # noqa: E402
from local_modules.config import check_overrides, load_hparams  # noqa: E402
from local_modules.errors import (  # noqa: E402
    InputError,
    LineParser,
    check_positive,
    exit_status,
)
from local_modules.manifest import Utterance, read_manifest, write_manifest  # noqa: E402
from local_modules.shards.packing import pack  # noqa: E402
from local_modules.trials import draw_trials, write_trials  # noqa: E402

FOLDER = Path("results/benchmarks/data")
RECIPE = str(ROOT / "hparams" / "conformer.yaml")
RATE = 16000
FILE_SECONDS, CROP_SECONDS = 8, 3.0
UTTERANCES = 10  # per speaker
N_NOISES, NOISE_SECONDS = 50, 10
N_ROOMS = 50
MANIFESTS = "manifests"
PER_SHARD = 100
BATCH = 32  # of SpeechBrain's recipe
OWN_KEYS = {"data_folder", "manifest_folder", "output_folder", "skip_prep"}
OWN_KEYS |= {"number_of_epochs", "augment_prob", "noise_folder", "rir_folder"}
OWN_KEYS |= {"cache_gib", "num_workers"}
THEIRS = "SpeechBrain's VoxCeleb recipe, files"


def make_corpus(folder: Path, n_files: int) -> None:
    """`speech/`, `noise/` and `rooms/`, with a manifest of each split."""
    rng = np.random.default_rng(0)
    for name in ("speech", "noise", "rooms", MANIFESTS):
        (folder / name).mkdir()
    time_axis = np.arange(FILE_SECONDS * RATE) / RATE
    rows = []
    for number in range(n_files):
        # Harmonics that rise and fall as syllables do, in noise.
        pitch = rng.uniform(90, 250)
        wave = sum(np.sin(2 * np.pi * k * pitch * time_axis) / k for k in range(1, 20))
        wave *= 0.1 + np.sin(4 * np.pi * (time_axis + rng.uniform())) ** 2
        wave = 0.1 * wave + 0.01 * rng.standard_normal(len(wave))
        path = f"{number}.wav"
        soundfile.write(folder / "speech" / path, wave, RATE)
        speaker = f"s{number // UTTERANCES}"
        rows.append(Utterance(path, FILE_SECONDS, path, 0, len(wave), speaker))
    held_out = 2 * UTTERANCES  # two speakers for each of the other splits
    for split, part in (
        ("train", rows[: -2 * held_out]),
        ("valid", rows[-2 * held_out : -held_out]),
        ("test", rows[-held_out:]),
    ):
        write_manifest(folder / MANIFESTS / f"{split}.csv", part)
        if split != "train":
            trials = draw_trials({row.path: row.speaker for row in part}, seed=0)
            write_trials(folder / MANIFESTS / f"{split}_trials.txt", trials)
    for number in range(N_NOISES):
        noise = rng.uniform(-0.1, 0.1, NOISE_SECONDS * RATE)
        soundfile.write(folder / "noise" / f"{number}.wav", noise, RATE)
    decay = np.exp(-np.arange(RATE // 2) / (0.05 * RATE))
    for number in range(N_ROOMS):
        response = 0.2 * decay * rng.standard_normal(len(decay))
        response[20] = 0.9
        soundfile.write(folder / "rooms" / f"{number}.wav", response, RATE)


def crops_of_speechbrain(folder: Path) -> tuple[Callable[[], Iterator], Augmenter]:
    """The data loader of its VoxCeleb recipe, composed as in the recipe."""
    length = int(CROP_SECONDS * RATE)
    data = sb.dataio.dataset.DynamicItemDataset.from_csv(
        folder / MANIFESTS / "train.csv", {"data_root": str(folder / "speech")}
    )
    encoder = CategoricalEncoder()

    @sb.utils.data_pipeline.takes("wav", "start", "stop", "duration")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav, start, stop, duration):
        first = random.randint(0, int(duration * RATE) - length)
        sig, _ = audio_io.load(wav, num_frames=length, frame_offset=first)
        return sig.transpose(0, 1).squeeze(1)

    @sb.utils.data_pipeline.takes("spk_id")
    @sb.utils.data_pipeline.provides("spk_id", "spk_id_encoded")
    def label_pipeline(spk_id):
        yield spk_id
        yield encoder.encode_sequence_torch([spk_id])

    data.add_dynamic_item(audio_pipeline)
    data.add_dynamic_item(label_pipeline)
    encoder.update_from_didataset(data, output_key="spk_id")
    data.set_output_keys(["id", "sig", "spk_id_encoded"])
    for name in ("noise", "rooms"):
        files = [str(path) for path in sorted((folder / name).glob("*.wav"))]
        write_csv(files, folder / f"{name}.csv")
    noise = time_domain.AddNoise(str(folder / "noise.csv"), snr_low=0, snr_high=15)
    reverb = time_domain.AddReverb(str(folder / "rooms.csv"))
    loader = make_dataloader(data, batch_size=BATCH, shuffle=True)
    return lambda: iter(loader), both(noise, reverb)


def crops_of_ours(
    folder: Path, shards: Path | None, cache_gib: float
) -> Callable[[], Iterator]:
    """Our training's data loader, in the order of another epoch each time."""
    splits = {
        split: read_manifest(folder / MANIFESTS / f"{split}.csv")
        for split in ("train", "valid", "test")
    }
    values = {
        "data_folder": str(folder / "speech"),
        "manifest_folder": str(folder / MANIFESTS),
        "output_folder": str(folder / "run"),
        "shards": shards and str(shards),
        "crop_seconds": CROP_SECONDS,
        "n_speakers": len({row.speaker for row in splits["train"]}),
    }
    hparams = load_hparams(RECIPE, values)
    Path(hparams["save_folder"]).mkdir(parents=True, exist_ok=True)
    cache = SpeechCache(cache_gib)
    datasets, reader, sampler = train_speaker.dataio_prep(hparams, splits, cache)
    loader = SaveableDataLoader(
        datasets["train"], batch_size=BATCH, sampler=sampler, collate_fn=ReadableBatch
    )

    def epoch() -> Iterator:
        sampler.set_epoch(sampler.epoch + 1)
        reader.set_epoch(sampler.epoch)
        return iter(loader)

    return epoch


def both(noise: torch.nn.Module, reverb: torch.nn.Module) -> Augmenter:
    """Adds noise and reverberation to each crop."""
    return Augmenter(
        min_augmentations=2, max_augmentations=2, augmentations=[noise, reverb]
    )


def seconds_a_crop(
    epoch: Callable[[], Iterator], augment: Callable
) -> tuple[float, float]:
    """CPU seconds to read a crop, and to augment it."""
    read = augmented = n_crops = 0
    start = time.process_time()
    for batch in epoch():
        wavs, lens = batch.sig
        middle = time.process_time()
        read += middle - start
        augment(wavs, lens)
        start = time.process_time()
        augmented += start - middle
        n_crops += len(wavs)
    return read / n_crops, augmented / n_crops


def one_by_one(augment: Augmenter) -> Callable:
    """Augments as a data worker would, a crop at a time."""

    def loop(wavs, lens):
        pairs = zip(wavs.split(1), lens.split(1), strict=True)
        return torch.cat([augment(*pair)[0] for pair in pairs])

    return loop


def speed_table(folder: Path, rounds: int) -> str:
    """Crops per second by loader."""
    theirs, their_augment = crops_of_speechbrain(folder)
    speech, flac, wav = (folder / name for name in ("speech", "flac", "wav"))
    for manifest in (folder / MANIFESTS).glob("*.csv"):
        pack(manifest, speech, flac, PER_SHARD)
        pack(manifest, speech, wav, PER_SHARD, original=True)
    from_memory = crops_of_ours(folder, None, 4.0)
    ours = both(
        AddNoise(RATE, str(folder / "noise")), AddReverb(RATE, str(folder / "rooms"))
    )
    simulated = both(AddNoise(RATE), AddReverb(RATE))
    loaders = {
        THEIRS: (theirs, their_augment),
        "ours, files": (crops_of_ours(folder, None, 0.0), ours),
        "ours, shards of FLAC": (crops_of_ours(folder, flac, 0.0), ours),
        "ours, shards of WAV": (crops_of_ours(folder, wav, 0.0), ours),
        "ours, memory": (from_memory, ours),
        "ours, memory, simulated noise and rooms": (from_memory, simulated),
        "ours, memory, augmented one by one": (from_memory, one_by_one(ours)),
    }
    found = {name: [] for name in loaders}
    for number in trange(rounds + 1, desc="Rounds"):
        for name, (epoch, augment) in loaders.items():
            seconds = seconds_a_crop(epoch, augment)
            if number:  # the first fills the caches
                found[name].append(seconds)
    medians = {name: np.median(pairs, axis=0) for name, pairs in found.items()}
    rows = [
        [
            name,
            f"{1 / read:.0f}",
            f"{1 / (read + augment):.0f}",
            f"{sum(medians[THEIRS]) / (read + augment):.1f}",
        ]
        for name, (read, augment) in medians.items()
    ]
    heading = ["crops of 3 s per second, one core", "read", "and augmented", "ratio"]
    return markdown(heading, rows)


class TimedBrain(train_speaker.SpeakerBrain):
    """Measures the time of waiting for data and of augmenting it."""

    sums = {}  # by epoch, of the last training

    def on_fit_start(self):
        super().on_fit_start()
        augment = self.hparams.wav_augment.forward

        def timed_augment(*args):
            start = time.perf_counter()
            augmented = augment(*args)
            self.add("augmenting", time.perf_counter() - start)
            return augmented

        self.hparams.wav_augment.forward = timed_augment
        self.sums.clear()

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.last = time.perf_counter()

    def on_fit_batch_start(self, batch, should_step):
        self.add("waiting", time.perf_counter() - self.last)
        super().on_fit_batch_start(batch, should_step)

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        self.add("steps", 1)
        # From the end of a step to that of the next.
        now = time.perf_counter()
        self.add("all", now - self.last)
        self.last = now

    def add(self, what, amount):
        """Adds to a sum of this epoch."""
        counts = self.sums.setdefault(self.hparams.epoch_counter.current, Counter())
        counts[what] += amount


def waiting_table(folder: Path, epochs: int, keys: list[str]) -> str:
    """Shares of a training step."""
    train_speaker.SpeakerBrain = TimedBrain
    trainings = {
        "the recipe": {},
        "every batch augmented": {
            "augment_prob": 1.0,
            "noise_folder": folder / "noise",
            "rir_folder": folder / "rooms",
        },
        "nothing kept in memory": {"cache_gib": 0.0},
        "nothing kept in memory, a data worker": {"cache_gib": 0.0, "num_workers": 1},
    }
    rows = []
    for number, (name, changes) in enumerate(trainings.items()):
        values = {
            "data_folder": folder / "speech",
            "manifest_folder": folder / MANIFESTS,
            "output_folder": folder / f"run{number}",
            "skip_prep": True,
            "number_of_epochs": epochs,
            **changes,
        }
        words = [str(word) for key in values for word in (f"--{key}", values[key])]
        parsed = parse_command_line([RECIPE, *words, *keys, "--noprogressbar"])
        train_speaker.train(*parsed, test=False)
        first, *later = TimedBrain.sums.values()
        for epoch, sums in (("first", first), ("later", sum(later, Counter()))):
            rows.append(
                [
                    name,
                    epoch,
                    f"{1000 * sums['all'] / sums['steps']:.0f} ms",
                    f"{sums['waiting'] / sums['all']:.1%}",
                    f"{sums['augmenting'] / sums['all']:.1%}",
                ]
            )
    heading = ["training", "epoch", "a step", "waiting for data", "augmenting"]
    return markdown(heading, rows)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of this program; `rest` is for the recipe."""
    parser = LineParser(
        prog="benchmarks/data.py",
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--files", type=int, default=400, help="of the corpus")
    add("--rounds", type=int, default=5, help="of which the median is shown")
    add("--epochs", type=int, default=3, help="of each training, 2 or more")
    options, options.rest = parser.parse_known_args(argv)
    check_positive(options, "files", "rounds")
    if options.files < 6 * UTTERANCES:  # two speakers in each split
        raise InputError(f"--files {options.files}: has to be {6 * UTTERANCES} or more")
    if options.epochs < 2:
        raise InputError(f"--epochs {options.epochs}: has to be 2 or more")
    _, _, given = parse_command_line([RECIPE, *options.rest])
    check_overrides(RECIPE, given)
    for key in given.keys() & OWN_KEYS:
        raise InputError(f"--{key}: is set by the benchmark; leave it out")
    return options


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    return exit_status("benchmarks/data.py", lambda: run(parse(argv)), stopped="")


def run(options: argparse.Namespace) -> None:
    """Measures and shows."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder, options.files)
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        tables = [speed_table(folder, options.rounds)]
        torch.set_num_threads(n_threads)
        tables.append(waiting_table(folder, options.epochs, options.rest))
    show("\n\n".join(tables), FOLDER / "data.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
