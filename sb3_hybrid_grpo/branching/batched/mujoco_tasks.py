"""What steps of Gymnasium's MuJoCo tasks return, for many states at once, bit for bit as their ``step`` does."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from sb3_hybrid_grpo.branching.snapshots import kind_of

Quantities: TypeAlias = Mapping[str, np.ndarray]
TaskOutcome: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]


class Task(NamedTuple):
    """
    A task as a function of physical quantities.

    :param outcome: from the environment, quantities before and after the step, [M, ...] each, and actions [M, n], to
        observations [M, n_obs], rewards [M] and whether the state is terminal [M]; ``qpos`` and ``qvel`` are always there
    :param quantities: further quantities by name, read from the environment and an ``MjData``
    :param needs_contact_forces: whether ``cfrc_ext`` must be computed after a step
    """

    outcome: Callable[[Any, Quantities, Quantities, np.ndarray], TaskOutcome]
    quantities: Mapping[str, Callable[[Any, Any], np.ndarray]] = {}
    needs_contact_forces: bool = False


def task_of(env: Any) -> Task | None:
    """
    Look an environment up.

    :param env: the unwrapped environment
    :return: its task, if it is one of those that are known here
    """
    return _TASKS.get(kind_of(env))


def _control_costs(actions: np.ndarray, weight: float) -> np.ndarray:
    """Weigh as a scalar is weighed: versions 1 and 2 of NumPy differ in the precision of that."""
    sums = np.square(actions).sum(axis=-1)
    return np.asarray(sums.astype((sums.dtype.type(1) * weight).dtype) * weight)


def _velocities(env: Any, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.asarray((after - before) / env.dt)


def _joints(env: Any, after: Quantities, n_positions: int, velocities: np.ndarray) -> np.ndarray:
    """Return positions, without the first ones if the environment excludes them, and velocities."""
    skipped = n_positions if env._exclude_current_positions_from_observation else 0
    return np.concatenate((after["qpos"][:, skipped:], velocities), axis=1)


def _never(rewards: np.ndarray) -> np.ndarray:
    return np.zeros(len(rewards), dtype=bool)


def _within(limits: tuple[float, float], values: np.ndarray) -> np.ndarray:
    return np.asarray((limits[0] < values) & (values < limits[1]))


def _runner(env: Any, before: Quantities, after: Quantities, actions: np.ndarray, n_positions: int) -> TaskOutcome:
    velocities = _velocities(env, before["qpos"][:, 0], after["qpos"][:, 0])
    rewards = env._forward_reward_weight * velocities - _control_costs(actions, env._ctrl_cost_weight)
    return _joints(env, after, n_positions, after["qvel"]), rewards, _never(rewards)


def _half_cheetah(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    return _runner(env, before, after, actions, 1)


def _swimmer(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    return _runner(env, before, after, actions, 2)


def _walker(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    positions = after["qpos"]
    is_healthy = _within(env._healthy_z_range, positions[:, 1]) & _within(env._healthy_angle_range, positions[:, 2])
    return _legged(env, before, after, actions, is_healthy)


def _hopper(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    positions = after["qpos"]
    joints = np.concatenate((positions[:, 2:], after["qvel"]), axis=1)
    is_healthy = _within(env._healthy_state_range, joints).all(axis=1) & _within(env._healthy_z_range, positions[:, 1])
    is_healthy &= _within(env._healthy_angle_range, positions[:, 2])
    return _legged(env, before, after, actions, is_healthy)


def _legged(env: Any, before: Quantities, after: Quantities, actions: np.ndarray, is_healthy: np.ndarray) -> TaskOutcome:
    velocities = _velocities(env, before["qpos"][:, 0], after["qpos"][:, 0])
    rewards = env._forward_reward_weight * velocities + is_healthy * env._healthy_reward
    rewards -= _control_costs(actions, env._ctrl_cost_weight)
    observations = _joints(env, after, 1, np.clip(after["qvel"], -10, 10))
    return observations, rewards, ~is_healthy & env._terminate_when_unhealthy


def _ant(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    forces = np.clip(after["cfrc_ext"], *env._contact_force_range)
    costs = _control_costs(actions, env._ctrl_cost_weight) + env._contact_cost_weight * _square_sums(forces)
    positions, (low, high) = after["qpos"], env._healthy_z_range
    is_healthy = np.isfinite(positions).all(axis=1) & np.isfinite(after["qvel"]).all(axis=1)
    is_healthy &= (low <= positions[:, 2]) & (positions[:, 2] <= high)
    velocities = _velocities(env, before["torso"][:, 0], after["torso"][:, 0])
    rewards = velocities * env._forward_reward_weight + is_healthy * env._healthy_reward - costs
    observations = _joints(env, after, 2, after["qvel"])
    if env._include_cfrc_ext_in_observation:
        observations = np.concatenate((observations, _without_world(forces)), axis=1)
    return observations, rewards, ~is_healthy & env._terminate_when_unhealthy


def _humanoid(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    impacts = np.clip(env._contact_cost_weight * _square_sums(after["cfrc_ext"]), *env._contact_cost_range)
    costs = _control_costs(actions.astype(np.float64), env._ctrl_cost_weight) + impacts
    is_healthy = _within(env._healthy_z_range, after["qpos"][:, 2])
    velocities = _velocities(env, before["center"][:, 0], after["center"][:, 0])
    rewards = env._forward_reward_weight * velocities + is_healthy * env._healthy_reward - costs
    parts = [_joints(env, after, 2, after["qvel"])]
    for name in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
        if getattr(env, f"_include_{name}_in_observation"):
            parts.append(after[name][:, 6:] if name == "qfrc_actuator" else _without_world(after[name]))
    return np.concatenate(parts, axis=1), rewards, ~is_healthy & env._terminate_when_unhealthy


def _reacher(env: Any, before: Quantities, after: Quantities, actions: np.ndarray) -> TaskOutcome:
    positions, distances = after["qpos"], after["fingertip"] - after["target"]
    # The norm of one vector is rounded differently from that of many.
    norms = np.array([np.linalg.norm(distance) for distance in distances])
    rewards = -norms * env._reward_dist_weight - _control_costs(actions, env._reward_control_weight)
    parts = (np.cos(positions[:, :2]), np.sin(positions[:, :2]), positions[:, 2:], after["qvel"][:, :2], distances[:, :2])
    return np.concatenate(parts, axis=1), rewards, _never(rewards)


def _square_sums(forces: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(forces).reshape(len(forces), -1).sum(axis=-1))


def _without_world(quantities: np.ndarray) -> np.ndarray:
    """Leave out the first body, which is the world."""
    return quantities[:, 1:].reshape(len(quantities), -1)


def _center_of_mass(env: Any, data: Any) -> np.ndarray:
    return np.asarray(sys.modules[type(env).__module__].mass_center(env.model, data))


def _body(name: str) -> Callable[[Any, Any], np.ndarray]:
    return lambda env, data: data.body(name).xpos


def _of_data(*names: str) -> dict[str, Callable[[Any, Any], np.ndarray]]:
    return {name: lambda env, data, name=name: getattr(data, name) for name in names}  # type: ignore[misc]


_TASKS = {
    "gymnasium.envs.mujoco.half_cheetah_v5.HalfCheetahEnv": Task(_half_cheetah),
    "gymnasium.envs.mujoco.swimmer_v5.SwimmerEnv": Task(_swimmer),
    "gymnasium.envs.mujoco.hopper_v5.HopperEnv": Task(_hopper),
    "gymnasium.envs.mujoco.walker2d_v5.Walker2dEnv": Task(_walker),
    "gymnasium.envs.mujoco.reacher_v5.ReacherEnv": Task(
        _reacher, {"fingertip": _body("fingertip"), "target": _body("target")}
    ),
    "gymnasium.envs.mujoco.ant_v5.AntEnv": Task(
        _ant,
        {"torso": lambda env, data: data.body(env._main_body).xpos, **_of_data("cfrc_ext")},
        needs_contact_forces=True,
    ),
    "gymnasium.envs.mujoco.humanoid_v5.HumanoidEnv": Task(
        _humanoid,
        {"center": _center_of_mass, **_of_data("cinert", "cvel", "qfrc_actuator", "cfrc_ext")},
        needs_contact_forces=True,
    ),
}
