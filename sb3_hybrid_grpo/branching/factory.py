"""The one door through which algorithms get a brancher."""

from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo.branching.vec_env import VecEnvBrancher
from sb3_hybrid_grpo.common.type_aliases import Brancher, BrancherFactory, InvalidArgumentError

_BRANCHERS = {"auto": VecEnvBrancher}


def make_brancher(brancher: str | BrancherFactory, venv: VecEnv, timeout: float | None = None) -> Brancher:
    """
    Make the brancher of a training environment.

    :param brancher: ``"auto"`` (exact snapshots), or a callable that makes a ``Brancher`` for a vectorised environment
    :param venv: the training environment
    :param timeout: seconds that all branches of an environment may take for one step; a callable has its own limits
    :return: its brancher
    :raises InvalidArgumentError: if the name is unknown
    :raises UnbranchableEnvError: if the environment cannot be branched exactly
    """
    if callable(brancher):
        return brancher(venv)
    if brancher not in _BRANCHERS:
        raise InvalidArgumentError(
            f"Unknown brancher {brancher!r}: choose one of {', '.join(map(repr, _BRANCHERS))}, or pass a callable that makes "
            "a Brancher from a VecEnv."
        )
    return _BRANCHERS[brancher](venv, timeout)
