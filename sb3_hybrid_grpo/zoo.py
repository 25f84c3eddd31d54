"""``python -m sb3_hybrid_grpo.zoo``: train, enjoy and tune with the RL Zoo, with our algorithms among its own."""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_hybrid_grpo import GRPO, HybridGRPO
from sb3_hybrid_grpo.branching.vec_env import ENGINES

if TYPE_CHECKING:
    import optuna

_HYPERPARAMS = Path(__file__).parent / "hyperparams"
CONFIG_FILES: Mapping[str, Path] = {"hybrid_grpo": _HYPERPARAMS / "hybrid_grpo.yml", "grpo": _HYPERPARAMS / "grpo.py"}
"""Our algorithms by the name that they have in the Zoo, and their settings for each environment."""

# Which a file of settings may have, in place of the sampled ``target_kl``
_NO_OTHER_LIMITS: Mapping[str, None] = {"desired_kl": None, "trust_region": None}
_DEFAULT_ALGO = "hybrid_grpo"
_DEFAULT_LOG_FOLDER = "logs"


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run one of the Zoo's scripts with our defaults.

    :param argv: arguments of the command line, ``sys.argv`` by default
    :return: exit code
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_hybrid_grpo.zoo",
        usage="%(prog)s {train,enjoy,tune} [options of the RL Zoo]",
        description="The RL Zoo with Hybrid GRPO and GRPO.",
        epilog=f"The options are those of the Zoo's train and enjoy: '%(prog)s train --help' lists them. --algo is "
        f"{_DEFAULT_ALGO} by default; it and grpo read their settings from {_HYPERPARAMS}, unless --conf-file is given. "
        "--conf-file hybrid_grpo_seconds has settings for a score in seconds, hybrid_grpo_minutes for MuJoCo in minutes. "
        f"--engine {{{','.join(ENGINES)}}} and --workers N put the environments of train and tune into workers.",
    )
    parser.add_argument(
        "command",
        choices=("train", "enjoy", "tune"),
        help="train; show a trained agent; or search for hyperparameters, which is the Zoo's train --optimize-hyperparameters",
    )
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = parser.parse_args(arguments[:1]).command
    try:
        register()
    except ModuleNotFoundError as error:
        parser.exit(1, f"{error}\n")
    from rl_zoo3.enjoy import enjoy
    from rl_zoo3.train import train

    engine, options = _engine(command, _with_config_file(arguments[1:]))
    previous = sys.argv
    sys.argv = [f"{parser.prog} {command}", *_defaults(command, options), *options]
    try:
        with engine:
            (enjoy if command == "enjoy" else train)()
    except KeyError as error:
        if error.args != ("atari",):
            raise
        parser.exit(
            2, "These settings have no entry for Atari: leave out --conf-file, or add an entry `atari` to a copy of it.\n"
        )
    finally:
        sys.argv = previous
    return 0


def register() -> None:
    """
    Add our algorithms and their Optuna samplers to those of the Zoo, for this process.

    :raises ModuleNotFoundError: if the Zoo is not installed
    """
    try:
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER, convert_onpolicy_params
        from rl_zoo3.utils import ALGOS
    except ModuleNotFoundError as error:
        message = f'{error.name} is missing: pip install "sb3-hybrid-grpo[zoo]" installs what the RL Zoo needs'
        raise ModuleNotFoundError(message, name=error.name) from error

    def convert_hybrid_grpo_params(sampled: dict[str, Any]) -> dict[str, Any]:
        return {**convert_onpolicy_params(sampled), **_NO_OTHER_LIMITS}

    def convert_grpo_params(sampled: dict[str, Any]) -> dict[str, Any]:
        return _accepted_by_grpo(convert_hybrid_grpo_params(sampled))

    ALGOS.update(hybrid_grpo=HybridGRPO, grpo=GRPO)
    HYPERPARAMS_SAMPLER.update(hybrid_grpo=sample_hybrid_grpo_params, grpo=sample_grpo_params)
    HYPERPARAMS_CONVERTER.update(hybrid_grpo=convert_hybrid_grpo_params, grpo=convert_grpo_params)


def sample_hybrid_grpo_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample arguments of Hybrid GRPO: the Zoo's for PPO, and our own.

    :param trial: trial of a study
    :param n_actions: number of dimensions of the action space
    :param n_envs: number of environments
    :param additional_args: what the Zoo tells its samplers besides
    :return: arguments of the constructor
    """
    return {
        **_sample_common_params(trial, n_actions, n_envs, additional_args),
        "tail_coef": trial.suggest_float("tail_coef", 0, 1),
        "branch_horizon": trial.suggest_categorical("branch_horizon", [1, 2, 4, 8]),
        "branch_lambda": trial.suggest_float("branch_lambda", 0.7, 1),
    }


def sample_grpo_params(*args: Any) -> dict[str, Any]:
    """
    Sample arguments of GRPO: the Zoo's for PPO as far as GRPO has them, and the number of samples.

    :param args: see ``sample_hybrid_grpo_params``
    :return: arguments of the constructor
    """
    return _accepted_by_grpo(_sample_common_params(*args))


def _sample_common_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    from rl_zoo3.hyperparams_opt import sample_ppo_params

    return {
        **sample_ppo_params(trial, n_actions, n_envs, additional_args),
        "n_samples": trial.suggest_categorical("n_samples", [2, 4, 8]),
        "target_kl": trial.suggest_float("target_kl", 0.005, 0.1, log=True),
        **_NO_OTHER_LIMITS,
    }


def _accepted_by_grpo(arguments: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(GRPO).parameters
    return {name: value for name, value in arguments.items() if name in known}


def _engine(command: str, options: Sequence[str]) -> tuple[AbstractContextManager[None], list[str]]:
    """
    Have the Zoo make the environments in workers, if that is asked for.

    :param command: what to do
    :param options: the user's options
    :return: a context for the Zoo, and the options that it knows
    """
    parser = argparse.ArgumentParser(prog=f"python -m sb3_hybrid_grpo.zoo {command}", add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", choices=ENGINES)
    parser.add_argument("--workers", type=int)
    chosen, others = parser.parse_known_args(options)
    if chosen.engine is None and chosen.workers is None:
        return nullcontext(), others
    if command == "enjoy":
        parser.error("--engine and --workers are for train and tune")
    vec_env_class = partial(ENGINES[chosen.engine or "process"], n_workers=chosen.workers)
    return _in_place_of_subproc_vec_env(vec_env_class), ["--vec-env", "subproc", *others]


@contextmanager
def _in_place_of_subproc_vec_env(vec_env_class: Callable[..., VecEnv]) -> Iterator[None]:
    """Replace the class that the Zoo knows by the name ``subproc``."""
    from rl_zoo3 import exp_manager

    known = exp_manager.SubprocVecEnv
    exp_manager.SubprocVecEnv = vec_env_class
    try:
        yield
    finally:
        exp_manager.SubprocVecEnv = known


def _with_config_file(options: Sequence[str]) -> list[str]:
    """
    Look up one of our files of settings.

    :param options: the user's options
    :return: the same, with the file's path where its name was
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-conf", "--conf-file")
    chosen, others = parser.parse_known_args(options)
    path = _HYPERPARAMS / f"{chosen.conf_file}.yml"
    return [*others, "--conf-file", str(path)] if chosen.conf_file and path.is_file() else list(options)


def _defaults(command: str, options: Sequence[str]) -> list[str]:
    """
    Options that stand before the user's, which override them.

    The Zoo's own algorithms keep the Zoo's own defaults. For ours, enjoy looks where train has saved, because the Zoo's
    collection of trained agents has none.

    :param command: what to do
    :param options: the user's options
    :return: ours
    """
    parser = argparse.ArgumentParser(prog=f"python -m sb3_hybrid_grpo.zoo {command}", add_help=False)
    parser.add_argument("--algo", default=_DEFAULT_ALGO)
    algo = parser.parse_known_args(options)[0].algo
    defaults = ["--optimize-hyperparameters"] if command == "tune" else []
    if algo in CONFIG_FILES:
        defaults += ["--algo", algo]
        defaults += ["--folder", _DEFAULT_LOG_FOLDER] if command == "enjoy" else ["--conf-file", str(CONFIG_FILES[algo])]
    return defaults


if __name__ == "__main__":
    sys.exit(main())
