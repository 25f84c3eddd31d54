"""
GRPO's settings for the RL Zoo: those of Hybrid GRPO without the arguments that only Hybrid GRPO has.

The Zoo runs this file and reads the variable ``hyperparams``.
"""

import inspect
from importlib.resources import files

import yaml

from sb3_hybrid_grpo import GRPO, HybridGRPO

_foreign = set(inspect.signature(HybridGRPO).parameters) - set(inspect.signature(GRPO).parameters)

hyperparams = {
    env_id: {name: value for name, value in entry.items() if name not in _foreign}
    for env_id, entry in yaml.safe_load(files("sb3_hybrid_grpo.hyperparams").joinpath("hybrid_grpo.yml").read_text()).items()
}
