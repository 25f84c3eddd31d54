"""
One timed run in a process of its own, since peak memory belongs to a process.

    python -m benchmarks.speed.timed_run JSON

The argument holds the fields of a ``Run``; a line of JSON with the measurements goes to standard output. Phases are timed from
outside, by wrapping public methods and functions, at about a microsecond per call.
"""

import contextlib
import inspect
import json
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack

from sb3_hybrid_grpo import HybridGRPO
from sb3_hybrid_grpo.branching import LearnedBrancher, make_brancher
from sb3_hybrid_grpo.common.type_aliases import Brancher
from sb3_hybrid_grpo.hybrid_grpo import macro_steps
from sb3_hybrid_grpo.policies.actors import Actor, MlpActor
from sb3_hybrid_grpo.rollout.rollout_branches import LateBranches
from sb3_hybrid_grpo.rollout.values import DeferredValues

with contextlib.suppress(ImportError):  # Windows
    import resource

ALGORITHMS: dict[str, type[OnPolicyAlgorithm]] = {"hybrid_grpo": HybridGRPO, "ppo": PPO, "trpo": TRPO}
VEC_ENVS = {"dummy": DummyVecEnv, "subproc": SubprocVecEnv}
# What all three have; what else HybridGRPO and PPO share has the same default, and TRPO's critic is trained 10 epochs as well.
SHARED = ("learning_rate", "batch_size", "gamma", "gae_lambda", "normalize_advantage")
ROLLOUT_PHASES = ("env_step", "branching", "values")


class Run(NamedTuple):
    """
    What is timed.

    :param environment: environment id; the policy is a ``CnnPolicy`` for ``ALE/``, else a ``MlpPolicy``
    :param n_envs: number E of environments
    :param vec_env: name in ``VEC_ENVS``
    :param n_steps: committed steps per environment and rollout
    :param iterations: number of rollouts and updates that are timed
    :param pair: index of the repetition, which is also the seed
    :param algorithm: name in ``ALGORITHMS``
    :param n_samples: number N of actions per state
    :param branch_horizon: number K of steps per branch
    :param branch_fraction: share of states that are branched, or ``"auto"``
    :param device: PyTorch's device
    :param brancher: name of the brancher; training a learned model counts as branching
    :param warm_up: number of rollouts and updates before those that are timed
    """

    environment: str
    n_envs: int
    vec_env: str
    n_steps: int
    iterations: int
    pair: int
    algorithm: str
    n_samples: int = 1
    branch_horizon: int = 1
    branch_fraction: float | str = 1.0
    device: str = "cpu"
    brancher: str = "auto"
    warm_up: int = 1

    def columns(self) -> dict[str, str]:
        """Return the columns that tell its row from those of other runs."""
        return {name: str(value) for name, value in self._asdict().items()}


class Clock:
    """Adds up the seconds of phases. A rollout is split into phases of its own; no other phase is."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._phase: str | None = None

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """
        Time each call of a function or method from now on.

        :param owner: the object, class or module that has it
        :param name: its name there
        :param phase: the phase that a call is
        """
        function = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._phase not in (None, "rollout"):
                return function(*args, **kwargs)
            outer, self._phase = self._phase, phase
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[phase] += time.perf_counter() - start
                self._phase = outer

        setattr(owner, name, timed)


def make_env(run: Run) -> VecEnv:
    """
    Make the environments as SB3's users do.

    :param run: what is timed
    :return: vectorised environment
    """
    kwargs: dict[str, Any] = {"n_envs": run.n_envs, "seed": run.pair, "vec_env_cls": VEC_ENVS[run.vec_env]}
    if not run.environment.startswith("ALE/"):
        return make_vec_env(run.environment, **kwargs)
    # The module's name before the colon has it imported in workers, too.
    return VecFrameStack(make_atari_env(f"ale_py:{run.environment}", **kwargs), n_stack=4)


def make_model(run: Run, env: VecEnv, clock: Clock) -> OnPolicyAlgorithm:
    """
    Make the model with PPO's defaults, its phases watched.

    :param run: what is timed
    :param env: the training environment
    :param clock: the clock that adds up its phases
    :return: the model
    """
    algorithm = ALGORITHMS[run.algorithm]
    defaults = inspect.signature(PPO).parameters
    kwargs: dict[str, Any] = {name: defaults[name].default for name in SHARED}
    if algorithm is HybridGRPO:
        kwargs |= {name: getattr(run, name) for name in ("n_samples", "branch_horizon", "branch_fraction")}
        is_learned = run.brancher == "learned"
        kwargs["brancher"] = run.brancher if is_learned else partial(watched_brancher, clock, run.brancher)
    policy = "CnnPolicy" if run.environment.startswith("ALE/") else "MlpPolicy"
    model = algorithm(policy, env, n_steps=run.n_steps, seed=run.pair, device=run.device, **kwargs)

    clock.watch(model, "collect_rollouts", "rollout")
    clock.watch(model, "train", "update")
    for name in ("step_async", "step_wait"):
        clock.watch(model.env, name, "env_step")
    clock.watch(model.policy, "predict_values", "values")
    clock.watch(model.rollout_buffer, "compute_returns_and_advantage", "values")
    clock.watch(DeferredValues, "flush", "values")
    clock.watch(macro_steps, "evaluate_rollout", "values")
    for actor in (Actor, MlpActor):
        clock.watch(actor, "act", "branching")
    clock.watch(LateBranches, "finish_all", "branching")
    clock.watch(LearnedBrancher, "learn_from", "branching")
    return model


def watched_brancher(clock: Clock, name: str, env: VecEnv) -> Brancher:
    """
    Make the brancher that HybridGRPO would make for itself.

    :param clock: the clock that adds up its time
    :param name: its name
    :param env: the training environment
    :return: the brancher
    """
    brancher = make_brancher(name, env)
    for method in ("open", "follow", "advance", "close", "observed", "remember"):
        clock.watch(brancher, method, "branching")
    return brancher


def measure(run: Run) -> dict[str, Any]:
    """
    Train and measure.

    :param run: what is timed
    :return: counts, rates and seconds over all timed iterations (where ``cpu_seconds``, without workers, are far fewer than
        ``seconds``, other processes had the cores), and the peak memory since the process began
    """
    clock = Clock()
    env = make_env(run)
    model = make_model(run, env, clock)
    rollout_steps = run.n_steps * run.n_envs
    model.learn(run.warm_up * rollout_steps)
    steps_before = model.num_timesteps

    clock.seconds.clear()
    earlier_simulator_steps = simulator_steps(model)
    start, cpu_start = time.perf_counter(), time.process_time()
    model.learn(run.iterations * rollout_steps, reset_num_timesteps=False)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start

    steps = {
        "committed_steps": model.num_timesteps - steps_before,
        "simulator_steps": simulator_steps(model) - earlier_simulator_steps,
    }
    peak = peak_rss_mb([process.pid for process in getattr(env.unwrapped, "processes", [])])
    env.close()
    return {
        **steps,
        **{f"{name}_per_second": count / seconds for name, count in steps.items()},
        "seconds": seconds,
        **{f"{phase}_seconds": clock.seconds[phase] for phase in ("rollout", *ROLLOUT_PHASES, "update")},
        "cpu_seconds": cpu_seconds,
        "peak_rss_mb": peak,
    }


def simulator_steps(model: OnPolicyAlgorithm) -> int:
    """
    Count the simulator's steps, those in branches included.

    :param model: a model
    :return: their number since it was made
    """
    return getattr(model, "num_simulator_steps", model.num_timesteps)


def peak_rss_mb(workers: Iterable[int]) -> float | None:
    """
    Add up the peak memory of this process and its workers, pages they share counted in each.

    :param workers: ids of the workers
    :return: megabytes; unknown on Windows, and for workers outside Linux
    """
    if Path("/proc/self/status").exists():
        # Not resource.getrusage: on Linux its maximum survives exec, and so includes the process that started this one.
        statuses = [Path(f"/proc/{process}/status").read_text() for process in ("self", *workers)]
        return sum(int(kilobytes) for kilobytes in re.findall(r"VmHWM:\s+(\d+) kB", "".join(statuses))) * 1024 / 1e6
    if any(workers) or "resource" not in globals():
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


if __name__ == "__main__":
    print(json.dumps(measure(Run(**json.loads(sys.argv[1])))))
