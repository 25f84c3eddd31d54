"""Steps from many states of one of Gymnasium's MuJoCo tasks, without its environment."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_hybrid_grpo.branching.batched.mujoco_tasks import Quantities, Task, task_of
from sb3_hybrid_grpo.branching.snapshots import known_layers


class States(NamedTuple):
    """
    M states of a task.

    :param physics: what MuJoCo integrates, [M, n]
    :param quantities: what the task reads beside positions and velocities, [M, ...] each
    :param elapsed: steps counted by its time limits, [M, n_limits]
    :param settings: numbers of the settings that the environment had, [M]
    """

    physics: np.ndarray
    quantities: dict[str, np.ndarray]
    elapsed: np.ndarray
    settings: np.ndarray

    def select(self, rows: np.ndarray) -> "States":
        """
        Pick some of the states.

        :param rows: indices or a mask
        :return: those states
        """
        quantities = {name: values[rows] for name, values in self.quantities.items()}
        return States(self.physics[rows], quantities, self.elapsed[rows], self.settings[rows])


class TaskOutcomes(NamedTuple):
    """
    What M actions lead to.

    :param states: the next states
    :param observations: their observations, [M, n_obs]
    :param rewards: rewards, [M]
    :param terminated: whether they are terminal, [M]
    :param truncated: whether a time limit is reached, [M]
    """

    states: States
    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class TaskSimulator:
    """
    Keeps states of an environment as MuJoCo's few numbers, and steps from many of them at once.

    The physics is MuJoCo's own; observations and rewards are arrays of the whole batch. The environment's settings, such as
    the weights of its rewards, count as they were when a state was remembered.

    :param layers: time limits and the environment, outermost first
    :param task: the environment's task
    """

    def __init__(self, layers: Sequence[Any], task: Task) -> None:
        import mujoco

        *self._limits, self._env = layers
        self._task = task
        self._kind = mujoco.mjtState.mjSTATE_INTEGRATION
        self._remembered: list[tuple[np.ndarray, list[np.ndarray], list[int], list[Any]]] = []
        self._names = [
            (vars(layer), name) for layer in layers for name, value in vars(layer).items() if _is_setting(name, value)
        ]
        self._settings: list[list[Any]] = []
        self._data: list[Any] = []

    @classmethod
    def of(cls, root: gym.Env[Any, Any]) -> "TaskSimulator | None":
        """
        Decide whether an environment can be served. Whether its steps are the same is for a probe to find out.

        :param root: the outermost wrapper, with those taken out that only watch
        :return: ``None`` unless its task is known
        """
        layers = known_layers(root)
        task = None if layers is None else task_of(layers[-1])
        return None if layers is None or task is None else cls(layers, task)

    def remember(self) -> None:
        """Keep the environment's present state."""
        import mujoco

        model, data = self._env.model, self._env.data
        physics = np.empty(mujoco.mj_stateSize(model, self._kind))
        mujoco.mj_getState(model, data, physics, self._kind)
        quantities = [read(self._env, data).copy() for read in self._task.quantities.values()]
        settings = [attributes[name] for attributes, name in self._names]
        self._remembered.append((physics, quantities, [limit._elapsed_steps for limit in self._limits], settings))

    def forget(self) -> None:
        """Forget the states that were kept."""
        self._remembered = []

    def recall(self) -> States:
        """
        Hand out the states that were kept, and forget them.

        :return: the states in their order
        """
        physics, quantities, elapsed, settings = zip(*self._remembered, strict=True)
        self.forget()
        named = zip(self._task.quantities, zip(*quantities, strict=True), strict=True)
        arrays = {name: np.array(values) for name, values in named}
        self._settings = [each for each, _ in groupby(settings)]
        numbers = [number for number, (_, group) in enumerate(groupby(settings)) for _ in group]
        return States(np.array(physics), arrays, np.array(elapsed, dtype=int).reshape(len(physics), -1), np.array(numbers))

    def step(self, states: States, actions: np.ndarray, n_threads: int = 1) -> TaskOutcomes:
        """
        Take an action at each of M states.

        :param states: the states, of those that were recalled last
        :param actions: the actions, [M, n]
        :param n_threads: number of threads to simulate in
        :return: their outcomes
        """
        numbers = np.unique(states.settings)
        if len(numbers) == 1:
            with self._as_it_was(numbers[0]):
                return self._step(states, actions, n_threads)
        rows = [np.flatnonzero(states.settings == number) for number in numbers]
        parts = [self.step(states.select(some), actions[some], n_threads) for some in rows]
        return _joined(parts, np.argsort(np.concatenate(rows)))

    @contextmanager
    def _as_it_was(self, number: int) -> Iterator[None]:
        """Give the environment settings that it had, and then those that it has now."""
        now = [attributes[name] for attributes, name in self._names]
        for (attributes, name), value in zip(self._names, self._settings[number], strict=True):
            attributes[name] = value
        try:
            yield
        finally:
            for (attributes, name), value in zip(self._names, now, strict=True):
                attributes[name] = value

    def _step(self, states: States, actions: np.ndarray, n_threads: int) -> TaskOutcomes:
        after = States(
            np.empty_like(states.physics),
            {name: np.empty_like(values) for name, values in states.quantities.items()},
            states.elapsed + 1,
            states.settings,
        )
        self._simulate(states, actions, after, min(n_threads, len(actions)))
        before_and_after = self._with_joints(states), self._with_joints(after)
        observations, rewards, terminated = self._task.outcome(self._env, *before_and_after, actions)
        limits = np.array([limit._max_episode_steps for limit in self._limits])
        truncated = np.asarray((after.elapsed >= limits).any(axis=1))
        return TaskOutcomes(after, observations, rewards, terminated, truncated)

    def agrees(self, action: np.ndarray, *expected: Any) -> bool:
        """
        Compare a step that the environment has made from the one state that was remembered.

        :param action: the action
        :param expected: observation, reward and flags that it returned
        :return: whether they and the state that it is in now are the same here, bit for bit
        """
        outcomes = self.step(self.recall(), action[None])
        self.remember()
        now = self.recall()
        states = (outcomes.states.physics, *outcomes.states.quantities.values()), (now.physics, *now.quantities.values())
        pairs = [*zip(*states, strict=True), *zip(outcomes[1:], map(np.asarray, expected), strict=True)]
        return all(computed[0].tobytes() == actual.reshape(computed[0].shape).tobytes() for computed, actual in pairs)

    def _with_joints(self, states: States) -> Quantities:
        model, physics = self._env.model, states.physics
        end_of_positions = 1 + model.nq
        positions, velocities = physics[:, 1:end_of_positions], physics[:, end_of_positions : end_of_positions + model.nv]
        return {"qpos": positions, "qvel": velocities, **states.quantities}

    def _simulate(self, states: States, actions: np.ndarray, after: States, n_threads: int) -> None:
        self._make_data(n_threads)
        if n_threads <= 1:
            self._simulate_rows(slice(None), states, actions, after, self._data[0])
            return
        bounds = np.linspace(0, len(actions), n_threads + 1, dtype=int).tolist()
        with ThreadPoolExecutor(n_threads) as threads:
            parts = [
                threads.submit(self._simulate_rows, slice(*rows), states, actions, after, data)
                for rows, data in zip(pairwise(bounds), self._data, strict=False)
            ]
        for part in parts:
            part.result()

    def _make_data(self, n_threads: int) -> None:
        import mujoco

        model = self._env.model
        if self._data and self._data[0].model is not model:
            self._data.clear()
        while len(self._data) < max(n_threads, 1):
            self._data.append(mujoco.MjData(model))

    def _simulate_rows(self, rows: slice, states: States, actions: np.ndarray, after: States, data: Any) -> None:
        from mujoco import mj_getState, mj_rnePostConstraint, mj_setState, mj_step

        env, kind, ctrl, needs_contact_forces = self._env, self._kind, data.ctrl, self._task.needs_contact_forces
        model, n_frames = env.model, env.frame_skip
        readings = [(after.quantities[name][rows], read) for name, read in self._task.quantities.items()]
        steps = zip(states.physics[rows], actions[rows], after.physics[rows], strict=True)
        for row, (state, action, next_state) in enumerate(steps):
            mj_setState(model, data, state, kind)
            ctrl[:] = action
            mj_step(model, data, n_frames)
            if needs_contact_forces:
                mj_rnePostConstraint(model, data)
            mj_getState(model, data, next_state, kind)
            for values, read in readings:
                values[row] = read(env, data)


def _is_setting(name: str, value: Any) -> bool:
    return isinstance(value, bool | int | float | str | tuple) and name != "_elapsed_steps"


def _joined(parts: Sequence[TaskOutcomes], order: np.ndarray) -> TaskOutcomes:
    """Put outcomes of several batches together, in some order."""
    states, *arrays = zip(*parts, strict=True)
    quantities = {name: np.concatenate([each.quantities[name] for each in states]) for name in states[0].quantities}
    merged = (np.concatenate([getattr(each, name) for each in states]) for name in ("physics", "elapsed", "settings"))
    physics, elapsed, settings = merged
    return TaskOutcomes(
        States(physics, quantities, elapsed, settings).select(order), *(np.concatenate(each)[order] for each in arrays)
    )
