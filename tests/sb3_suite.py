"""
Runs SB3's own test suite with ``PPO`` replaced by ``HybridGRPO``: every test of it that exercises PPO. Or sb3-contrib's, with
``MaskablePPO`` and ``RecurrentPPO`` replaced.

    python tests/sb3_suite.py PATH_TO_A_CHECKOUT [--algo {hybrid_grpo,stock}] [--everything] [pytest arguments]
    python tests/sb3_suite.py PATH_TO_SB3_CHECKOUT --vec-env {grouped,ray} [pytest arguments]

The checkout, of Stable-Baselines3 or of sb3-contrib, contributes only its tests; they judge the *installed* package. A test
that fails with ``--algo stock``, which replaces nothing, does not fit the installed version, or the machine.

A test exercises an algorithm if it is parametrised with it, or, where it is not parametrised with algorithms, if its source
names it; all others are deselected. ``--everything`` checks this rule: it runs all tests, and one that should have been
deselected fails if it makes a model of a replaced algorithm.

With ``--vec-env`` one of our vectorised environments takes the place of ``SubprocVecEnv``, and every test that makes one runs.

What takes their places are subclasses of ``HybridGRPO`` that differ in the name (some tests look for it in messages and
folders), in the name of TensorBoard runs, in policies' names, in RecurrentPPO's default arguments, and in the default
arguments of the tests in ``PPO_EQUIVALENT``. Tests in ``DIFFERENT_ON_PURPOSE`` must fail.
"""

import argparse
import inspect
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import sb3_contrib
import stable_baselines3 as sb3
from stable_baselines3.common import vec_env
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_hybrid_grpo
from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.hybrid_grpo.policies import MaskableCnnPolicy, MaskableMlpPolicy, MaskableMultiInputPolicy

VEC_ENVS = {"grouped": "GroupedSubprocVecEnv", "ray": "RayVecEnv"}


class Suite(NamedTuple):
    """
    Tests of a package.

    :param package: the package
    :param modules: where its tests find the algorithms that are replaced
    :param replaced: their names, and what their models have beside what ``HybridGRPO`` has
    """

    package: ModuleType
    modules: tuple[ModuleType, ...]
    replaced: Mapping[str, Mapping[str, Any]]

    @property
    def algorithms(self) -> set[str]:
        """Names of the package's algorithms."""
        classes = {name: value for name, value in vars(self.package).items() if inspect.isclass(value)}
        return {name for name, value in classes.items() if issubclass(value, BaseAlgorithm)}


MASKABLE = {"MlpPolicy": MaskableMlpPolicy, "CnnPolicy": MaskableCnnPolicy, "MultiInputPolicy": MaskableMultiInputPolicy}
SUITES = {
    "stable_baselines3": Suite(sb3, (sb3, sb3.ppo, sb3.ppo.ppo), {"PPO": {}}),
    "sb3_contrib": Suite(
        sb3_contrib,
        (sb3_contrib, sb3_contrib.ppo_mask, sb3_contrib.ppo_recurrent),
        {
            "MaskablePPO": {"policy_aliases": MASKABLE},
            "RecurrentPPO": {"defaults": {"n_steps": 128, "batch_size": 128}},
        },
    ),
}

PPO_SETTINGS = {"n_samples": 1, "reward_transform": "identity", "refit_critic": False, "max_actor_grad_norm": None}
PPO_EQUIVALENT = {
    "test_gae.py::test_gae_computation": "compares advantages with GAE's numbers",
    "test_vec_extract_dict_obs.py::test_vec_with_ppo": "its VecEnv is one simulator: it holds no environments to branch",
}
"""
Tests that run with ``PPO_SETTINGS``, where HybridGRPO is PPO, and why.
"""

DIFFERENT_ON_PURPOSE = {
    "test_sde.py::test_only_sde_squashed": "squashing without gSDE is refused with an error of ours, no AssertionError",
    "test_invalid_actions.py::test_disabling_masking": "a maskable policy without masks is refused when the model is made",
    "test_invalid_actions.py::test_supports_multi_envs": "a maskable policy without masks is refused when the model is made",
    "test_invalid_actions.py::test_maskable_policy_required": "other policies do without masks",
    "test_invalid_actions.py::test_discrete_action_space_required": "a Box is refused by the policy, with another error",
}
"""Tests that must fail, and why."""


def stand_in(name: str, algorithm: type[BaseAlgorithm], attributes: Mapping[str, Any]) -> Any:
    """
    Make the class that takes the place of an algorithm.

    :param name: the algorithm's name
    :param algorithm: what is tested
    :param attributes: what it has beside that
    :return: a subclass that counts its models and whose default arguments can be changed
    """

    class StandIn(algorithm):  # type: ignore[misc, valid-type]
        n_models = 0
        defaults: dict[str, Any] = {}
        for_test: dict[str, Any] = {}

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            type(self).n_models += 1
            super().__init__(*args, **{**self.defaults, **self.for_test, **kwargs})

        def learn(self, *args: Any, tb_log_name: str = name, **kwargs: Any) -> Any:
            return super().learn(*args, tb_log_name=tb_log_name, **kwargs)

    return type(name, (StandIn,), dict(attributes))


def suite_of(config: pytest.Config) -> Suite:
    """
    Find the suite that runs.

    :param config: pytest's configuration
    :return: the suite
    """
    return SUITES[config.getoption("package")]


def exercises(item: pytest.Function) -> bool:
    """
    Tell whether a test is selected.

    :param item: a test
    :return: whether it exercises a replaced algorithm, see above
    """
    suite = suite_of(item.config)
    parameters = item.callspec.id.upper().split("-") if hasattr(item, "callspec") else []
    algorithms = {name for name in suite.algorithms if name.upper() in parameters}
    if algorithms:
        return bool(algorithms & set(suite.replaced))
    return re.search(rf"\b({'|'.join(suite.replaced)})\b", inspect.getsource(item.function)) is not None


def reason_for(item: pytest.Item, tests: Mapping[str, str]) -> str | None:
    """
    Look a test up.

    :param item: a test
    :param tests: reasons by names of tests
    :return: the reason, if it is among them
    """
    return next((reason for name, reason in tests.items() if item.nodeid.split("[")[0].endswith(name)), None)


def makes_workers(item: pytest.Function) -> bool:
    """
    Tell whether a test makes a ``SubprocVecEnv``.

    :param item: a test
    :return: whether it names the class, or is parametrised with what took its place
    """
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(value is vec_env.SubprocVecEnv for value in parameters) or "SubprocVecEnv" in inspect.getsource(item.function)


def without_start_method(cls: Any) -> Any:
    """
    Let a vectorised environment ignore the argument of ``SubprocVecEnv`` that means nothing to it.

    :param cls: its class
    :return: a subclass that takes it
    """

    def init(self: Any, env_fns: Any, start_method: str | None = None, **kwargs: Any) -> None:
        cls.__init__(self, env_fns, **kwargs)

    return type(cls.__name__, (cls,), {"__init__": init})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vec-env", choices=VEC_ENVS, help="what takes the place of SubprocVecEnv")
    parser.addoption("--algo", choices=("hybrid_grpo", "stock"), default="hybrid_grpo", help="what takes their places")
    parser.addoption("--package", choices=SUITES, help="whose tests these are")
    parser.addoption("--everything", action="store_true", help="run all tests to check which are selected")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--vec-env")
    if name is not None:
        if "forkserver" in multiprocessing.get_all_start_methods():
            multiprocessing.set_forkserver_preload(["sb3_hybrid_grpo"])
        ours = getattr(sb3_hybrid_grpo, VEC_ENVS[name])
        if name == "ray":
            import ray

            # Some tests make several environments at once.
            ray.init(num_cpus=8)
        vec_env.SubprocVecEnv = without_start_method(ours) if name == "ray" else ours
        return
    suite, is_replaced = suite_of(config), config.getoption("algo") != "stock"
    for name, attributes in suite.replaced.items():
        stock = getattr(suite.package, name)
        replacement = stand_in(name, HybridGRPO, attributes) if is_replaced else stand_in(name, stock, {})
        for module in suite.modules:
            if hasattr(module, name):
                setattr(module, name, replacement)


NOT_FOR_RAY = ("test_vec_envs.py::test_subproc_start_method",)
"""Tests of what actors do not have."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    if not config.getoption("everything"):
        is_selected = makes_workers if config.getoption("--vec-env") else exercises
        if config.getoption("--vec-env") == "ray":
            items[:] = [item for item in items if not item.nodeid.split("[")[0].endswith(NOT_FOR_RAY)]
        config.hook.pytest_deselected(items=[item for item in items if not is_selected(item)])
        items[:] = filter(is_selected, items)
    if config.getoption("algo") != "stock":
        for item in items:
            reason = reason_for(item, DIFFERENT_ON_PURPOSE)
            if reason is not None:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Function) -> Generator[None, Any, Any]:
    if item.config.getoption("--vec-env"):
        return (yield)
    suite = suite_of(item.config)
    stand_ins = [getattr(suite.package, name) for name in suite.replaced]
    n_before = sum(each.n_models for each in stand_ins)
    is_ppo = item.config.getoption("algo") != "stock" and reason_for(item, PPO_EQUIVALENT) is not None
    for each in stand_ins:
        each.for_test = PPO_SETTINGS if is_ppo else {}
    result = yield
    made_one = sum(each.n_models for each in stand_ins) > n_before
    if exercises(item):
        item.user_properties.append(("made a model", made_one))
    elif made_one:
        pytest.fail("This test exercises a replaced algorithm, but is not selected.")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.getoption("--vec-env"):
        return
    passed = terminalreporter.getreports("passed")
    idle = [report.nodeid for report in passed if ("made a model", False) in report.user_properties]
    terminalreporter.section(f"{len(idle)} tests passed without making a model of a replaced algorithm")
    for nodeid in idle:
        terminalreporter.line(nodeid)


def main() -> int:
    """
    Run the tests of a checkout in a temporary copy.

    :return: pytest's exit status
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="source checkout of Stable-Baselines3 or of sb3-contrib")
    args, pytest_args = parser.parse_known_args()
    if not (args.checkout / "tests" / "test_run.py").is_file():
        parser.error(f"{args.checkout} is no source checkout of Stable-Baselines3 or of sb3-contrib")
    package = next((name for name in SUITES if (args.checkout / name).is_dir()), "stable_baselines3")
    with tempfile.TemporaryDirectory() as directory:
        shutil.copytree(args.checkout / "tests", Path(directory, "tests"))
        shutil.copy(args.checkout / "pyproject.toml", directory)
        os.chdir(directory)
        return pytest.main(["-p", "sb3_suite", "--package", package, *pytest_args])


if __name__ == "__main__":
    sys.exit(main())
