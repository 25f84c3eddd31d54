import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_hybrid_grpo import HybridGRPO, InvalidArgumentError
from sb3_hybrid_grpo.estimation import RewardTransform
from sb3_hybrid_grpo.rollout.buffers import MultiSampleDictRolloutBuffer, MultiSampleRolloutBuffer, multi_sample_buffer_class
from tests.envs import Walk

BOX = spaces.Box(-1, 1, (3,))
DICT = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), "mode": spaces.Discrete(4)})
ACTIONS = spaces.Box(-1, 1, (2,))
T, E, N = 5, 2, 3


def filled(rng, buffer_class=MultiSampleRolloutBuffer, observation_space=BOX, n_samples=N, action_space=ACTIONS, **kwargs):
    """Return a buffer of random macro-steps, and everything that was put into it."""
    buffer = buffer_class(
        T, observation_space, action_space, device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=E, n_samples=n_samples, **kwargs
    )
    observation_space.seed(0)
    action_space.seed(0)
    rows = []
    for _ in range(T):
        samples = [observation_space.sample() for _ in range(E)]
        if isinstance(observation_space, spaces.Dict):
            obs = {key: np.stack([sample[key] for sample in samples]) for key in observation_space.spaces}
        else:
            obs = np.stack(samples)
        row = dict(
            obs=obs,
            action=np.stack([[action_space.sample() for _ in range(n_samples)] for _ in range(E)]),
            reward=rng.normal(size=(E, n_samples)).astype(np.float32),
            episode_start=rng.random(E) < 0.3,
            value=th.as_tensor(rng.normal(size=(E, 1)), dtype=th.float32),
            log_prob=th.as_tensor(rng.normal(size=(E, n_samples)), dtype=th.float32),
            next_value=rng.normal(size=(E, n_samples)).astype(np.float32),
            terminated=rng.random((E, n_samples)) < 0.3,
        )
        buffer.add(**row)
        rows.append(row)
    last_values, dones = th.as_tensor(rng.normal(size=(E, 1)), dtype=th.float32), np.array([True, False])
    buffer.compute_returns_and_advantage(last_values, dones)
    return buffer, rows, last_values.numpy().ravel(), dones


def test_shapes():
    buffer, *_ = filled(np.random.default_rng(0))
    assert buffer.observations.shape == (T, E, 3)
    assert buffer.actions.shape == (T, E, N, 2)
    for name in ("rewards", "next_values", "terminated", "log_probs", "advantages", "estimates", "weights"):
        assert getattr(buffer, name).shape == (T, E, N), name
    for name in ("values", "returns", "averaged_advantages"):
        assert getattr(buffer, name).shape == (T, E), name


def test_against_a_naive_loop():
    """Estimates, the paper's average and PPO's returns, with episode ends, cut-off episodes and the last values."""
    buffer, rows, last_values, dones = filled(np.random.default_rng(1), advantage="averaged")
    for e in range(E):
        following = 0.0
        for t in reversed(range(T)):
            row, last = rows[t], t == T - 1
            ends = dones[e] if last else rows[t + 1]["episode_start"][e]
            estimates = []
            for i in range(N):
                next_value = row["next_value"][e, i]
                if i == 0 and not ends:
                    next_value = last_values[e] if last else rows[t + 1]["value"][e].item()
                bootstrap = 0.0 if row["terminated"][e, i] else 0.9 * next_value
                estimates.append(row["reward"][e, i] + bootstrap - row["value"][e].item())
            following = estimates[0] + (0.0 if ends else 0.9 * 0.8 * following)
            np.testing.assert_allclose(buffer.estimates[t, e], estimates, rtol=1e-4, atol=1e-5)
            assert buffer.averaged_advantages[t, e] == pytest.approx(np.mean(estimates), rel=1e-4, abs=1e-5)
            assert buffer.advantages[t, e, 0] == buffer.averaged_advantages[t, e]
            assert buffer.returns[t, e] == pytest.approx(following + row["value"][e].item(), rel=1e-4, abs=1e-5)


def test_single_sample_is_sb3s_buffer():
    """With N = 1 advantages and returns are those of SB3's RolloutBuffer, to the bit."""
    buffer, rows, last_values, dones = filled(np.random.default_rng(2), n_samples=1)
    reference = RolloutBuffer(T, BOX, ACTIONS, device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=E)
    for t, row in enumerate(rows):
        ends = dones if t == T - 1 else rows[t + 1]["episode_start"]
        truncated = ends & ~row["terminated"][:, 0]
        # SB3 adds the value of a cut-off episode's last observation to its reward and knows of no other flag
        reward = row["reward"][:, 0] + np.float32(0.9) * row["next_value"][:, 0] * truncated
        reference.add(row["obs"], row["action"][:, 0], reward, row["episode_start"], row["value"], row["log_prob"][:, 0])
        buffer.terminated[t, :, 0] = ends & ~truncated
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    reference.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    np.testing.assert_allclose(buffer.advantages[..., 0], reference.advantages, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(buffer.returns, reference.returns, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("buffer_class, space", [(MultiSampleRolloutBuffer, BOX), (MultiSampleDictRolloutBuffer, DICT)])
def test_minibatches_are_over_states_and_keep_rows_together(buffer_class, space):
    buffer, rows, *_ = filled(np.random.default_rng(3), buffer_class, space)
    expected = {
        tuple(row["action"][e].ravel()): (row["reward"][e], row["log_prob"][e], row["obs"], e)
        for row in rows
        for e in range(E)
    }
    sizes = []
    for samples in buffer.get(batch_size=4):
        sizes.append(len(samples.returns))
        assert samples.actions.shape[1:] == (N, 2) and samples.weights.shape[1:] == (N,)
        assert samples.old_values.shape == samples.returns.shape == (len(samples.actions),)
        for b, actions in enumerate(samples.actions.numpy()):
            _, log_prob, obs, e = expected.pop(tuple(actions.ravel()))
            np.testing.assert_array_equal(samples.old_log_prob[b], log_prob)
            if isinstance(obs, dict):
                np.testing.assert_array_equal(samples.observations["position"][b], obs["position"][e])
                assert samples.observations["mode"][b].item() == obs["mode"][e]
            else:
                np.testing.assert_array_equal(samples.observations[b], obs[e])
    assert sizes == [4, 4, 2] and not expected


def test_reward_transform_is_fitted_and_applied():
    identity, *_ = filled(np.random.default_rng(4))
    zscore, *_ = filled(np.random.default_rng(4), reward_transform="zscore")
    rewards = (identity.rewards - identity.rewards.mean()) / identity.rewards.std()
    np.testing.assert_allclose(zscore.estimates, identity.estimates - identity.rewards + rewards, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        (spaces.Box(-1, 1, (1,)), {"branch_fraction": 0.25}),
        (spaces.Discrete(2), {"action_sampling": "iid"}),
        (spaces.Discrete(4), {"policy": "MaskableMlpPolicy"}),
    ],
    ids=["skipped", "repeated", "invalid"],
)
def test_reward_transforms_learn_from_no_action_that_was_not_evaluated(space, kwargs):
    class Telling(RewardTransform):
        def fit(self, rewards, dones, gamma):
            fitted.append(rewards.copy())

        def transform(self, rewards):
            return rewards

    class Rewarded(Walk):
        def step(self, action):
            obs, _, *ends = super().step(action)
            return obs, 5.0 + float(np.sum(action)), *ends

    fitted = []
    env = Rewarded(action_space=space)
    if "policy" in kwargs:
        env.action_masks = lambda: np.array([True, False, True, True])
    settings = {"n_steps": 64, "n_samples": 4, "branch_horizon": 1, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = HybridGRPO(**{"policy": "MlpPolicy", "env": env, "reward_transform": Telling(), **settings, **kwargs}).learn(64)
    buffer = model.rollout_buffer
    (rewards,) = fitted
    assert rewards.shape[:2] == (64, 1) and rewards.min() > 3.9
    n_samples = rewards.shape[2]
    actions = buffer.actions.reshape(64, n_samples, -1)
    evaluated = np.take_along_axis(actions, buffer.sources.reshape(64, n_samples, 1), axis=1)[buffer.branched[:, 0]]
    expected = 5 + (np.clip(evaluated, -1, 1) if isinstance(space, spaces.Box) else evaluated).sum(axis=-1)
    np.testing.assert_allclose(rewards[buffer.branched], expected, atol=1e-5)
    skipped = rewards[~buffer.branched]
    np.testing.assert_array_equal(skipped, skipped[:, :1].repeat(n_samples, axis=1))


def test_states_without_branches_carry_ppos_advantage():
    """
    Both kinds of states share the buffer: branched ones are what they are without the others, the rest is GAE, which counts by
    its precision.
    """
    buffer, *_, last_values, dones = filled(np.random.default_rng(7), advantage="per_action")
    everywhere = buffer.advantages.copy()
    branched = np.random.default_rng(8).random((T, E)) < 0.5
    buffer.branch_alive[~branched, 1:] = False
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    np.testing.assert_array_equal(buffer.branched, branched)
    np.testing.assert_allclose(buffer.advantages[branched], everywhere[branched], rtol=1e-5)
    gae = (buffer.returns - buffer.values)[~branched]
    centred = gae - gae.mean()
    noise = np.mean([sum((advantage / N) ** 2 for advantage in group) for group in everywhere[branched]])
    expected = centred * noise / np.mean(centred**2)
    np.testing.assert_allclose(buffer.advantages[~branched, 0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(buffer.weights[~branched], np.tile([1, 0, 0], (np.sum(~branched), 1)))
    np.testing.assert_allclose(buffer.weights[branched], 1 / N)
    np.testing.assert_array_equal(buffer.averaged_advantages[~branched], buffer.estimates[~branched, 0])


def test_equal_actions_share_an_outcome():
    """An action that was not branched because another sample is the same gets the estimate of that sample."""
    buffer, *_, last_values, dones = filled(np.random.default_rng(9), advantage="per_action")
    buffer.sources[0, 0] = [0, 1, 1]
    buffer.sources[1, 1] = [0, 0, 2]
    buffer.branch_alive[0, 0, 2] = buffer.branch_alive[1, 1, 1] = False
    buffer.compute_returns_and_advantage(th.as_tensor(last_values), dones)
    assert buffer.branched.all()
    assert buffer.estimates[0, 0, 2] == buffer.estimates[0, 0, 1]
    assert buffer.estimates[1, 1, 1] == buffer.estimates[1, 1, 0]
    assert buffer.advantages[1, 1, 1] == pytest.approx(buffer.advantages[1, 1, 0])


@pytest.mark.parametrize("action_space", [spaces.Discrete(5), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(4)])
def test_action_spaces(action_space):
    buffer, rows, *_ = filled(np.random.default_rng(5), action_space=action_space)
    np.testing.assert_array_equal(buffer.actions[0, 1].squeeze(), rows[0]["action"][1])


def test_reset_empties_and_get_needs_a_full_buffer():
    buffer, *_ = filled(np.random.default_rng(6))
    buffer.reset()
    assert not buffer.full and buffer.pos == 0 and not buffer.rewards.any()
    with pytest.raises(AssertionError):
        next(iter(buffer.get()))


@pytest.mark.parametrize("name", ["n_samples", "branch_horizon"])
@pytest.mark.parametrize("number", [0, -1, 2.0, "4", True, None])
def test_bad_numbers(name, number):
    with pytest.raises(InvalidArgumentError, match=name):
        MultiSampleRolloutBuffer(T, BOX, ACTIONS, **{name: number})


def test_unknown_advantage_lists_the_valid_names():
    with pytest.raises(InvalidArgumentError, match="'hybrid', 'per_action', 'averaged'"):
        MultiSampleRolloutBuffer(T, BOX, ACTIONS, advantage="gae")


def test_choice_of_class():
    assert multi_sample_buffer_class(None, BOX) is MultiSampleRolloutBuffer
    assert multi_sample_buffer_class(RolloutBuffer, DICT) is MultiSampleDictRolloutBuffer

    class Own(MultiSampleRolloutBuffer):
        pass

    assert multi_sample_buffer_class(Own, BOX) is Own

    class Foreign(RolloutBuffer):
        pass

    with pytest.raises(InvalidArgumentError, match="must derive from MultiSampleRolloutBuffer"):
        multi_sample_buffer_class(Foreign, BOX)


class Idle(gym.Env):
    """What one does makes no difference."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, dtype=np.float32), {}

    def step(self, action):
        return np.ones(1, dtype=np.float32), 1.0, False, False, {}


@pytest.mark.parametrize("action_sampling", ["enumerate", "iid"])
def test_errors_of_the_critic_tell_no_actions_apart_at_the_end_of_a_rollout(action_sampling):
    model = HybridGRPO(
        "MlpPolicy", DummyVecEnv([Idle] * 3), n_steps=8, batch_size=24, n_epochs=1, seed=0, device="cpu", n_samples=2,
        branch_horizon=4, reward_transform="identity", action_sampling=action_sampling,
    )  # fmt: skip
    model.learn(24)
    assert model.rollout_buffer.weights.any() and np.abs(model.rollout_buffer.estimates).min() > 0.5
    np.testing.assert_allclose(model.rollout_buffer.advantages, 0, atol=1e-5)
