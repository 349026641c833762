"""How SpeechBrain loads a model folder whose weights are safetensors, not pickles."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from speechbrain.processing.features import InputNormalization
from speechbrain.utils.fetching import FetchSource
from speechbrain.utils.parameter_transfer import Pretrainer


class FolderPretrainer(Pretrainer):
    """SpeechBrain's `Pretrainer` for files of any name. SpeechBrain's finds only
    `<loadable>.ckpt` in a folder or on a hub, and other names only at fixed paths.

    Arguments
    ---------
    loadables : mapping
        Objects by name, as for `Pretrainer`.
    files : mapping of str to str
        File names by loadable, in the folder of the YAML file.
    custom_hooks : mapping
        Functions that load them, as for `Pretrainer`.

    Example
    -------
    >>> import torch
    >>> from safetensors.torch import load_model, save_model
    >>> folder = getfixture("tmp_path")
    >>> old, new = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> save_model(old, str(folder / "net.safetensors"))
    >>> pretrainer = FolderPretrainer(
    ...     {"net": new}, {"net": "net.safetensors"}, {"net": load_model}
    ... )
    >>> _ = pretrainer.collect_files(str(folder))
    >>> pretrainer.load_collected()
    >>> torch.equal(old.weight, new.weight)
    True
    """

    def __init__(self, loadables: Mapping, files: Mapping, custom_hooks: Mapping):
        super().__init__(loadables=loadables, custom_hooks=custom_hooks)
        self.files = files

    def collect_files(self, default_source=None, **options) -> dict:
        """As in SpeechBrain: fetches what is to be loaded from a folder or a hub.

        Arguments
        ---------
        default_source : str or Path or FetchSource
            The folder, or a name on a hub.
        **options
            Passed on.

        Returns
        -------
        dict
            Local paths by loadable.
        """
        for name, file in self.files.items():
            if isinstance(default_source, FetchSource):
                kind, source = default_source
                path = FetchSource(kind, f"{source}/{file}")
            else:
                path = f"{default_source}/{file}"
            self.add_paths({name: path})
        return super().collect_files(default_source, **options)


def load_statistics(normalization: InputNormalization, path: str | Path) -> None:
    """Loads the mean and the standard deviation of a normalisation from a file."""
    statistics = load_file(str(path))
    normalization.count = 1
    normalization.glob_mean = statistics["glob_mean"]
    normalization.glob_std = statistics["glob_std"]
