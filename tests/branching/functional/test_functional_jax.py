"""Functional environments in JAX, and the adapters: what is not installed is skipped."""

import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax")

from stable_baselines3 import PPO  # noqa: E402
from stable_baselines3.common.vec_env import VecNormalize  # noqa: E402

from sb3_hybrid_grpo import (  # noqa: E402
    FunctionalEnvError,
    FunctionalVecEnv,
    HybridGRPO,
    InvalidArgumentError,
    check_branchable,
)
from sb3_hybrid_grpo.branching.functional import make_functional_env  # noqa: E402
from tests.branching.functional.test_functional import BUFFER, rollout  # noqa: E402
from tests.functional_envs import State, example  # noqa: E402
from tests.functional_laws import check_laws, same  # noqa: E402

# Compiling takes seconds; what the libraries warn of is theirs.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
jnp = jax.numpy

IDS = {
    "gymnax": [
        "CartPole-v1",
        "Acrobot-v1",
        "Pendulum-v1",
        "Breakout-MinAtar",
        "Catch-bsuite",
        "DeepSea-bsuite",
        "FourRooms-misc",
    ],
    "jumanji": ["Game2048-v1", "Snake-v1", "Maze-v0", "Knapsack-v1", "Minesweeper-v0"],
    "pgx": ["2048"],
    "brax": ["fast", "inverted_pendulum/spring"],
}


def make(library, name, **kwargs):
    pytest.importorskip(library)
    return FunctionalVecEnv(f"{library}:{name}", 3, seed=0, **kwargs)


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "late"])
@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in IDS.items() for name in names])
def test_laws_of_adapters(library, name, late):
    check_laws(make(library, name, max_episode_steps=10), late=late)


@pytest.mark.parametrize("name", ["phys2d.cartpole.CartPoleFunctional", "phys2d.pendulum.PendulumFunctional"])
def test_laws_of_gymnasiums_own(name):
    module, _, class_name = name.rpartition(".")
    env = getattr(__import__(f"gymnasium.envs.{module}", fromlist=[class_name]), class_name)()
    assert check_laws(FunctionalVecEnv(env, 3, seed=0, max_episode_steps=8)) > 0


class CartPole:
    """The examples' environment, for a single state."""

    max_episode_steps = 500

    def __init__(self):
        twin = example("functional_cartpole_numpy")
        self.observation_space, self.action_space = twin.observation_space, twin.action_space

    def initial(self, rng):
        return State(*jnp.split(jax.random.uniform(rng, (4,), minval=-0.05, maxval=0.05), 2))

    def transition(self, state, action, rng):
        (position, velocity), (angle, angular_velocity) = state
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (20.0 * action - 10.0 + 0.05 * angular_velocity**2 * sin) / 1.1
        angular_acceleration = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 / 1.1 * cos**2))
        acceleration = push - 0.05 / 1.1 * angular_acceleration * cos
        return State(
            jnp.stack((position + 0.02 * velocity, velocity + 0.02 * acceleration)),
            jnp.stack((angle + 0.02 * angular_velocity, angular_velocity + 0.02 * angular_acceleration)),
        )

    def observation(self, state, rng):
        return jnp.concatenate(state)

    def reward(self, state, action, next_state, rng):
        return 1.0

    def terminal(self, state, rng):
        return (abs(state.position[0]) > 2.4) | (abs(state.velocity[0]) > 12 * np.pi / 180)


def test_forms_of_one_environment_agree():
    forms = [rollout(env) for env in (CartPole(), example("functional_cartpole_numpy"), example("functional_cartpole_torch"))]
    for form in forms[1:]:
        for name in BUFFER:
            np.testing.assert_allclose(form[name], forms[0][name], atol=1e-4, err_msg=name)
    again = rollout(CartPole())
    assert all(same(again[name], forms[0][name]) for name in BUFFER)


class Impure(CartPole):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.n_calls = 0

    def transition(self, state, action, rng):
        if self.fault == "global":
            return super().transition(state, action + np.random.normal(), rng)
        if self.fault == "attribute":
            self.n_calls += 1
        if self.fault == "callback":
            jax.debug.print("{}", action)
        if self.fault == "numpy":
            return State(np.cos(np.asarray(state.position)), state.velocity)
        if self.fault == "shape":
            return State(jnp.zeros(3), state.velocity)
        return super().transition(state, action, rng)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("global", r"draws from np\.random"),
        ("attribute", "changes its attributes n_calls"),
        ("callback", "calls Python from compiled code"),
        ("numpy", r"raised TracerArrayConversionError in its first step with arrays='jax'"),
        ("shape", r"state\.position has shape \(3,\), and not \(2,\)"),
    ],
)
def test_faults_are_named(fault, message):
    with pytest.raises(FunctionalEnvError, match=message):
        FunctionalVecEnv(Impure(fault), 2, seed=0)


def test_jax_without_a_gpu():
    if jax.default_backend() != "cpu":
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidArgumentError, match="JAX finds no GPU"):
        FunctionalVecEnv(CartPole(), 2, device="cuda")


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("gymnax:CartPole-v9", "gymnax has no environment 'CartPole-v9'"),
        ("brax:cat", "Brax has no environment 'cat'"),
        ("jumanji:Chess-v0", "jumanji has no environment 'Chess-v0'"),
        ("pgx:chess", "chess is a game for 2 players"),
        ("pgx:ludo", "pgx has no environment 'ludo'"),
    ],
)
def test_unknown_ids(env_id, message):
    pytest.importorskip(env_id.partition(":")[0])
    with pytest.raises(InvalidArgumentError, match=message):
        make_functional_env(env_id)


def test_wrapped_environments_of_brax_are_refused():
    envs = pytest.importorskip("brax.envs")
    from sb3_hybrid_grpo.branching.functional.adapters.from_brax import BraxEnv

    with pytest.raises(InvalidArgumentError, match="is in AutoResetWrapper"):
        BraxEnv(envs.create("fast"))


def test_time_limits_of_gymnax_truncate():
    venv = make("gymnax", "Pendulum-v1")
    for _ in range(200):
        _, _, dones, infos = venv.step(np.zeros((3, 1), dtype=np.float32))
    assert dones.all() and all(info["TimeLimit.truncated"] for info in infos)


@pytest.mark.parametrize(
    ("library", "name", "policy"),
    [
        ("gymnax", "Breakout-MinAtar", "MlpPolicy"),
        ("pgx", "2048", "MaskableMlpPolicy"),
        ("jumanji", "Snake-v1", "MaskableMultiInputPolicy"),
        ("brax", "fast", "MlpPolicy"),
    ],
)
def test_training(library, name, policy):
    venv = make(library, name)
    model = HybridGRPO(policy, venv, n_steps=16, batch_size=48, n_epochs=1, n_samples=2, branch_horizon=3, seed=0).learn(96)
    assert model.num_simulator_steps > model.num_timesteps
    if not policy.startswith("Maskable"):
        PPO(policy, VecNormalize(venv), n_steps=16, batch_size=48, n_epochs=1, seed=0).learn(96)


def test_check():
    pytest.importorskip("gymnax")
    assert check_branchable("gymnax:CartPole-v1", n_envs=2, n_steps=20).verdict == "exact, functional"


def test_main_job(tmp_path):
    pytest.importorskip("gymnax")
    command = [sys.executable, "-m", "sb3_hybrid_grpo", "--env", "gymnax:CartPole-v1", "--n-envs", "64", "--timesteps", "4096"]
    options = ["--algos", "hybrid_grpo", "--seeds", "1", "--eval-episodes", "2", "--out", str(tmp_path / "out"), "--jobs", "1"]
    done = subprocess.run([*command, *options, "--hyperparams", "n_steps=32"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "hybrid_grpo_0.zip").exists()
