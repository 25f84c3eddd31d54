"""The laws of branching, for functional environments of all kinds."""

import numpy as np
import torch as th

from sb3_hybrid_grpo.branching import make_brancher
from sb3_hybrid_grpo.branching.simulator.valid_actions import sample


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(part, second[key]) for key, part in first.items())
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    return first == second


def pick(observations, index):
    if isinstance(observations, dict):
        return {key: part[index] for key, part in observations.items()}
    return observations[index]


def without_clock(result):
    *arrays, infos = result
    return (
        *arrays,
        [{key: {**value, "t": 0} if key == "episode" else value for key, value in info.items()} for info in infos],
    )


def play(venv, actions):
    venv.seed(0)
    return [venv.reset(), *(without_clock(venv.step(each)) for each in actions)]


def sample_actions(venv, n_steps, seed=0):
    venv.action_space.seed(seed)
    venv.seed(0)
    venv.reset()
    actions = []
    for _ in range(n_steps):
        masks = venv.env_method("action_masks") if venv.has_attr("action_masks") else [None] * venv.num_envs
        actions.append(np.stack([sample(venv.action_space, valid) for valid in masks]))
        venv.step(actions[-1])
    return np.stack(actions)


def check_laws(venv, n_steps=12, horizon=4, n_branches=3, late=False):
    """Branch at each state, with the committed actions in the first branch and others beside it; return how many "
    "episodes ended."""
    actions = sample_actions(venv, n_steps + horizon)
    others = [np.stack([[venv.action_space.sample() for _ in range(n_branches - 1)] for _ in row]) for row in actions]
    tried = [np.concatenate((row[:, None], other), axis=1) for row, other in zip(actions, others, strict=True)]
    expected = play(venv, actions)
    generators = np.random.get_state()[1].tobytes(), th.get_rng_state().numpy().tobytes()

    brancher = make_brancher("auto", venv)
    venv.seed(0)
    assert same(venv.reset(), expected[0])
    for step in range(n_steps):
        if late:
            brancher.remember()
        else:
            branches = branch(brancher, tried[step : step + horizon])
            check_branches(branches, expected[step + 1 :], 0)
        assert same(without_clock(venv.step(actions[step])), expected[step + 1]), "law 1"
    if late:
        of_all_states = [np.concatenate([tried[step + k] for step in range(n_steps)], axis=1) for k in range(horizon)]
        branches = branch(brancher.recall(), of_all_states)
        for step in range(n_steps):
            check_branches(branches, expected[step + 1 :], step * n_branches)
    for step in range(n_steps, n_steps + horizon):
        assert same(without_clock(venv.step(actions[step])), expected[step + 1]), "law 1"
    assert generators == (np.random.get_state()[1].tobytes(), th.get_rng_state().numpy().tobytes())
    return sum(int(result[2].sum()) for result in expected[1:])


def branch(brancher, actions):
    alive = np.ones(actions[0].shape[:2], dtype=bool)
    steps = []
    for k, each in enumerate(actions):
        outcome = brancher.advance(each, alive) if k else brancher.open(each, alive, len(actions))
        steps.append((brancher.observed(outcome), alive))
        alive = alive & ~(outcome.terminated | outcome.truncated)
    brancher.close()
    return steps


def check_branches(branches, expected, column):
    """Law 2: the branch of the committed actions is the trajectory, to its end."""
    for (outcome, alive), (observations, rewards, dones, infos) in zip(branches, expected, strict=False):
        for env in np.flatnonzero(alive[:, column]):
            seen = infos[env].get("terminal_observation", pick(observations, env))
            assert same(pick(outcome.observations, (env, column)), seen), "law 2"
            assert outcome.rewards[env, column] == rewards[env], "law 2"
            assert (outcome.terminated | outcome.truncated)[env, column] == dones[env], "law 2"
            if dones[env]:
                is_truncated = outcome.truncated[env, column] and not outcome.terminated[env, column]
                assert infos[env]["TimeLimit.truncated"] == is_truncated
        assert not outcome.rewards[~alive].any()
