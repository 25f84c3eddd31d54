"""What random actions earn: the zero of normalised scores, measured once per environment."""

import importlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import gymnasium as gym
import numpy as np

from benchmarks import HERE

SCORES = HERE / "random_scores.json"
EPISODES = 100


def random_score(env_id: str) -> float:
    """
    Act at random.

    :param env_id: environment id
    :return: mean return of uniformly distributed actions
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    env = gym.make(name)
    env.action_space.seed(0)
    returns = np.zeros(EPISODES)
    for episode in range(EPISODES):
        env.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            returns[episode] += float(reward)
            over = terminated or truncated
    env.close()
    return float(returns.mean())


def random_scores(env_ids: Iterable[str], path: Path = SCORES) -> dict[str, float]:
    """
    Look scores up, and measure and store those that are missing.

    :param env_ids: environment ids
    :param path: where scores are stored
    :return: mean returns of random actions by environment id, of others as well
    """
    scores = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = sorted(set(env_ids) - scores.keys())
    if missing:
        scores |= {env_id: round(random_score(env_id), 4) for env_id in missing}
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(scores, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(partial, path)
    return scores
