"""The policy of an update, which moves: evaluations of minibatches, and gradients of the losses of these evaluations."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_hybrid_grpo.common import Sequences
from sb3_hybrid_grpo.estimation import AutogradScores, Loss, Scores, clip_gradients, scale_down
from sb3_hybrid_grpo.policies.actors import MlpActor
from sb3_hybrid_grpo.policies.heads import HEADS
from sb3_hybrid_grpo.policies.maskable import class_of, masking, stock_class
from sb3_hybrid_grpo.policies.networks import Chain, are_plain_gradients
from sb3_hybrid_grpo.policies.scores import MlpScores


def log_probs(distribution: Distribution, actions: th.Tensor) -> th.Tensor:
    """
    Evaluate N actions at each of B states.

    :param distribution: the policy's distribution at B states
    :param actions: actions, [B, N, \\*action_dims]
    :return: log-probabilities, [B, N]
    """
    return th.stack([distribution.log_prob(sample) for sample in actions.transpose(0, 1)], dim=1)


def evaluate_actions(
    policy: ActorCriticPolicy,
    obs: PyTorchObs,
    actions: th.Tensor,
    action_masks: np.ndarray | th.Tensor | None = None,
    sequences: Sequences | None = None,
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """
    Evaluate N actions at each of B states with the current policy, from one actor and one critic pass where possible.

    :param policy: the policy
    :param obs: states
    :param actions: actions as the buffer keeps them, [B, N, action_dim]
    :param action_masks: which actions are valid, [B, M], for a maskable policy
    :param sequences: sequences of the states, for a recurrent policy
    :return: values [B], log-probabilities [B, N] and entropies [B] (``None`` if they have no closed form)
    """
    if sequences is not None:
        return _evaluate_sequences(policy, obs, actions, sequences)
    if keeps_distribution(policy) and type(policy.action_dist) in HEADS:
        values, outputs = _predict_outputs(policy, obs)
        return values, *HEADS[type(policy.action_dist)](policy).evaluate(outputs, actions)
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().squeeze(dim=-1)
    if not keeps_distribution(policy):
        evaluations = [policy.evaluate_actions(obs, sample, **masking(action_masks)) for sample in actions.transpose(0, 1)]
        values, log_prob, entropy = evaluations[0]
        others = [evaluation[1] for evaluation in evaluations[1:]]
        return values.flatten(), th.stack([log_prob, *others], dim=1), entropy
    values, _, entropy = policy.evaluate_actions(obs, actions[:, 0], **masking(action_masks))
    return values.flatten(), log_probs(policy.action_dist, actions), entropy


def _evaluate_sequences(
    policy: ActorCriticPolicy, obs: PyTorchObs, actions: th.Tensor, sequences: Sequences
) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
    """Evaluate N actions at each of B states with a recurrent policy, see ``evaluate_actions``."""
    if isinstance(policy.action_space, spaces.Discrete):
        actions = actions.long().squeeze(dim=-1)
    lstm_states, is_state = sequences
    placed = actions.new_zeros((len(is_state), *actions.shape[1:]))
    placed[is_state] = actions
    values, log_prob, entropy = policy.evaluate_actions(  # type: ignore[call-arg]
        obs, placed[:, 0], lstm_states, sequences.no_starts
    )
    others = [policy.action_dist.log_prob(sample) for sample in placed.transpose(0, 1)[1:]]
    log_prob = th.stack([log_prob, *others], dim=1)
    return values.flatten()[is_state], log_prob[is_state], None if entropy is None else entropy[is_state]


def keeps_distribution(policy: ActorCriticPolicy) -> bool:
    """
    Tell whether a policy's ``evaluate_actions`` leaves the distribution in ``action_dist``, as SB3's own policies do.

    :param policy: the policy
    :return: whether it does
    """
    return all(
        getattr(class_of(policy), name) is getattr(stock_class(class_of(policy)), name)
        for name in ("evaluate_actions", "_get_action_dist_from_latent")
    )


def _predict_outputs(policy: ActorCriticPolicy, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
    features: Any = policy.extract_features(obs)
    if policy.share_features_extractor:
        latent_pi, latent_vf = policy.mlp_extractor(features)
    else:
        latent_pi = policy.mlp_extractor.forward_actor(features[0])
        latent_vf = policy.mlp_extractor.forward_critic(features[1])
    return policy.value_net(latent_vf).flatten(), policy.action_net(latent_pi)


def predict_values(policy: ActorCriticPolicy, obs: PyTorchObs, sequences: Sequences | None = None) -> th.Tensor:
    """
    Predict values.

    :param policy: the policy
    :param obs: states
    :param sequences: sequences of the states, for a recurrent policy
    :return: values, [B]
    """
    if sequences is None:
        return policy.predict_values(obs).flatten()
    values = policy.predict_values(obs, sequences.lstm_states.vf, sequences.no_starts)  # type: ignore[call-arg]
    return values.flatten()[sequences.is_state]


def predict_values_only(policy: ActorCriticPolicy, obs: PyTorchObs, sequences: Sequences | None = None) -> th.Tensor:
    """
    Predict values such that a gradient step on them leaves the actor as it is: shared features are constants.

    :param policy: the policy
    :param obs: states
    :param sequences: sequences of the states, for a recurrent policy
    :return: values, [B]
    """
    if sequences is not None or class_of(policy).predict_values is not stock_class(class_of(policy)).predict_values:
        return _predict_in_own_way(policy, obs, sequences)
    if not policy.share_features_extractor:
        return policy.predict_values(obs).flatten()
    features = policy.extract_features(obs)
    assert isinstance(features, th.Tensor)
    return policy.value_net(policy.mlp_extractor.forward_critic(features.detach())).flatten()  # type: ignore[no-any-return]


def _predict_in_own_way(policy: ActorCriticPolicy, obs: PyTorchObs, sequences: Sequences | None) -> th.Tensor:
    if not policy.share_features_extractor:
        return predict_values(policy, obs, sequences)
    hook = policy.features_extractor.register_forward_hook(lambda module, inputs, features: features.detach())
    try:
        return predict_values(policy, obs, sequences)
    finally:
        hook.remove()


class Evaluator:
    """
    Evaluates any policy, with autograd.

    :param policy: the policy
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self._parameters = list(policy.parameters())
        self._actor_alone: list[nn.Parameter] = []

    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """
        Evaluate N actions at each of B states.

        :param obs: states
        :param actions: actions as the buffer keeps them, [B, N, action_dim]
        :param action_masks: which actions are valid, [B, M], for a maskable policy
        :param sequences: sequences of the states, for a recurrent policy
        :return: values [B], log-probabilities [B, N] and entropies [B] (``None`` if they have no closed form)
        """
        values, log_prob, entropy = evaluate_actions(self.policy, obs, actions, action_masks, sequences)
        self._outputs = {"values": values, "log_prob": log_prob}
        if entropy is None:
            return _to_numpy(values), _to_numpy(log_prob), None
        self._outputs["entropy"] = entropy
        return _to_numpy(values), _to_numpy(log_prob), _to_numpy(entropy)

    def predict_values(self, obs: PyTorchObs, sequences: Sequences | None = None) -> np.ndarray:
        """
        Predict values such that a gradient step on them leaves the actor as it is.

        :param obs: states
        :param sequences: sequences of the states, for a recurrent policy
        :return: values, [B]
        """
        values = predict_values_only(self.policy, obs, sequences)
        self._outputs = {"values": values}
        return _to_numpy(values)

    def scores(self) -> Scores:
        """
        Return the scores of the latest evaluation, which was none of a CUDA LSTM: that has no second derivatives.

        :return: gradients of its log-probabilities
        """
        return AutogradScores(self._outputs["log_prob"], self._parameters)

    def actor_parameters(self) -> list[nn.Parameter]:
        """
        Find the parameters that the latest evaluation used for actions and not for values.

        :return: the parameters of the actor alone
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        users = zip(self._used_for(parameters, "log_prob", "entropy"), self._used_for(parameters, "values"), strict=True)
        return [parameter for parameter, who in zip(parameters, users, strict=True) if who == (True, False)]

    def policy_parameters(self) -> list[nn.Parameter]:
        """
        Find the parameters that the latest evaluation used for actions.

        :return: the parameters of the actor, and what it shares with the critic
        """
        parameters = [parameter for parameter in self.policy.parameters() if parameter.requires_grad]
        is_used = self._used_for(parameters, "log_prob", "entropy")
        return [parameter for parameter, used in zip(parameters, is_used, strict=True) if used]

    def _used_for(self, parameters: list[nn.Parameter], *names: str) -> list[bool]:
        outputs = [self._outputs[name].sum() for name in names if name in self._outputs and self._outputs[name].requires_grad]
        if not outputs:
            return [False] * len(parameters)
        gradients = th.autograd.grad(outputs, parameters, retain_graph=True, allow_unused=True)
        return [gradient is not None for gradient in gradients]

    def backward(self, losses: Sequence[Loss], max_norm: float = math.inf, max_actor_norm: float | None = None) -> float:
        """
        Compute the gradients of the policy's parameters. Those that no loss depends on have none.

        :param losses: losses of the latest evaluation
        :param max_norm: the largest norm of all gradients together; with ``max_actor_norm``, of those that are not the actor's
            alone
        :param max_actor_norm: the largest norm of the gradients of the actor alone, ``None`` for no limit of its own
        :return: the norm of all gradients before they were scaled down
        """
        self._zero_grad()
        trained = [loss for loss in losses if self._outputs[loss.of].requires_grad]
        outputs = [self._outputs[loss.of] for loss in trained]
        gradients = [th.from_numpy(loss.gradient).to(self.policy.device) for loss in trained]
        if max_actor_norm is None:
            th.autograd.backward(outputs, gradients)
            return clip_gradients(self._parameters, max_norm)
        self._actor_alone = self._actor_alone or self.actor_parameters()
        of_actor = {id(parameter) for parameter in self._actor_alone}
        others = (parameter for parameter in self._parameters if id(parameter) not in of_actor)
        th.autograd.backward(outputs, gradients)
        return math.hypot(clip_gradients(self._actor_alone, max_actor_norm), clip_gradients(others, max_norm))

    def _zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class MlpEvaluator(Evaluator):
    """
    Evaluates SB3's ``MlpPolicy`` with Gaussian or categorical actions on the CPU.

    With a few dozen units, autograd's bookkeeping takes longer than the matrix products: all gradients are written out here.

    :param policy: a policy that ``is_plain``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__(policy)
        self._actor, self._critic = (Chain(layers) for layers in _layers(policy))
        self._head = HEADS[type(policy.action_dist)](policy)

    @staticmethod
    def is_plain(policy: ActorCriticPolicy) -> bool:
        """
        Tell whether nothing about a policy's actor and critic is the user's own.

        :param policy: the policy
        :return: whether an ``MlpEvaluator`` does what the policy and autograd would do
        """
        return (
            MlpActor.is_plain(policy)
            and keeps_distribution(policy)
            and class_of(policy).predict_values is ActorCriticPolicy.predict_values
            and type(policy.vf_features_extractor) is FlattenExtractor
            and all(Chain.supports(layers) for layers in _layers(policy))
            and are_plain_gradients(policy, _layers(policy))
        )

    @th.no_grad()
    def evaluate_actions(
        self,
        obs: PyTorchObs,
        actions: th.Tensor,
        action_masks: th.Tensor | None = None,
        sequences: Sequences | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        Evaluate N actions at each of B states, see ``Evaluator.evaluate_actions``.

        :param obs: states
        :param actions: actions
        :param action_masks: none
        :param sequences: none
        :return: values, log-probabilities and entropies
        """
        outputs = th.from_numpy(self._actor.forward(_flatten(obs)))
        log_prob, entropy = self._head.evaluate(outputs, actions)
        return self.predict_values(obs), log_prob.numpy(), entropy.numpy()

    def predict_values(self, obs: PyTorchObs, sequences: Sequences | None = None) -> np.ndarray:
        """
        Predict values, see ``Evaluator.predict_values``.

        :param obs: states
        :param sequences: none
        :return: values
        """
        return self._critic.forward(_flatten(obs)).ravel()

    def scores(self) -> Scores:
        """
        Return the scores of the latest evaluation, see ``Evaluator.scores``.

        :return: gradients of its log-probabilities
        """
        return MlpScores(self._actor, self._head)

    def actor_parameters(self) -> list[nn.Parameter]:
        """
        Find the parameters of the actor alone, see ``Evaluator.actor_parameters``.

        :return: the parameters
        """
        of_critic = {id(parameter) for layer in _layers(self.policy)[1] for parameter in layer.parameters()}
        return [parameter for parameter in self.policy.parameters() if id(parameter) not in of_critic]

    def policy_parameters(self) -> list[nn.Parameter]:
        """
        Find the parameters of the policy: nothing is shared.

        :return: those of the actor alone
        """
        return self.actor_parameters()

    @th.no_grad()
    def backward(self, losses: Sequence[Loss], max_norm: float = math.inf, max_actor_norm: float | None = None) -> float:
        """
        Compute the gradients of the policy's parameters, see ``Evaluator.backward``.

        :param losses: losses of the latest evaluation
        :param max_norm: the largest norm of all gradients together, or of the critic's
        :param max_actor_norm: the largest norm of the actor's gradients, ``None`` for no limit of its own
        :return: the norm of all gradients before they were scaled down
        """
        self._zero_grad()
        gradients = {loss.of: loss.gradient.astype(np.float32, copy=False) for loss in losses}
        of_actor: list[np.ndarray] = []
        of_critic: list[np.ndarray] = []
        if "values" in gradients:
            self._critic.backward(gradients["values"][:, None])
            of_critic = [self._critic.gradient]
        if "log_prob" in gradients:
            self._actor.backward(self._head.backward(gradients["log_prob"], gradients.get("entropy")))
            of_actor = [self._actor.gradient, *(np.asarray(parameter.grad) for parameter in self._head.parameters)]
        if max_actor_norm is None:
            return scale_down([*of_actor, *of_critic], max_norm)
        return math.hypot(scale_down(of_actor, max_actor_norm), scale_down(of_critic, max_norm))


def _layers(policy: ActorCriticPolicy) -> tuple[list[nn.Module], list[nn.Module]]:
    extractor = policy.mlp_extractor
    return [*extractor.policy_net, policy.action_net], [*extractor.value_net, policy.value_net]


def _flatten(obs: PyTorchObs) -> np.ndarray:
    assert isinstance(obs, th.Tensor)
    return obs.float().flatten(start_dim=1).numpy()


def _to_numpy(tensor: th.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def make_evaluator(policy: ActorCriticPolicy) -> Evaluator:
    """
    Make the fastest evaluator for a policy that moves.

    :param policy: the policy
    :return: its evaluator, for one update
    """
    return MlpEvaluator(policy) if MlpEvaluator.is_plain(policy) else Evaluator(policy)
