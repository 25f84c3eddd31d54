"""Whole rollouts in workers: what workers collect by themselves is what the main process would have had them do."""

import copy
import os
import pickle
from collections import Counter
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_hybrid_grpo import GRPO, BranchError, GroupedSubprocVecEnv, HybridGRPO, InvalidArgumentError, InvalidOutcomeError
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.branching.vec_env.workers.team import Team
from tests.branching.vec_env.test_same_buffers import assert_identical
from tests.envs import Walk, limited

QUICK = "fork" if CAN_FORK else None
SETTINGS = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu", "brancher": "snapshot"}
N_ENVS, ROLLOUT = 3, 24


class Faulty(Walk):
    """Goes wrong on request, in a branch or in a committed step."""

    fault = None
    n_steps = 0

    def break_by(self, fault):
        self.fault, self.n_steps = fault, 0

    def step(self, action):
        obs, reward, *others = super().step(action)
        self.n_steps += 1
        is_due = self.n_steps == (9 if self.fault == "raise in a branch" else 3)
        if is_due and self.fault in ("raise", "raise in a branch"):
            raise ArithmeticError("the simulation exploded")
        if is_due and self.fault == "die":
            os._exit(3)
        return obs, np.nan if is_due and self.fault == "nan" else reward, *others


class Masked(Walk):
    def __init__(self):
        super().__init__(action_space=spaces.Discrete(3))

    def action_masks(self):
        return np.ones(3, dtype=bool)


def faulty():
    return Monitor(gym.wrappers.TimeLimit(Faulty(), 6))


def grouped(env_fn=faulty, **kwargs):
    return GroupedSubprocVecEnv([env_fn] * N_ENVS, 2, QUICK, **kwargs)


@pytest.fixture(scope="module")
def venv():
    venv = grouped()
    yield venv
    venv.close()


@pytest.fixture(scope="module")
def discrete():
    venv = grouped(limited(6, observation="dict", action_space=spaces.Discrete(3)))
    yield venv
    venv.close()


class Witness(BaseCallback):
    """Keeps what it sees, and the rollouts."""

    names = ("n_steps", "actions", "rewards", "dones", "sampled_actions", "values", "log_probs")

    def __init__(self, until=None):
        super().__init__()
        self.seen, self.rollouts, self.until = [], [], until

    def _on_step(self):
        infos = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.seen.append([self.num_timesteps, infos, *(copy.copy(self.locals[name]) for name in self.names)])
        return self.num_timesteps != self.until

    def _on_rollout_end(self):
        arrays = vars(self.model.rollout_buffer).items()
        self.rollouts.append(copy.deepcopy({name: part for name, part in arrays if isinstance(part, np.ndarray | dict)}))


def train(venv, rollout_in_workers, n_rollouts=2, policy="MlpPolicy", algorithm=HybridGRPO, until=None, **kwargs):
    model = algorithm(policy, venv, rollout_in_workers=rollout_in_workers, **{**SETTINGS, **kwargs})
    witness = Witness(until)
    model.learn(n_rollouts * ROLLOUT, callback=witness)
    return model, witness


CASES = {
    "gaussian": {"n_samples": 4},
    "one step": {"branch_horizon": 1},
    "part": {"branch_fraction": 0.5, "n_samples": 3},
    "rarely": {"branch_fraction": 0.05},
    "gsde": {"use_sde": True, "sde_sample_freq": 3},
    "antithetic": {"n_samples": 4, "action_sampling": "antithetic"},
    "tempered": {"sampling_temperature": 2.0, "n_samples": 3},
    "own class": {"algorithm": GRPO},
    "not remembered": {"brancher": "replay", "n_samples": 3},
}
DISCRETE = {
    "enumerated": {"n_samples": 3},
    "monitored": {"wrap": VecMonitor},
    "twins": {"n_samples": 4, "action_sampling": "iid"},
    "twins of one step": {
        "n_samples": 4,
        "action_sampling": "iid",
        "branch_horizon": 1,
        "soft_values": True,
        "ent_coef": 0.01,
    },
}


def assert_same_runs(venv, wrap=lambda venv: venv, **kwargs):
    usual, expected = train(wrap(venv), False, **kwargs)
    model, witness = train(wrap(venv), True, **kwargs)
    assert len(expected.rollouts) == 2 and expected.rollouts[0]["branch_alive"].any()
    for found, wanted in zip(witness.rollouts, expected.rollouts, strict=True):
        assert_identical(found, wanted)
    for found, wanted in zip(witness.seen, expected.seen, strict=True):
        for part, wanted_part in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(part, wanted_part)
    np.testing.assert_equal(model._last_obs, usual._last_obs)
    np.testing.assert_array_equal(model._last_episode_starts, usual._last_episode_starts)
    assert [episode["r"] for episode in model.ep_info_buffer] == [episode["r"] for episode in usual.ep_info_buffer]
    assert model.num_timesteps == usual.num_timesteps == 2 * ROLLOUT
    assert model.num_simulator_steps == usual.num_simulator_steps
    for parameter, wanted in zip(model.policy.parameters(), usual.policy.parameters(), strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), wanted.detach().numpy())


@pytest.mark.parametrize("case", CASES)
def test_runs_are_the_usual_ones(case, venv):
    assert_same_runs(venv, **CASES[case])


@pytest.mark.parametrize("case", DISCRETE)
def test_runs_with_discrete_actions_are_the_usual_ones(case, discrete):
    assert_same_runs(discrete, policy="MultiInputPolicy", **DISCRETE[case])


def test_two_messages_per_rollout(venv, monkeypatch):
    model = HybridGRPO("MlpPolicy", venv, rollout_in_workers=True, **SETTINGS)
    model.learn(ROLLOUT)
    posted, post = Counter(), venv.transport._post
    monkeypatch.setattr(venv.transport, "_post", lambda worker, *call: (posted.update([worker]), post(worker, *call)))
    model.learn(3 * ROLLOUT, reset_num_timesteps=False)
    assert posted == {0: 2 * 3, 1: 2 * 3}


class Stream(BaseCallback):
    """Follows the statistics of a ``VecNormalize`` as those of one stream."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.obs, self.returns = layer, RunningMeanStd(shape=(2,)), RunningMeanStd()
        self.sums = np.zeros(N_ENVS)
        self.counts = []

    def _on_training_start(self):
        self.obs.update(self.layer.old_obs)

    def _on_step(self):
        assert self.layer.training
        self.obs.update(self.layer.get_original_obs())
        self.sums = self.sums * self.layer.gamma + self.layer.get_original_reward()
        self.returns.update(self.sums)
        self.sums[self.locals["dones"]] = 0
        self.counts.append(self.layer.obs_rms.count)
        return True

    def _on_rollout_end(self):
        buffer, frozen = self.model.rollout_buffer, self.layer.obs_rms
        assert self.counts.count(self.counts[-1]) == buffer.buffer_size
        assert frozen.count == pytest.approx(self.counts[-1] + ROLLOUT)


def assert_same_statistics(found, expected):
    for name in ("count", "mean", "var"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("until", [None, ROLLOUT + 9])
def test_statistics_are_those_of_one_stream(until, venv):
    layer = VecNormalize(venv)
    model = HybridGRPO("MlpPolicy", layer, rollout_in_workers=True, **SETTINGS)
    stream, frozen = Stream(layer), []

    class Note(BaseCallback):
        def _on_rollout_start(self):
            frozen.append(copy.deepcopy(layer.obs_rms))

        def _on_step(self):
            np.testing.assert_array_equal(
                self.locals["new_obs"],
                np.clip(
                    (layer.get_original_obs() - frozen[-1].mean) / np.sqrt(frozen[-1].var + layer.epsilon), -10, 10
                ).astype(np.float32),
            )
            return self.num_timesteps != until

    model.learn(3 * ROLLOUT, callback=[stream, Note()])
    if until is None:
        assert_same_statistics(layer.obs_rms, stream.obs)
        assert_same_statistics(layer.ret_rms, stream.returns)
        np.testing.assert_allclose(layer.returns, stream.sums)
    else:
        # The environments have gone on until the end of the rollout.
        assert layer.obs_rms.count == pytest.approx(N_ENVS + 2 * ROLLOUT, abs=0.01)
    assert layer.training


def test_statistics_of_parts_of_observations(discrete):
    layer = VecNormalize(discrete, norm_obs_keys=["position"])
    model, expected = HybridGRPO("MultiInputPolicy", layer, rollout_in_workers=True, **SETTINGS), RunningMeanStd(shape=(1,))

    class Follow(BaseCallback):
        def _on_training_start(self):
            expected.update(layer.get_original_obs()["position"])

        def _on_step(self):
            expected.update(layer.get_original_obs()["position"])
            return True

    model.learn(2 * ROLLOUT, callback=Follow())
    assert layer.obs_rms.keys() == {"position"}
    assert_same_statistics(layer.obs_rms["position"], expected)
    layer.norm_obs = False
    model.learn(ROLLOUT)
    assert layer.obs_rms["position"].count == pytest.approx(expected.count)


def test_limits_of_time_are_for_each_macro_step():
    team = Team(SimpleNamespace(timeout=0.5, groups=[]), "in a test")
    longer = team.asked_for_more("while it did more", 8)
    assert (longer._timeout, longer._limit) == (4.0, "8 times timeout=0.5 s")
    assert Team(SimpleNamespace(timeout=None, groups=[]), "in a test").asked_for_more("while", 8)._timeout is None


def test_statistics_that_the_user_has_frozen_stay_so(venv):
    layer = VecNormalize(venv, training=False)
    before = copy.deepcopy(layer.obs_rms)
    train(layer, True)
    assert_same_statistics(layer.obs_rms, before)
    assert not layer.training


class Interrupt(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 9:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("is_raised", [False, True])
def test_callback_ends_training(is_raised, venv):
    if is_raised:
        model = HybridGRPO("MlpPolicy", venv, rollout_in_workers=True, **SETTINGS)
        with pytest.raises(KeyboardInterrupt):
            model.learn(ROLLOUT, callback=Interrupt())
    else:
        model, witness = train(venv, True, until=9)
        assert [seen[0] for seen in witness.seen] == [3, 6, 9]
    assert model.num_timesteps == 9
    present = [[env_position, velocity] for env_position, velocity in zip(*map(venv.get_attr, POSITION), strict=True)]
    np.testing.assert_array_equal(model._last_obs, np.array(present, dtype=np.float32))
    model.learn(2 * ROLLOUT, reset_num_timesteps=False)
    assert model.num_timesteps == 9 + 2 * ROLLOUT


POSITION = ("position", "velocity")


def test_checkpoints_have_no_rollout_in_them(venv, tmp_path):
    sizes = []

    class Save(BaseCallback):
        def _on_step(self):
            self.model.save(tmp_path / "model")
            sizes.append(len(pickle.dumps(self.model.__getstate__()["_playback"])))
            return False

    HybridGRPO("MlpPolicy", venv, rollout_in_workers=True, **SETTINGS).learn(ROLLOUT, callback=Save())
    model = HybridGRPO.load(tmp_path / "model", env=venv)
    assert sizes == [len(pickle.dumps(None))] and model._playback is None and model.rollout_in_workers
    model.learn(ROLLOUT)


@pytest.mark.parametrize(
    "fault, branch_fraction, error, message",
    [
        ("raise in a branch", 1.0, BranchError, r"In the worker of environment 2: (?s:.)*the simulation exploded"),
        ("raise", 1e-9, ArithmeticError, "the simulation exploded"),
        ("nan", 1e-9, InvalidOutcomeError, "Environment 2 returned NaN or infinity as reward in a committed step"),
    ],
)
def test_errors_are_the_usual_ones(fault, branch_fraction, error, message, venv):
    venv.reset()
    model = HybridGRPO("MlpPolicy", venv, rollout_in_workers=True, branch_fraction=branch_fraction, **SETTINGS)
    venv.env_method("break_by", fault, indices=2)
    try:
        with pytest.raises(error, match=message) as raised:
            model.learn(2 * ROLLOUT)
        if error is ArithmeticError:
            assert "In the worker of environment 2" in str(raised.value.__cause__)
    finally:
        venv.env_method("break_by", None, indices=2)
    model.learn(ROLLOUT)


def test_rollout_is_collected_again_when_a_worker_is_lost():
    venv = grouped(restart_workers=True)
    model = HybridGRPO("MlpPolicy", VecNormalize(venv), rollout_in_workers=True, branch_fraction=1e-9, **SETTINGS)

    class Break(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            if self.num_timesteps == ROLLOUT:
                self.training_env.env_method("break_by", "die", indices=2)

    with pytest.warns(UserWarning, match=r"environment 2 \(process \d+, exit code 3\).*while it collected|died while"):
        model.learn(2 * ROLLOUT, callback=Break())
    assert model.num_timesteps == 2 * ROLLOUT
    venv.close()


@pytest.mark.parametrize(
    "wrap, arguments, message",
    [
        (lambda venv: DummyVecEnv([faulty]), {}, "DummyVecEnv has no workers that can: .*GroupedSubprocVecEnv"),
        (lambda venv: VecFrameStack(venv, 2), {}, "VecFrameStack .* wrap the single environments"),
        (None, {"n_samples": 1}, "n_samples=1 nothing is branched"),
        (None, {"action_selection": "best"}, "action_selection='best' .* use 'first'"),
        (None, {"branch_fraction": "auto"}, "branch_fraction='auto' .* use a number"),
        (None, {"brancher": "learned"}, "brancher='learned' has no simulators in workers: use 'auto'"),
        (None, {"policy": RecurrentActorCriticPolicy}, "RecurrentActorCriticPolicy remembers"),
        (
            lambda venv: GroupedSubprocVecEnv([Masked], 1, QUICK),
            {"policy": MaskableActorCriticPolicy},
            "MaskableActorCriticPolicy needs masks",
        ),
    ],
)
def test_what_is_refused(wrap, arguments, message, venv):
    env = wrap(venv) if wrap else venv
    settings = {"policy": "MlpPolicy", **SETTINGS, **arguments}
    with pytest.raises(InvalidArgumentError, match=rf"^rollout_in_workers=True is not possible: .*{message}.*=False\.$"):
        HybridGRPO(env=env, rollout_in_workers=True, **settings)
    if env.unwrapped is not venv:
        env.close()


class Target(gym.Env):
    """Rewards actions close to 0.7."""

    observation_space = spaces.Box(-1, 1, (1,))
    action_space = spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action):
        return np.zeros(1, dtype=np.float32), -float(abs(action[0] - 0.7)), False, False, {}


def test_learns():
    venv = VecNormalize(grouped(lambda: gym.wrappers.TimeLimit(Target(), 8)))
    model = HybridGRPO(
        "MlpPolicy",
        venv,
        learning_rate=0.01,
        rollout_in_workers=True,
        n_samples=8,
        **{**SETTINGS, "n_epochs": 4, "branch_horizon": 1},
    )
    model.learn(8 * ROLLOUT)
    with th.no_grad():
        assert model.predict(np.zeros((1, 1), dtype=np.float32), deterministic=True)[0][0, 0] > 0.4
    venv.close()
