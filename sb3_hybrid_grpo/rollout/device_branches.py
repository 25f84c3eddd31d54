"""Branches of a rollout whose states, policy and observations are on a GPU and stay there."""

from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_hybrid_grpo.common import Brancher, BranchOutcome, check_outcome
from sb3_hybrid_grpo.policies import chunk_size
from sb3_hybrid_grpo.rollout.rollout_branches import LateBranches, places_of, store_step


class DeviceBranches(LateBranches):
    """
    Remembers states and branches from many of them at once, see ``LateBranches``, with tensors in place of arrays: only
    rewards, ends and values leave the device. What vectorised wrappers do to observations is done outside it.
    """

    def _follow(
        self,
        brancher: Brancher,
        actions: np.ndarray,
        alive: np.ndarray,
        noise: list[np.ndarray],
        rows: slice,
        memory: RNNStates | None,
    ) -> int:
        # What is stored is what the policy has seen here: outcomes with the statistics after the committed steps.
        brancher.close()
        device = self._actor.policy.device
        now, is_alive = th.as_tensor(actions, device=device), th.as_tensor(alive, device=device)
        outcome = self._opened(brancher, now, is_alive, 1 + len(noise))
        n_steps = 0
        for k in range(1 + len(noise)):
            if k > 0:
                is_alive = is_alive & ~(outcome.terminated | outcome.truncated)
                if not is_alive.any():
                    break
                now = now.clone()
                now[is_alive] = self._act(outcome, is_alive, noise[k - 1]).to(now.dtype)
                outcome = self._seen(brancher, brancher.advance(now, is_alive))  # type: ignore[arg-type]
            self._store(k, outcome, is_alive, rows)
            n_steps += int(is_alive.sum())
        return n_steps * brancher.uses_simulator

    def _opened(self, brancher: Any, actions: th.Tensor, alive: th.Tensor, horizon: int) -> Any:
        return self._seen(brancher, brancher.open(actions, alive, horizon))

    def _act(self, outcome: Any, alive: th.Tensor, noise: np.ndarray) -> th.Tensor:
        """Return the actions of the branches that go on."""
        noise_of_states = th.as_tensor(noise, device=alive.device)
        noise_of_branches = noise_of_states.repeat_interleave(alive.numel() // len(noise), dim=0)
        masks = None if outcome.action_masks is None else outcome.action_masks[alive]
        return self._actor.act_on_device(_select(outcome.observations, alive), noise_of_branches[alive.ravel()], masks)

    def _seen(self, brancher: Any, outcome: Any) -> Any:
        """Send an outcome through the vectorised wrappers, if there are any, and check it."""
        if brancher.is_changed_by_wrappers:
            on_host = brancher.observed(BranchOutcome(*(_to_numpy(part) for part in outcome)))
            outcome = BranchOutcome(*(_to_torch(part, outcome.rewards.device) for part in on_host))
        if not all(bool(th.isfinite(part).all()) for part in (*_parts(outcome.observations), outcome.rewards)):
            check_outcome(_to_numpy(outcome.observations), _to_numpy(outcome.rewards))
        return outcome

    def _store(self, k: int, outcome: Any, alive: th.Tensor, rows: slice) -> None:
        on_host = _to_numpy(alive)
        store_step(k, on_host, _to_numpy(outcome.rewards), _to_numpy(outcome.terminated), rows, self._buffer)
        selected = _select(outcome.observations, alive)
        size = chunk_size(self._actor.policy.observation_space)
        for quantity in self._deferred:
            with th.no_grad():
                values = th.cat([quantity.evaluate(chunk).ravel() for chunk in _chunks(selected, size)])
            places, is_alive = places_of(getattr(self._buffer, quantity.into), k, on_host, rows, self._buffer)
            places[is_alive] = values.cpu().numpy()


def _parts(observations: Any) -> list[th.Tensor]:
    return [*observations.values()] if isinstance(observations, dict) else [observations]


def _select(observations: Any, mask: th.Tensor) -> PyTorchObs:
    if isinstance(observations, dict):
        return {key: part[mask] for key, part in observations.items()}
    return observations[mask]  # type: ignore[no-any-return]


def _chunks(observations: Any, size: int) -> list[Any]:
    if isinstance(observations, dict):
        split = {key: part.split(size) for key, part in observations.items()}
        return [dict(zip(split, parts, strict=True)) for parts in zip(*split.values(), strict=True)]
    return list(observations.split(size))


def _to_numpy(tensors: Any) -> Any:
    if isinstance(tensors, dict):
        return {key: _to_numpy(part) for key, part in tensors.items()}
    return tensors.cpu().numpy() if isinstance(tensors, th.Tensor) else tensors


def _to_torch(arrays: Any, device: th.device) -> Any:
    if isinstance(arrays, dict):
        return {key: _to_torch(part, device) for key, part in arrays.items()}
    return th.as_tensor(arrays, device=device) if isinstance(arrays, np.ndarray) else arrays
