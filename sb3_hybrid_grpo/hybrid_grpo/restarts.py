"""Rollouts that start again when a worker of the vectorised environment is lost."""

from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_hybrid_grpo.branching.vec_env import WorkersVecEnv
from sb3_hybrid_grpo.common import Brancher, WorkerLostError, warn
from sb3_hybrid_grpo.rollout import normalizers_of

_MOST_RESTARTS = 3
_COUNTS = ("num_timesteps", "num_simulator_steps")
_STATISTICS = ("obs_rms", "ret_rms")


class Restarts(OnPolicyAlgorithm):
    """The mixin that throws a rollout away and collects it again, see ``restart_workers`` of the vectorised environment."""

    _brancher: Brancher | None
    _branched_env: VecEnv | None

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        Collect macro-steps with the current policy, if need be again.

        :param env: The training environment
        :param callback: Callback that will be called at each committed step, also at those that are thrown away
        :param rollout_buffer: Buffer to fill with macro-steps
        :param n_rollout_steps: Number of macro-steps to collect per environment
        :return: whether the rollout was completed: ``False`` if the callback ended it
        :raises WorkerLostError: if a worker is lost, and must not be started again, or was too often
        """
        workers = env.unwrapped
        if not (isinstance(workers, WorkersVecEnv) and workers.restart_workers):
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        counts = {name: getattr(self, name) for name in _COUNTS}
        statistics = [deepcopy(_statistics_of(layer)) for layer in normalizers_of(env)]
        for n_restarts in range(_MOST_RESTARTS + 1):
            try:
                if n_restarts:
                    # A cluster may still send new workers to a node that is dead: that is a loss like any other.
                    workers.restart()
                    vars(self).update(counts)
                    for layer, kept in zip(normalizers_of(env), statistics, strict=True):
                        vars(layer).update(deepcopy(kept))
                    self._brancher, self._branched_env = None, None
                    self._last_obs = env.reset()  # type: ignore[assignment]
                    self._last_episode_starts = np.ones(env.num_envs, dtype=bool)
                return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            except WorkerLostError as error:
                if not workers.is_lost or n_restarts == _MOST_RESTARTS:
                    raise
                warn(
                    f"{error} Since restart_workers=True, they are started again with new environments instead: the rollout's "
                    f"{self.num_timesteps - counts['num_timesteps']} committed steps are thrown away."
                )
        raise AssertionError("the last restart has returned or raised")


def _statistics_of(layer: VecNormalize) -> dict[str, Any]:
    return {name: value for name, value in vars(layer).items() if name in _STATISTICS}
