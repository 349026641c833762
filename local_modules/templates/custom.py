"""Speaker verification with this model's own threshold.

    from speechbrain.inference.interfaces import foreign_class

    verifier = foreign_class(
        source=FOLDER, pymodule_file="custom.py", classname="SpeakerVerifier"
    )
    score, same_speaker = verifier.verify_files("one.wav", "two.wav")

Written with the model: this file contains all parts of it, so that only SpeechBrain and
safetensors have to be installed.
"""

import importlib.util
import sys
import types
from itertools import accumulate

from local_modules.inference.verifier import SpeakerVerifier  # noqa: F401 (for foreign_class)

MODULES = ()  # the project's names of the parts in this file


def _stand_in_for(names):
    """hyperparams.yaml names the parts by the modules of the project that trained the
    model; where that is not installed, this file takes the place of its modules."""
    try:
        specs = [importlib.util.find_spec(name) for name in names]
    except ImportError:
        specs = []
    # Another model's stand-in has another name in its spec.
    if [spec and spec.name for spec in specs] != list(names):
        levels = [accumulate(name.split("."), "{}.{}".format) for name in names]
        for name in sorted({name for level in levels for name in level}):
            module = types.ModuleType(name)
            module.__dict__.update(globals())
            module.__name__ = name
            sys.modules[name] = module
            package, _, last = name.rpartition(".")
            if package:
                setattr(sys.modules[package], last, module)


_stand_in_for(MODULES)
