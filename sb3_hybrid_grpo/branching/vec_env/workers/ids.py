"""Ids of Gymnasium, which processes that start anew do not know."""

import pickle
from collections.abc import Mapping
from contextlib import suppress

import gymnasium as gym
from stable_baselines3.common.vec_env.base_vec_env import CloudpickleWrapper

_KNOWN_EVERYWHERE = "gymnasium."


def ids_of_this_process() -> dict[str, bytes]:
    """
    Pack what was registered here.

    :return: the specifications, pickled, of ids that Gymnasium itself does not bring along
    """
    packed = {}
    for env_id, spec in gym.registry.items():
        if not str(spec.entry_point).startswith(_KNOWN_EVERYWHERE):
            # One that cannot be sent is missed by those alone who use it there, and Gymnasium says so.
            with suppress(Exception):
                packed[env_id] = pickle.dumps(CloudpickleWrapper(spec))
    return packed


def register_ids(packed: Mapping[str, bytes]) -> None:
    """
    Register in this process what was registered in another one.

    :param packed: see ``ids_of_this_process``
    """
    for env_id, spec in packed.items():
        if env_id not in gym.registry:
            with suppress(Exception):
                gym.registry[env_id] = pickle.loads(spec).var
