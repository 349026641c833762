"""Imported by the processes of the tests, and by the server of which those of whole
programs are forked: what they share."""

import functools
import gc

# Two that a training imports when it comes to them.
import sklearn.discriminant_analysis  # noqa: F401
import torch._dynamo  # noqa: F401
from speechbrain.utils import logger

import tune

# Each training tells of the packages that are installed, which takes longer than most
# trainings of the tests. They are the same ones in all of them.
described = functools.cache(logger.get_environment_description)
described()
logger.get_environment_description = tune.get_environment_description = described
# What is here now is here for good: no process need look through it again.
gc.freeze()
