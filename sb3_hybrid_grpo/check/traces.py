"""What branches leave behind, seen from runs with and without them."""

from typing import Any

import gymnasium as gym

from sb3_hybrid_grpo.branching.simulator import Simulator
from sb3_hybrid_grpo.branching.surroundings import HiddenState
from sb3_hybrid_grpo.check.laws import Run, same
from sb3_hybrid_grpo.common import UnbranchableEnvError

_MOST_VARIABLES = 40


def compare_runs(name: str, branched: Run, first: Run, second: Run, n_envs: int) -> tuple[list[str], list[str]]:
    """
    Compare a run that was branched with two that were not.

    :param name: the way to branch
    :param branched: the run that was branched
    :param first: one that was not, with the same seed
    :param second: another
    :param n_envs: number of environments
    :return: what branches left behind, and what there is to say of the comparison
    """
    summary = f"{name}: {len(branched.results)} steps with {n_envs} environment(s), {len(branched.ends)} ends of episodes"
    notes = []
    if first.global_generators:
        notes.append(
            f"Steps draw from {' and '.join(first.global_generators)}, which the whole process shares: it is saved with "
            "every branch, which is slow. Draw from self.np_random instead."
        )
    if not same(first.results, second.results):
        notes.append(
            f"{summary}; branches told what the steps returned. Runs with the same seed differ even without branching, "
            "so whether branches leave a trace cannot be seen. Does the environment draw from self.np_random?"
        )
        return [], notes
    problems = []
    for what, field in {"steps returned": "results", "self.np_random drew": "next_random"}.items():
        plain = getattr(first, field)
        if same(plain, getattr(second, field)) and not same(plain, getattr(branched, field)):
            problems.append(
                f"{name}: {what} something else after branching than in a run with the same seed that was not branched. "
                "Keep all state that steps change in attributes."
            )
    for variable, content in first.variables.items():
        if content == second.variables.get(variable) and content != branched.variables.get(variable):
            problems.append(f"{name}: {variable} is another one after branching than in a run that was not branched.")
    if not problems:
        notes.append(f"{summary}; branches told what the steps returned and left no trace, even those that raised")
    return problems, notes


def treatment_of_variables(env: gym.Env[Any, Any]) -> dict[str, str]:
    """
    Tell what branching does about the variables beside the attributes of an environment.

    :param env: the environment
    :return: ``"saved"``, or that it is not, by name of the variable
    """
    simulator = Simulator(env)
    try:
        with simulator.unwatched():
            treatments = HiddenState(simulator.root, simulator.attributes).treatments
    except UnbranchableEnvError as error:
        treatments = {str(error).partition(" keeps ")[0].partition(" cannot ")[0]: "refused"}
    return dict(list(treatments.items())[:_MOST_VARIABLES])
