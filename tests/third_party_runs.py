"""
Runs a simulator of another package in a process of its own, and prints what was seen.

    python -m tests.third_party_runs plain|branched|check NAME
"""

import hashlib
import json
import sys
import warnings

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.speed.third_party import SIMULATORS
from sb3_hybrid_grpo import HybridGRPOError, check_branchable
from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.simulator.valid_actions import masks_of, sample
from tests.lockstep import describe, pick

RESULT = "RESULT "
N_STEPS = 50
N_BRANCHES = 3


def committed(name, is_branched):
    """Take random steps, with branches or without them."""
    venv = make_vec_env(SIMULATORS[name], 1, seed=1)
    np.random.seed(1)
    space = venv.action_space
    space.seed(1)
    brancher, refused, messages, broken = None, None, [], []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if is_branched:
            try:
                brancher = make_brancher("auto", venv)
            except HybridGRPOError as error:
                refused = str(error)
        space.seed(1)
        digests = [digest(venv.reset())]
        ends = []
        for _ in range(N_STEPS):
            masks = masks_of(venv.envs[0])
            actions = np.array([[sample(space, masks) for _ in range(N_BRANCHES)]])
            outcome = None
            if brancher is not None:
                outcome = brancher.open(actions, np.ones(actions.shape[:2], dtype=bool), 1)
                brancher.close()
            obs, rewards, dones, infos = venv.step(actions[:, 0])
            seen = infos[0]["terminal_observation"] if dones[0] else pick(obs, 0)
            if outcome is not None:
                told = pick(outcome.observations, (0, 0)), outcome.rewards[0, 0]
                broken.append(digest(told) != digest((seen, rewards[0])))
            digests.append(digest((seen, rewards, dones)))
            ends.append(bool(dones[0]))
    venv.close()
    messages = [str(warning.message) for warning in caught if "sb3_hybrid_grpo" in f"{warning.filename} {warning.message}"]
    return {"refused": refused, "messages": messages, "n_broken": sum(broken), "digests": digests, "ends": ends}


def digest(seen):
    if isinstance(seen, dict):
        return digest(sorted((key, digest(part)) for key, part in seen.items()))
    if isinstance(seen, tuple | list):
        return hashlib.sha1(repr([digest(part) for part in seen]).encode()).hexdigest()
    if isinstance(seen, str):
        return seen
    return hashlib.sha1(repr(describe(np.asarray(seen, dtype=np.float32))).encode()).hexdigest()


def check(name):
    report = check_branchable(SIMULATORS[name], n_steps=N_STEPS)
    return {"brancher": report.brancher, "text": str(report)}


def main(what, name):
    th.set_num_threads(1)
    functions = {
        "plain": lambda: committed(name, False),
        "branched": lambda: committed(name, True),
        "check": lambda: check(name),
    }
    # Simulators write to standard output as they please.
    print("\nRESULT", json.dumps(functions[what]()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
