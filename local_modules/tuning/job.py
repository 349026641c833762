"""The settings shared by the processes of a study."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import distribution_to_json
from speechbrain.utils.run_opts import RunOptions

from local_modules import config
from local_modules.command_line import parse_command_line
from local_modules.distributed import rank_and_count
from local_modules.files import sha256
from local_modules.training.continuing import RUN_OPTIONS
from local_modules.tuning.search import Search
from local_modules.tuning.storage import open_study

# Paths, and what a machine has room for, may differ between machines.
FREE_KEYS = {
    "data_folder",
    "output_folder",
    "manifest_folder",
    "save_folder",
    "shards",
    "shard_cache",
    "num_workers",
    "valid_batch_size",
    "cache_gib",
    "checkpointer",  # holds such a folder
}
OPTIONS = RUN_OPTIONS | {"optimizer_step_limit"}


@dataclass(frozen=True)
class Job:
    """The settings shared by the processes of a study.

    Arguments
    ---------
    recipe, search_file : str
        The recipe and what is searched in it.
    arguments : tuple of str
        Command-line arguments with SpeechBrain's run options.
    overrides : dict
        Overrides for every trial, including the proxy's.
    search : Search
        What is searched.
    folder : Path
        The study's folder, of this machine.
    name : str
        Name of the study.
    storage : str | None
        URL of a database, or None for the journal in the folder.
    n_trials : int
        Number of trials of a complete study.
    deadline : float | None
        Seconds since the epoch after which no trial but the first is begun.
    cache_gib : float
        GiB of decoded speech that a process keeps for all its trials.
    seed : int
        Seed of the samplers.
    """

    recipe: str
    search_file: str
    arguments: tuple[str, ...]
    overrides: dict
    search: Search
    folder: Path
    name: str
    storage: str | None
    n_trials: int
    deadline: float | None
    cache_gib: float
    seed: int

    def settings(self) -> dict:
        """The settings shared by the trials of a study."""
        texts, run_opts = config.texts(self.recipe, self.overrides), self.run_opts()
        trials = Path(self.overrides.get("trials") or "")
        if trials.is_file():  # wherever it is
            texts["trials"] = f"of SHA-256 {sha256(trials)[:12]}"
        options = {name: run_opts[name] for name in sorted(OPTIONS)}
        return {
            "recipe": {k: v for k, v in texts.items() if k not in FREE_KEYS},
            # Each process has a batch of its own.
            "option": {**options, "processes": rank_and_count()[1]},
            "searched": {
                key: distribution_to_json(distribution)
                for key, distribution in self.search.space.items()
            },
            "objectives": self.search.objectives,
        }

    def run_opts(self) -> RunOptions:
        """SpeechBrain's run options for the trials."""
        arguments = [self.recipe, *self.arguments, "--noprogressbar"]
        return parse_command_line(arguments)[1]

    def command(self, recipe: str) -> list[str]:
        """The command that trains a recipe like the trials: on as many processes, and
        with the run options that affect the result."""
        n_processes = rank_and_count()[1]
        words, names = ["python"], OPTIONS
        if n_processes > 1:
            words = ["torchrun", "--nproc_per_node", str(n_processes)]
            names = names | {"distributed_backend"}
        words += ["train_speaker.py", recipe]
        given, usual = self.run_opts(), RunOptions()
        for name in sorted(names):
            if given[name] != usual[name]:
                words.append(f"--{name}")
                words += [] if given[name] is True else [str(given[name])]
        return words

    def open_study(self) -> optuna.Study:
        """The study of this job."""
        n_objectives = len(self.search.objectives)
        return open_study(self.storage, self.folder, self.name, n_objectives)
