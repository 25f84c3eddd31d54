"""The policy of an update, which moves: evaluations of minibatches, and gradients of the losses of these evaluations."""

from collections.abc import Sequence

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_hybrid_grpo.common.evaluation import evaluate_actions, predict_values_only
from sb3_hybrid_grpo.common.losses import Loss


class Evaluator:
    """
    Evaluates any policy, with autograd.

    :param policy: the policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy

    def evaluate_actions(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """
        Evaluate N actions at each of B states.

        :param obs: states
        :param actions: actions as the buffer keeps them, [B, N, action_dim]
        :return: values [B], log-probabilities [B, N] and entropies [B] (``None`` if they have no closed form)
        """
        values, log_prob, entropy = evaluate_actions(self.policy, obs, actions)
        self._outputs = {"values": values, "log_prob": log_prob}
        if entropy is None:
            return _to_numpy(values), _to_numpy(log_prob), None
        self._outputs["entropy"] = entropy
        return _to_numpy(values), _to_numpy(log_prob), _to_numpy(entropy)

    def predict_values(self, obs: PyTorchObs) -> np.ndarray:
        """
        Predict values such that a gradient step on them leaves the actor as it is.

        :param obs: states
        :return: values, [B]
        """
        values = predict_values_only(self.policy, obs)
        self._outputs = {"values": values}
        return _to_numpy(values)

    def backward(self, losses: Sequence[Loss]) -> None:
        """
        Compute the gradients of the policy's parameters, which have none yet.

        :param losses: losses of the latest evaluation
        """
        trained = [loss for loss in losses if self._outputs[loss.of].requires_grad]
        outputs = [self._outputs[loss.of] for loss in trained]
        gradients = [th.from_numpy(loss.gradient).to(self.policy.device) for loss in trained]
        th.autograd.backward(outputs, gradients)


def _to_numpy(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
