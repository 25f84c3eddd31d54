"""The laws of branching for Atari games, through all that SB3 wraps around them."""

import contextlib

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import Snapshot, make_brancher
from tests.lockstep import assert_committed_outcome, assert_laws, describe, reporting, sample_actions, subproc

ale_py = pytest.importorskip("ale_py")
pytest.importorskip("cv2")
restorable_ale = pytest.importorskip("sb3_hybrid_grpo.branching.snapshots.codecs.restorable_ale")
gym.register_envs(ale_py)

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

GAMES = {
    "no sticky actions": ("BreakoutNoFrameskip-v4", {}, {}),
    "sticky actions of the emulator": ("ALE/Breakout-v5", {"frameskip": 1}, {"noop_max": 5}),
    "sticky actions of SB3": ("PongNoFrameskip-v4", {}, {"action_repeat_probability": 0.25}),
    "frame skip of the environment": ("ALE/SpaceInvaders-v5", {"frameskip": (2, 5)}, {"frame_skip": 1, "noop_max": 0}),
    "very sticky, frames cut short": ("ALE/Qbert-v5", {"repeat_action_probability": 0.9}, {"noop_max": 0}),
    "no wrapper": ("ALE/Tetris-v5", {}, None),
    "memory": ("ALE/Seaquest-v5", {"obs_type": "ram"}, None),
    "continuous actions": ("ALE/Breakout-v5", {"continuous": True, "repeat_action_probability": 0.5}, None),
}


def make_game(env_id, kwargs, wrapper_kwargs):
    n_frames = 1 if wrapper_kwargs is None else wrapper_kwargs.get("frame_skip", 4)
    env = gym.make(env_id, max_episode_steps=30 if n_frames > 1 else 12, **kwargs)
    return env if wrapper_kwargs is None else AtariWrapper(env, **wrapper_kwargs)


def make_venv(game, vec_env_cls):
    venv = make_vec_env(reporting(lambda: make_game(*GAMES[game])), 2, seed=0, vec_env_cls=vec_env_cls)
    return venv if GAMES[game][2] is None else VecTransposeImage(VecFrameStack(venv, 4))


@pytest.mark.parametrize(
    "game, vec_env_cls",
    [
        *(pytest.param(game, DummyVecEnv, id=game) for game in GAMES),
        *(pytest.param(game, subproc(), id=f"{game}, SubprocVecEnv") for game in list(GAMES)[:2]),
    ],
)
def test_one_step(game, vec_env_cls):
    ends = assert_laws(lambda: make_venv(game, vec_env_cls), n_steps=20, n_branches=2)
    assert sum(ends) > 0


def follow_paths(venv, n_steps, horizon, branched):
    """Step with random actions; every now and then branch along the actions of the next steps."""
    rng = np.random.default_rng(0)
    plan = sample_actions(venv.action_space, rng, (n_steps + horizon, 2, 3))
    seen = [venv.reset()]
    brancher = make_brancher("snapshot", venv) if branched else None
    outcomes, paths = [], []
    for step in range(n_steps):
        if brancher is not None and step % horizon == 0:
            outcomes, alive = [], np.ones((2, 3), dtype=bool)
            for k in range(horizon):
                outcomes.append(brancher.advance(plan[step + k], alive) if k else brancher.open(plan[step], alive, horizon))
                alive = alive & ~(outcomes[-1].terminated | outcomes[-1].truncated)
            brancher.close()
            # What the wrappers make of it depends on the frames of now.
            paths = [brancher.observed(outcome, outcomes[:k]) for k, outcome in enumerate(outcomes)]
            on_path = np.ones(2, dtype=bool)
        result = venv.step(plan[step, :, 0])
        if brancher is not None:
            assert_committed_outcome(paths[step % horizon], *result, env_idxs=np.flatnonzero(on_path))
            on_path &= ~result[2]
        seen.append(result)
    return seen


@pytest.mark.parametrize("vec_env_cls", [DummyVecEnv, subproc()], ids=["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize("game", ["no sticky actions", "sticky actions of the emulator", "very sticky, frames cut short"])
def test_five_steps(game, vec_env_cls):
    histories = []
    for branched in (False, True):
        with contextlib.closing(make_venv(game, vec_env_cls)) as venv:
            histories.append(follow_paths(venv, 25, 5, branched))
    assert sum(dones.sum() for _, _, dones, _ in histories[1][1:]) > 0
    for without, with_branches in zip(*histories, strict=True):
        assert describe(with_branches) == describe(without)


def test_make_atari_env():
    """As SB3's users make it."""
    wrapper_kwargs = {"terminal_on_life_loss": True, "clip_reward": True}

    def make():
        venv = make_atari_env("ALE/Breakout-v5", n_envs=2, seed=1, wrapper_kwargs=wrapper_kwargs)
        venv.envs = [reporting(lambda env=env: env)() for env in venv.envs]
        return VecTransposeImage(VecFrameStack(venv, 4))

    assert assert_laws(make, n_steps=40, check_state=False).terminated > 0


@pytest.mark.parametrize("n_steps", [0, 1, 5, 14])
@pytest.mark.parametrize("probability", [0.25, 0.9])
def test_emulator_in_mid_episode_is_taken_over_exactly(n_steps, probability, monkeypatch):
    """The action that it is about to repeat is found out."""
    monkeypatch.setattr(restorable_ale, "_TAPE_LENGTH", 16)
    original, watched = (
        gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=probability).unwrapped for _ in range(2)
    )
    actions = np.random.default_rng(n_steps).integers(4, size=120)
    for env in (original, watched):
        env.reset(seed=3)
        for action in actions[:n_steps]:
            env.step(action)
    Snapshot(watched)
    for step, action in enumerate(actions):
        assert describe(watched.step(action)) == describe(original.step(action))
        if step == 60:
            assert describe(watched.reset(seed=4)) == describe(original.reset(seed=4))
    assert watched.ale.getFloat("repeat_action_probability") == original.ale.getFloat("repeat_action_probability")
    random_numbers = [env.ale.cloneState(include_rng=True).serialize() for env in (watched, original)]
    assert random_numbers[0] == random_numbers[1]


def test_modes_and_difficulties_are_kept():
    original, watched = (gym.make("ALE/Breakout-v5", mode=4, difficulty=1).unwrapped for _ in range(2))
    Snapshot(watched)
    for env in (original, watched):
        env.reset(seed=3)
    snapshot = Snapshot(watched)
    for _ in range(10):
        watched.step(1)
    snapshot.restore()
    for action in np.random.default_rng(0).integers(4, size=50):
        assert describe(watched.step(action)) == describe(original.step(action))


@pytest.mark.parametrize("kwargs", [{"id": "ALE/VideoCheckers-v5"}, {"id": "ALE/Pong-v5", "sound_obs": True}])
def test_what_cannot_be_restored_is_refused(kwargs):
    with pytest.raises(UnbranchableEnvError):
        make_brancher("snapshot", make_vec_env(lambda: gym.make(**kwargs), 1))


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [name for name in gym.registry if name.startswith("ALE/") and name.endswith("-v5")])
def test_all_games(env_id):
    """Each game obeys the laws, or is one of those that are refused."""

    def make_venv_of_game():
        return make_vec_env(reporting(lambda: gym.make(env_id, max_episode_steps=25)), 1)

    if gym.spec(env_id).kwargs["game"] in restorable_ale._NOT_RESTORABLE:
        with pytest.raises(UnbranchableEnvError, match="does not save the whole state"):
            make_brancher("snapshot", make_venv_of_game())
    else:
        assert sum(assert_laws(make_venv_of_game, n_steps=90, n_branches=2)) >= 3
