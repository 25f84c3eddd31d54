"""
Runs SB3's own test suite with ``PPO`` replaced by ``HybridGRPO``: every test of it that exercises PPO.

    python tests/sb3_suite.py PATH_TO_SB3_CHECKOUT [--algo {hybrid_grpo,ppo}] [--everything] [pytest arguments]
    python tests/sb3_suite.py PATH_TO_SB3_CHECKOUT --vec-env {grouped,ray} [pytest arguments]

The checkout contributes only its tests; they judge the *installed* Stable-Baselines3. A test that fails with
``--algo ppo`` as well does not fit the installed version, or the machine.

A test exercises PPO if it is parametrised with it, or, where it is not parametrised with algorithms, if its source names
it; all others are deselected. ``--everything`` checks this rule: it runs all tests, and one that should have been
deselected fails if it makes a PPO model.

With ``--vec-env`` one of our vectorised environments takes the place of ``SubprocVecEnv``, and every test that makes one runs.

What takes the place of PPO is a subclass of ``HybridGRPO`` that differs in its name, in the name of its TensorBoard runs
(some tests look for "PPO" in messages and folders), and in the default arguments of the tests in ``PPO_EQUIVALENT``.
"""

import argparse
import inspect
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import stable_baselines3 as sb3
from stable_baselines3.common import vec_env
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO

VEC_ENVS = {"grouped": "GroupedSubprocVecEnv", "ray": "RayVecEnv"}
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"hybrid_grpo": HybridGRPO, "ppo": sb3.PPO}
SB3_NAMES = {name for name, value in vars(sb3).items() if inspect.isclass(value) and issubclass(value, BaseAlgorithm)}

PPO_EQUIVALENT = {
    "test_gae.py::test_gae_computation": "compares advantages with GAE's numbers",
    "test_vec_extract_dict_obs.py::test_vec_with_ppo": "its VecEnv is one simulator: it holds no environments to branch",
}
"""
Tests that run with ``n_samples=1, reward_transform="identity", refit_critic=False, max_actor_grad_norm=None``, where
HybridGRPO is PPO, and why.
"""


def stand_in(algorithm: type[BaseAlgorithm]) -> Any:
    """
    Make the class that takes the place of PPO.

    :param algorithm: what is tested
    :return: a subclass that counts its models and whose default arguments can be changed
    """

    class PPO(algorithm):  # type: ignore[misc, valid-type]
        n_models = 0
        defaults: dict[str, Any] = {}

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            PPO.n_models += 1
            super().__init__(*args, **{**self.defaults, **kwargs})

        def learn(self, *args: Any, tb_log_name: str = "PPO", **kwargs: Any) -> Any:
            return super().learn(*args, tb_log_name=tb_log_name, **kwargs)

    return PPO


def exercises_ppo(item: pytest.Function) -> bool:
    """
    Tell whether a test is selected.

    :param item: a test
    :return: whether it exercises PPO, see above
    """
    algorithms = set(item.callspec.id.upper().split("-")) & SB3_NAMES if hasattr(item, "callspec") else set()
    if algorithms:
        return "PPO" in algorithms
    return re.search(r"\bPPO\b", inspect.getsource(item.function)) is not None


def makes_workers(item: pytest.Function) -> bool:
    """
    Tell whether a test makes a ``SubprocVecEnv``.

    :param item: a test
    :return: whether it names the class, or is parametrised with what took its place
    """
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return vec_env.SubprocVecEnv in parameters or "SubprocVecEnv" in inspect.getsource(item.function)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vec-env", choices=VEC_ENVS, help="what takes the place of SubprocVecEnv")
    parser.addoption("--algo", choices=ALGORITHMS, default="hybrid_grpo", help="what takes the place of PPO")
    parser.addoption("--everything", action="store_true", help="run all tests to check which of them exercise PPO")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--vec-env")
    if name is not None:
        if "forkserver" in multiprocessing.get_all_start_methods():
            multiprocessing.set_forkserver_preload(["sb3_hybrid_grpo"])
        vec_env.SubprocVecEnv = getattr(sb3_hybrid_grpo, VEC_ENVS[name])
        return
    ppo = stand_in(ALGORITHMS[config.getoption("algo")])
    for module in (sb3, sb3.ppo, sb3.ppo.ppo):
        module.PPO = ppo


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    if not config.getoption("everything"):
        is_selected = makes_workers if config.getoption("--vec-env") else exercises_ppo
        config.hook.pytest_deselected(items=[item for item in items if not is_selected(item)])
        items[:] = filter(is_selected, items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    if item.config.getoption("--vec-env"):
        return (yield)
    n_before = sb3.PPO.n_models
    if item.config.getoption("algo") != "ppo" and item.nodeid.split("[")[0].endswith(tuple(PPO_EQUIVALENT)):
        sb3.PPO.defaults = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
    try:
        result = yield
    finally:
        sb3.PPO.defaults = {}
    made_ppo = sb3.PPO.n_models > n_before
    if exercises_ppo(item):
        item.user_properties.append(("made PPO", made_ppo))
    elif made_ppo:
        pytest.fail("This test exercises PPO, but is not selected.")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.getoption("--vec-env"):
        return
    idle = [report.nodeid for report in terminalreporter.getreports("passed") if ("made PPO", False) in report.user_properties]
    terminalreporter.section(f"{len(idle)} tests passed without making a PPO model")
    for nodeid in idle:
        terminalreporter.line(nodeid)


def main() -> int:
    """
    Run the tests of a checkout in a temporary copy.

    :return: pytest's exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="source checkout of Stable-Baselines3")
    args, pytest_args = parser.parse_known_args()
    if not (args.checkout / "tests" / "test_run.py").is_file():
        parser.error(f"{args.checkout} is no source checkout of Stable-Baselines3")
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(args.checkout / "tests", Path(directory, "tests"))
        shutil.copy(args.checkout / "pyproject.toml", directory)
        os.chdir(directory)
        return pytest.main(["-p", "sb3_suite", *pytest_args])


if __name__ == "__main__":
    sys.exit(main())
