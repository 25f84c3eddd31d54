"""
Simulators that nobody here wrote, as their users would hand them to SB3: the extra ``third-party``.

    python -m benchmarks.speed.third_party NAME

prints how one of them is branched, and the time of a committed step in units of PPO's. Adapters do no more than SB3 asks for:
Gymnasium's interface, and spaces that policies know.
"""

import argparse
import importlib
import importlib.util
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.preprocessing import is_image_space

from sb3_hybrid_grpo import HybridGRPO, HybridGRPOError, check_branchable

N_STEPS = 50
ROLLOUT = 64


class Simulator(NamedTuple):
    """
    One environment of a package.

    :param package: the module to import
    :param tried: what the environment is called in tables
    :param make: makes it
    """

    package: str
    tried: str
    make: Callable[[], gym.Env[Any, Any]]

    @property
    def __name__(self) -> str:
        return self.tried

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package.split(".")[0]) is not None

    def __call__(self) -> gym.Env[Any, Any]:
        importlib.import_module(self.package)
        return self.make()


class UnseededReset(gym.Wrapper[Any, Any, Any, Any]):
    """For environments whose reset takes no seed, or makes nothing of it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.unwrapped.reset()  # type: ignore[attr-defined]
        return result if isinstance(result, tuple) else (result, {})


class JobShop(UnseededReset):
    """Takes the first action that is legal in place of one that is not: those end in an ``IndexError``."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        legal = np.asarray(self.env.unwrapped.get_legal_actions())  # type: ignore[attr-defined]
        return self.env.step(action if legal[action] else int(legal.argmax()))


class ClassicEnv(gym.Env[Any, Any]):
    """An environment with the interface of OpenAI's Gym."""

    def __init__(self, env: Any) -> None:
        self.classic = env
        self.observation_space = spaces.Box(0, 255, env.observation_space.shape, np.uint8)
        self.action_space = spaces.Discrete(env.action_space.n)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.classic.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, is_over, info = self.classic.step(action)
        return obs, float(reward), bool(is_over), False, info


class OneAgent(gym.Wrapper[Any, Any, Any, Any]):
    """The only agent of an environment for several."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space, self.action_space = env.observation_space[0], env.action_space[0]  # type: ignore[index]

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observations, info = self.env.reset(**kwargs)
        return observations[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, info = self.env.step([action])
        return observations[0], float(rewards[0]), terminated, truncated, info


class PgxGame(gym.Env[Any, Any]):
    """A game of pgx, whose states are immutable."""

    def __init__(self, name: str) -> None:
        import jax
        import pgx

        self.game: Any = pgx.make(name)
        self.observation_space = spaces.Box(0, 1, self.game.observation_shape, np.float32)
        self.action_space = spaces.Discrete(self.game.num_actions)
        self._init, self._step, self._key = jax.jit(self.game.init), jax.jit(self.game.step), jax.random.PRNGKey
        self._split = jax.random.split

    def _observe(self) -> np.ndarray:
        return np.asarray(self.state.observation, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.key = self._key(int(self.np_random.integers(2**31)))
        self.state = self._init(self.key)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.key, key = self._split(self.key)
        self.state = self._step(self.state, int(action), key)
        return self._observe(), float(self.state.rewards[0]), bool(self.state.terminated), False, {}


class Chess(gym.Env[Any, Any]):
    """Plays the n-th of the legal moves of python-chess against an opponent who moves at random."""

    observation_space = spaces.Box(0, 12, (64,), np.uint8)
    action_space = spaces.Discrete(218)

    def _observe(self) -> np.ndarray:
        squares = np.zeros(64, dtype=np.uint8)
        for square, piece in self.board.piece_map().items():
            squares[square] = piece.piece_type + 6 * piece.color
        return squares

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.board: Any = _imported("chess", "Board")
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        for number in (int(action), int(self.np_random.integers(218))):
            moves = list(self.board.legal_moves)
            if moves:
                self.board.push(moves[number % len(moves)])
        outcome = self.board.outcome()
        reward = 0.0 if outcome is None or outcome.winner is None else 1.0 if outcome.winner else -1.0
        return self._observe(), reward, outcome is not None, len(self.board.move_stack) > 60, {}


def _trading() -> gym.Env[Any, Any]:
    import pandas as pd

    close = 100 + np.random.default_rng(0).normal(size=300).cumsum()
    hours = pd.date_range("2024-01-01", periods=300, freq="h")
    prices = {"open": close, "high": close + 1, "low": close - 1, "close": close, "feature_move": np.diff(close, prepend=100)}
    return gym.make("TradingEnv", df=pd.DataFrame(prices, index=hours), verbose=0)


def _power_grid() -> gym.Env[Any, Any]:
    import grid2op
    from grid2op.gym_compat import BoxGymObsSpace, DiscreteActSpace, GymEnv
    from lightsim2grid import LightSimBackend

    grid = grid2op.make("l2rpn_case14_sandbox", test=True, backend=LightSimBackend())
    env = GymEnv(grid)
    env.observation_space = BoxGymObsSpace(grid.observation_space, attr_to_keep=["rho"])
    env.action_space = DiscreteActSpace(grid.action_space, attr_to_keep=["set_bus"])
    return env


def _reactor() -> gym.Env[Any, Any]:
    from pcgym import make_env

    low, high = [0.7, 300, 0.8], [1, 350, 0.9]
    return make_env(
        {
            "model": "cstr",
            "integration_method": "casadi",
            "N": 60,
            "tsim": 26,
            "SP": {"Ca": [0.85] * 30 + [0.9] * 30},
            "o_space": {"low": np.array(low), "high": np.array(high)},
            "a_space": {"low": np.array([295]), "high": np.array([302])},
            "x0": np.array([0.8, 330, 0.8]),
            "normalise_a": True,
            "normalise_o": True,
            "noise": True,
            "noise_percentage": 0.001,
        }
    )


def _junction(is_in_process: bool = False) -> gym.Env[Any, Any]:
    home = importlib.util.find_spec("sumo") or importlib.util.find_spec("sumo_data")
    if home is not None and home.submodule_search_locations:
        os.environ.setdefault("SUMO_HOME", next(iter(home.submodule_search_locations)))
    if is_in_process:
        os.environ["LIBSUMO_AS_TRACI"] = "1"
    nets = Path(str(importlib.util.find_spec("sumo_rl").origin)).parent / "nets" / "single-intersection"  # type: ignore[union-attr]
    importlib.import_module("sumo_rl")
    net, routes = (str(nets / f"single-intersection.{kind}.xml") for kind in ("net", "rou"))
    return gym.make("sumo-rl-v0", net_file=net, route_file=routes, num_seconds=500, sumo_warnings=False)


def _robot() -> gym.Env[Any, Any]:
    import robosuite
    from robosuite.wrappers import GymWrapper

    settings = {"has_renderer": False, "has_offscreen_renderer": False, "use_camera_obs": False}
    return GymWrapper(robosuite.make("Lift", robots="Panda", horizon=40, **settings))


def _plumber() -> gym.Env[Any, Any]:
    from nes_py.wrappers import JoypadSpace

    return JoypadSpace(importlib.import_module("gym_super_mario_bros").make("SuperMarioBros-v0"), [["NOOP"], ["right"]])


def _snake() -> gym.Env[Any, Any]:
    import jumanji
    from jumanji.wrappers import JumanjiToGymWrapper

    return JumanjiToGymWrapper(jumanji.make("Snake-v1"))


def _imported(module: str, name: str, *arguments: Any, **kwargs: Any) -> Any:
    return getattr(importlib.import_module(module), name)(*arguments, **kwargs)


SIMULATORS = {
    "gym-anytrading": Simulator("gym_anytrading", "stocks-v0", lambda: gym.make("stocks-v0")),
    "gym-trading-env": Simulator("gym_trading_env", "TradingEnv", _trading),
    "panda-gym (PyBullet)": Simulator("panda_gym", "PandaReach-v3", lambda: gym.make("PandaReach-v3")),
    "grid2op with lightsim2grid": Simulator("grid2op", "l2rpn_case14_sandbox", _power_grid),
    "sumo-rl (SUMO through TraCI)": Simulator("traci", "single-intersection", _junction),
    "sumo-rl (SUMO through libsumo)": Simulator("sumolib", "single-intersection", lambda: _junction(is_in_process=True)),
    "NLE": Simulator("nle", "NetHackScore-v0", lambda: gym.make("NetHackScore-v0")),
    "VizDoom": Simulator("vizdoom.gymnasium_wrapper", "VizdoomBasic-v1", lambda: gym.make("VizdoomBasic-v1")),
    "gymnasium-2048": Simulator(
        "gymnasium_2048", "TwentyFortyEight-v0", lambda: gym.make("gymnasium_2048/TwentyFortyEight-v0")
    ),
    "tetris-gymnasium": Simulator("tetris_gymnasium.envs", "Tetris", lambda: gym.make("tetris_gymnasium/Tetris")),
    "Crafter": Simulator("crafter", "crafter.Env", lambda: ClassicEnv(_imported("crafter", "Env", seed=3))),
    "JSSEnv": Simulator("JSSEnv", "JssEnv", lambda: JobShop(_imported("JSSEnv.envs.jss_env", "JssEnv"))),
    "Meta-World": Simulator("metaworld", "reach-v3", lambda: gym.make("Meta-World/MT1", env_name="reach-v3")),
    "robosuite": Simulator("robosuite", "Lift", _robot),
    "gym-electric-motor": Simulator(
        "gym_electric_motor",
        "Cont-CC-PMSM-v0",
        lambda: gym.wrappers.FlattenObservation(_imported("gym_electric_motor", "make", "Cont-CC-PMSM-v0")),
    ),
    "pc-gym": Simulator("pcgym", "cstr", _reactor),
    "simglucose": Simulator(
        "simglucose", "adolescent#002", lambda: _imported("simglucose.envs", "T1DSimGymnaisumEnv", "adolescent#002")
    ),
    "PyFlyt": Simulator("PyFlyt.gym_envs", "QuadX-Hover-v4", lambda: gym.make("PyFlyt/QuadX-Hover-v4")),
    "rware": Simulator("rware", "rware-tiny-1ag-v2", lambda: OneAgent(gym.make("rware-tiny-1ag-v2"))),
    "gym-super-mario-bros": Simulator("gym_super_mario_bros", "SuperMarioBros-v0", _plumber),
    "stable-retro": Simulator(
        "stable_retro",
        "Airstriker-Genesis-v0",
        lambda: _imported("stable_retro", "make", "Airstriker-Genesis-v0", render_mode="rgb_array"),
    ),
    "python-chess": Simulator("chess", "chess.Board", Chess),
    "pgx": Simulator("pgx", "minatar-breakout", lambda: PgxGame("minatar-breakout")),
    "jumanji": Simulator("jumanji", "Snake-v1", _snake),
}


def step_seconds(algorithm: type[PPO] | type[HybridGRPO], make: Simulator) -> float:
    """Measure a committed step with all that goes with it, in the second rollout and its update."""
    venv = make_vec_env(make, 1, seed=0)
    space = venv.observation_space
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "CnnPolicy" if is_image_space(space) else "MlpPolicy"
    model = algorithm(policy, venv, n_steps=ROLLOUT, batch_size=ROLLOUT, device="cpu", seed=0)
    model.learn(ROLLOUT)
    start = time.perf_counter()
    model.learn(ROLLOUT)
    seconds = time.perf_counter() - start
    venv.close()
    return seconds / ROLLOUT


def measure(name: str) -> dict[str, Any]:
    """Say how a simulator is branched, and what a committed step costs in units of PPO's."""
    make = SIMULATORS[name]
    report = check_branchable(make, n_steps=N_STEPS)
    try:
        ratio = step_seconds(HybridGRPO, make) / step_seconds(PPO, make)
    except HybridGRPOError:
        ratio = None
    return {"brancher": report.brancher, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SIMULATORS)
    warnings.simplefilter("ignore")
    # Simulators write to standard output as they please.
    print(f"\n{json.dumps(measure(parser.parse_args().name))}", flush=True)


if __name__ == "__main__":
    main()
