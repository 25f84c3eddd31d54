"""The random numbers that decide about branches, and follow the model's seed as all others do."""

import pickle

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm


class BranchSeeds(OnPolicyAlgorithm):
    """The mixin that draws which states are branched, and which of their actions is selected, from a generator of its own."""

    _branch_rng: np.random.Generator

    def set_random_seed(self, seed: int | None = None) -> None:
        """
        Set the seeds of all random generators, as in SB3.

        :param seed: The seed; by default nothing is set, and what decides about branches follows NumPy's generator
        """
        super().set_random_seed(seed)
        self._branch_rng = np.random.default_rng(
            list(pickle.dumps(np.random.get_state(legacy=False))) if seed is None else seed
        )
