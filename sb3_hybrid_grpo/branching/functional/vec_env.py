"""SB3's vectorised environment over a functional one: a step of all environments is one call."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_hybrid_grpo.branching.functional.adapters import make_functional_env
from sb3_hybrid_grpo.branching.functional.contract import Engine, FunctionalEnv, Functions, Rows, Stepped
from sb3_hybrid_grpo.branching.functional.engines import make_engine
from sb3_hybrid_grpo.branching.functional.trees import map_trees
from sb3_hybrid_grpo.branching.functional.validation import check_functional_env, check_max_episode_steps, check_spaces


class FunctionalVecEnv(VecEnv):
    """
    Environments whose states are rows of arrays, for ``HybridGRPO``, PPO and all other algorithms of SB3.

    Episodes start anew by themselves, are cut off after ``max_episode_steps`` and report their returns, as behind ``Monitor``.

    :param env: a functional environment, see ``FunctionalEnv``, or an id such as ``"gymnax:CartPole-v1"`` or ``"brax:ant"``
    :param n_envs: number of environments
    :param seed: seed of the first environment, the others have the following ones; a random one if ``None``
    :param max_episode_steps: number of steps after which an episode is cut off, ``math.inf`` where none needs to be; by
        default the environment's attribute of that name
    :param arrays: library of its arrays: ``"jax"``, ``"numpy"`` or ``"torch"``; by default the environment's attribute of that
        name, else JAX
    :param device: where the states are: ``"auto"``, ``"cpu"`` or ``"cuda"``
    :raises InvalidArgumentError: if an argument has a value that cannot work
    :raises MissingExtraError: if the library is not installed
    :raises FunctionalEnvError: if the environment is no functional one
    :raises InvalidOutcomeError: if it returns NaN or infinity at once
    """

    def __init__(
        self,
        env: FunctionalEnv | str,
        n_envs: int,
        seed: int | None = None,
        max_episode_steps: float | None = None,
        arrays: str | None = None,
        device: str = "auto",
    ) -> None:
        if isinstance(env, str):
            env = make_functional_env(env)
        self.env = env
        check_spaces(env)
        self.max_episode_steps = check_max_episode_steps(env, max_episode_steps)
        self.arrays = str(arrays or getattr(env, "arrays", "jax"))
        functions = Functions(env, self.max_episode_steps)
        self.engine: Engine = make_engine(self.arrays, functions, device)
        self.n_masks = check_functional_env(env, functions, self.arrays, self.engine, n_envs)
        super().__init__(n_envs, env.observation_space, env.action_space)
        self.time = 0
        self._start_time = time.time()
        self._actions: np.ndarray | None = None
        self.seed(seed)
        self.reset()

    @property
    def rows(self) -> Rows:
        """The present states."""
        return self._now.rows

    def reset(self) -> VecEnvObs:
        """
        Start an episode in all environments.

        :return: its observations
        """
        seeds = [seed for seed in self._seeds if seed is not None]
        if seeds:
            self.keys = self.engine.keys(seeds)
            self.time = 0
        self._now = self.engine.start(self.keys, self.time)
        self.time += 1
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=int)
        self._reset_seeds()
        self._reset_options()
        observations: VecEnvObs = self._observations(self._now)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """
        Ask for a step.

        :param actions: actions, [E, \\*action_shape]
        """
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """
        Take the step.

        :return: observations, rewards, ends of episodes and infos
        """
        stepped = self.engine.step(
            self.rows, self.keys, np.array([self.time]), self._actions, np.ones(self.num_envs, dtype=bool)
        )
        rewards, terminated, truncated = (np.array(part) for part in self.engine.to_numpy(tuple(stepped[2:5])))
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._returns += rewards
        self._lengths += 1
        self._now = stepped
        if dones.any():
            self._now = self.engine.restart(stepped, self.keys, self.time, dones)
            self._report(stepped, dones, truncated & ~terminated, infos)
        self.time += 1
        return self._observations(self._now), rewards, dones, infos

    def action_masks(self) -> np.ndarray:
        """
        Tell which actions are valid in the present states.

        :return: masks, [E, M]
        """
        masks = self.engine.to_numpy(self._now.masks)
        return np.array(masks, dtype=bool).reshape(self.num_envs, -1)

    def close(self) -> None:
        """Do nothing: there is nothing but arrays."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        Return an attribute of the functional environment, once for each of the indices.

        :param attr_name: its name
        :param indices: which environments
        :return: its values
        """
        indices = list(self._get_indices(indices))
        if attr_name == "render_mode":
            return [None for _ in indices]
        if attr_name == "action_masks":
            if not self.n_masks:
                raise AttributeError(
                    f"{type(self.env).__name__} has no method `action_mask` that tells which actions are valid."
                )
            return [lambda idx=idx: self.action_masks()[idx] for idx in indices]
        return [getattr(self.env, attr_name) for _ in indices]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse: the functions of an environment are constant, and compiled."""
        raise NotImplementedError(
            f"{attr_name!r} cannot be set: what a functional environment does must not change. Make another FunctionalVecEnv."
        )

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """
        Call a method of the functional environment, once for each of the indices.

        :param method_name: its name; ``"action_masks"`` returns the masks of the present states
        :param method_args: its arguments
        :param indices: which environments
        :param method_kwargs: its keyword arguments
        :return: the results
        """
        if method_name == "action_masks" and self.n_masks:
            return [*self.action_masks()[list(self._get_indices(indices))]]
        return [method(*method_args, **method_kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        Tell whether environments do what a wrapper does: report their episodes, as ``Monitor``.

        :param wrapper_class: class of the wrapper
        :param indices: which environments
        :return: whether they do
        """
        return [issubclass(wrapper_class, Monitor) for _ in self._get_indices(indices)]

    def _report(self, stepped: Stepped, dones: np.ndarray, truncated: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Tell how episodes ended, and forget them."""
        last = map_trees(lambda part: part[dones], self._observations(stepped))
        seconds = round(time.time() - self._start_time, 6)
        for row, idx in enumerate(map(int, np.flatnonzero(dones))):
            infos[idx] = {
                "terminal_observation": map_trees(lambda part, row=row: part[row], last),
                "TimeLimit.truncated": bool(truncated[idx]),
                "episode": {"r": round(float(self._returns[idx]), 6), "l": int(self._lengths[idx]), "t": seconds},
            }
        self._returns[dones] = 0
        self._lengths[dones] = 0

    def _observations(self, stepped: Stepped) -> Any:
        """Return observations that the caller may write into."""
        return map_trees(np.array, self.engine.to_numpy(stepped.observations))
