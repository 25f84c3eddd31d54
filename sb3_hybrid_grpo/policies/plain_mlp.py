"""The actor of SB3's ``MlpPolicy`` as matrix products of numpy."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_hybrid_grpo.common import Observations
from sb3_hybrid_grpo.policies.row_by_row import in_blocks


class Replica(Protocol):
    """What acts like a policy with given noise, in this process or another one."""

    def act(self, obs: Observations, noise: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample one action at each of B states, see ``Actor.act``.

        :param obs: states
        :param noise: noise, [B, \\*noise_dims]
        :param action_masks: which actions are valid, [B, M]
        :return: actions for the environment, [B, \\*action_shape]
        """

    def keep(self, survivors: np.ndarray) -> None:
        """
        Forget the branches that have ended, see ``Actor.keep``.

        :param survivors: which of the branches go on, [M]
        """


class PlainMlp:
    """
    Computes the parameters of Gaussian or categorical actions.

    A few matrix products of numpy take a tenth of the time of the same pass through PyTorch's modules and distributions.
    ``std`` are the standard deviations of a Gaussian policy, ``None`` for a categorical one.

    :param policy: a policy whose actor is made of layers that this ``supports``
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._layers = [_layer(module) for module in (*policy.mlp_extractor.policy_net, policy.action_net)]
        is_gaussian = isinstance(policy.action_dist, DiagGaussianDistribution)
        self.std = policy.log_std.exp().detach().numpy() if is_gaussian else None
        self._action_space = policy.action_space

    @staticmethod
    def supports(modules: Sequence[nn.Module]) -> bool:
        """
        Tell whether all layers are known here.

        :param modules: the layers
        :return: whether they are linear layers with bias and known activations
        """
        return all(
            module.bias is not None if type(module) is nn.Linear else type(module) in _ACTIVATIONS for module in modules
        )

    def parameters(self, obs: Observations) -> np.ndarray:
        """
        Pass observations through the network.

        :param obs: states
        :return: means of the actions, or logits, [B, n]
        """
        return self._pass(self._flat(obs))

    def act(self, obs: Observations, noise: np.ndarray, action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample one action at each of B states, see ``Replica``.

        :param obs: states
        :param noise: noise
        :param action_masks: not looked at
        :return: actions for the environment
        """
        parameters = in_blocks(self._pass, self._flat(obs))
        if self.std is None:
            return inverse_cdf(softmax(parameters), noise)
        assert isinstance(self._action_space, spaces.Box)
        actions = (parameters + self.std * noise).reshape(-1, *self._action_space.shape)
        return np.asarray(np.clip(actions, self._action_space.low, self._action_space.high))

    def keep(self, survivors: np.ndarray) -> None:
        """
        Do nothing: no branch is remembered, see ``Replica``.

        :param survivors: which of the branches go on
        """

    @staticmethod
    def _flat(obs: Observations) -> np.ndarray:
        assert isinstance(obs, np.ndarray)
        return obs.reshape(len(obs), -1).astype(np.float32, copy=False)

    def _pass(self, latent: np.ndarray) -> np.ndarray:
        for layer in self._layers:
            latent = layer(latent)
        return latent


class _Linear:
    def __init__(self, module: nn.Linear) -> None:
        self._weight = module.weight.detach().numpy().T.copy()
        self._bias = module.bias.detach().numpy()

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        return np.asarray(latent @ self._weight + self._bias)


def _relu(latent: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(latent, 0))


_ACTIVATIONS: dict[type[nn.Module], Any] = {nn.Tanh: np.tanh, nn.ReLU: _relu}


def _layer(module: nn.Module) -> Any:
    return _Linear(module) if isinstance(module, nn.Linear) else _ACTIVATIONS[type(module)]


def softmax(logits: np.ndarray) -> np.ndarray:
    """
    Turn logits into probabilities.

    :param logits: logits, [B, n]
    :return: probabilities, [B, n]
    """
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def inverse_cdf(probs: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """
    Return the class at which the cumulative probability passes the uniform number: none of probability zero.

    :param probs: probabilities, [B, n]
    :param uniforms: uniform numbers, [B]
    :return: classes, [B]
    """
    cumulative = probs.cumsum(axis=-1)
    passed = (cumulative <= uniforms[:, None]) & (cumulative < cumulative[:, -1:])
    return np.asarray(passed.sum(axis=-1))
