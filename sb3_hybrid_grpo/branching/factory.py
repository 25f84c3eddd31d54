"""The one door through which algorithms get a brancher."""

from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.choice import BRANCHER_NAMES
from sb3_hybrid_grpo.branching.models import LearnedBrancher
from sb3_hybrid_grpo.branching.vec_env import VecEnvBrancher
from sb3_hybrid_grpo.common import Brancher, BrancherFactory, InvalidArgumentError


def make_brancher(brancher: str | BrancherFactory, venv: VecEnv, timeout: float | None = None) -> Brancher:
    """
    Make the brancher of a training environment.

    :param brancher: ``"snapshot"``: save and restore the state of the environments; ``"fork"``: copy their process for every
        branch; ``"replay"``: take the steps of the episode again in a copy of the environment; ``"quickest"`` of these two
        at each state; ``"auto"``: snapshots where they are exact, else the quickest way that is, with a warning;
        ``"learned"``: a model of the environment, learned along the way; or a callable that makes a ``Brancher`` for a
        vectorised environment
    :param venv: the training environment
    :param timeout: seconds that all branches of an environment may take for one step; a callable has its own limits
    :return: its brancher
    :raises InvalidArgumentError: if the name is unknown
    :raises UnbranchableEnvError: if the environment cannot be branched exactly
    """
    if brancher == "learned":
        return LearnedBrancher(venv)
    if callable(brancher):
        return brancher(venv)
    if brancher not in BRANCHER_NAMES:
        names = ", ".join(map(repr, (*BRANCHER_NAMES, "learned")))
        raise InvalidArgumentError(
            f"Unknown brancher {brancher!r}: choose one of {names}, or pass a callable that makes a Brancher from a VecEnv."
        )
    return VecEnvBrancher(venv, timeout, brancher)
