"""The clipped update of the policy, and of the critic."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, TypeAlias, cast

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import explained_variance
from torch import nn

from sb3_hybrid_grpo.common import AdaptiveLearningRate, DivergedPolicyError, MultiSampleRolloutBufferSamples, value_at
from sb3_hybrid_grpo.diagnostics import Watch
from sb3_hybrid_grpo.estimation import flatten, losses
from sb3_hybrid_grpo.hybrid_grpo.natural_step import Spread, natural_step, search_line
from sb3_hybrid_grpo.policies import Evaluator, make_evaluator, refit_value_head
from sb3_hybrid_grpo.rollout import MultiSampleMixin

Metrics: TypeAlias = dict[str, list[float]]


class ClippedUpdate(AdaptiveLearningRate):
    """The half of ``HybridGRPO`` that learns from rollouts. Its arguments are documented there."""

    batch_size: int
    clip_range: float | Schedule
    clip_range_vf: float | Schedule | None
    ent_coef: float | Schedule  # type: ignore[assignment]
    max_actor_grad_norm: float | None
    n_epochs: int
    normalize_advantage: bool
    refit_critic: bool
    rollout_buffer: MultiSampleMixin
    target_kl: float | None
    trust_region: float | Schedule | None
    uses_critic: ClassVar[bool]
    _has_linear_head: bool
    _watch: Watch

    @np.errstate(over="ignore", invalid="ignore")  # a policy that diverges gives infinities, and no warnings, as in PyTorch
    def train(self) -> None:
        """
        Update the policy with the mean of N clipped terms per state, and the critic with PPO's targets: both in minibatches,
        or the policy with all states at once, if ``trust_region`` says how far.

        :raises DivergedPolicyError: if a loss was NaN, or parameters are NaN or infinite after that
        """
        self._update_learning_rate(self.policy.optimizer)
        losses.fuse(self.policy.optimizer)
        evaluator = make_evaluator(self.policy)
        metrics: Metrics = defaultdict(list)
        train_policy = self.trust_region is None
        actor = [] if train_policy else self._take_natural_step(evaluator, metrics)
        n_policy_updates = sum(map(int, metrics.get("is_line_search_success", ())))
        self.policy.set_training_mode(True)

        for epoch in range(self._n_epochs()):
            if train_policy:
                metrics["approx_kl"].clear()
            for rollout_data in self.rollout_buffer.get(self.batch_size):
                terms: list[losses.Loss] = []
                if train_policy:
                    values, log_prob, entropy = evaluator.evaluate_actions(
                        rollout_data.observations, rollout_data.actions, rollout_data.action_masks, rollout_data.sequences
                    )
                    terms += self._policy_losses(rollout_data, log_prob, entropy, metrics)
                    if self._exceeds_target_kl(metrics["approx_kl"][-1], epoch):
                        train_policy = False
                        actor = evaluator.policy_parameters()
                        terms.clear()
                    else:
                        n_policy_updates += 1
                if self.uses_critic:
                    if not train_policy:
                        values = evaluator.predict_values(rollout_data.observations, rollout_data.sequences)
                    terms.append(self._value_loss(rollout_data, values, metrics))
                if not terms:
                    break

                metrics["loss"].append(sum(loss.value for loss in terms))
                max_actor_norm = self.max_actor_grad_norm if train_policy else None
                metrics["grad_norm"].append(evaluator.backward(terms, self.max_grad_norm, max_actor_norm))
                _drop_gradients(actor)  # what the critic shares with it would move the policy without a limit
                self.policy.optimizer.step()

            self._n_updates += 1

        if self.refit_critic and self._has_linear_head:
            refit_value_head(self.policy, self.rollout_buffer)
        self._check_finite(metrics)
        self._log_update(metrics, n_policy_updates)
        self._adapt_learning_rate(float(np.mean(metrics["approx_kl"])))

    def _n_epochs(self) -> int:
        return 1 if self.trust_region is not None and not self.uses_critic else self.n_epochs

    def _take_natural_step(self, evaluator: Evaluator, metrics: Metrics) -> list[nn.Parameter]:
        """
        Move the policy by a natural-gradient step of the clipped loss, all of whose log-probabilities are as in the rollout:
        without dropout, and with the statistics that batch normalisation has.

        :return: the parameters that moved, or would have if a step of any length had lowered the loss
        """
        assert self.trust_region is not None
        kl = value_at(self.trust_region, self._current_progress_remaining)
        rollout_data = next(self.rollout_buffer.get())
        tried: Metrics = defaultdict(list)

        def evaluate() -> list[losses.Loss]:
            tried.clear()
            _, log_prob, entropy = evaluator.evaluate_actions(
                rollout_data.observations, rollout_data.actions, rollout_data.action_masks, rollout_data.sequences
            )
            terms = self._policy_losses(rollout_data, log_prob, entropy, tried)
            tried["loss"].append(sum(loss.value for loss in terms))
            return terms

        def loss_and_kl() -> tuple[float, float]:
            evaluate()
            return tried["loss"][0], tried["approx_kl"][0]

        self.policy.set_training_mode(False)
        with _second_derivatives(self.policy):
            evaluator.backward(evaluate())
            before = dict(tried)
            evaluate()
            scores = evaluator.scores()
            parameters, has_moved = scores.parameters, False
            if parameters and kl > 0:
                weights = th.as_tensor(rollout_data.weights, dtype=th.float32, device=self.device)
                step = natural_step(scores, weights, self._gradient(parameters), kl, self._spread())
                del scores  # a graph of all states
                has_moved = search_line(parameters, step, kl, loss_and_kl, before["loss"][0])
                metrics["is_line_search_success"].append(has_moved)
        metrics.update(tried if has_moved else before)
        return parameters

    def _gradient(self, parameters: Iterable[nn.Parameter]) -> th.Tensor:
        gradient = flatten(cast(th.Tensor, parameter.grad) for parameter in parameters)
        if not gradient.isfinite().all():
            raise self._diverged("its gradient is")
        return gradient

    def _spread(self) -> Spread | None:
        return Spread(self.policy.log_std, self.policy.log_std_init) if hasattr(self.policy, "log_std") else None

    def _policy_losses(
        self,
        rollout_data: MultiSampleRolloutBufferSamples,
        log_prob: np.ndarray,
        entropy: np.ndarray | None,
        metrics: Metrics,
    ) -> list[losses.Loss]:
        advantages, weights = rollout_data.advantages, rollout_data.weights
        if self.normalize_advantage and len(advantages) > 1:
            advantages = losses.normalize(advantages, weights)

        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        log_ratio = log_prob - rollout_data.old_log_prob
        ratio = np.exp(log_ratio)
        policy = losses.clipped_policy_loss(ratio, advantages, weights, clip_range)
        exploration = losses.entropy_loss(entropy, log_prob, weights)

        metrics["policy_gradient_loss"].append(policy.value)
        metrics["entropy_loss"].append(exploration.value)
        metrics["clip_fraction"].append(losses.weighted_mean(abs(ratio - 1) > clip_range, weights))
        metrics["approx_kl"].append(losses.approximate_kl(log_ratio, weights))
        ent_coef = value_at(self.ent_coef, self._current_progress_remaining)
        return [policy, exploration.scaled(ent_coef)] if ent_coef else [policy]

    def _value_loss(self, rollout_data: MultiSampleRolloutBufferSamples, values: np.ndarray, metrics: Metrics) -> losses.Loss:
        clip_range_vf = None if self.clip_range_vf is None else self.clip_range_vf(self._current_progress_remaining)  # type: ignore[operator]
        critic = losses.value_loss(values, rollout_data.old_values, rollout_data.returns, clip_range_vf)
        metrics["value_loss"].append(critic.value)
        return critic.scaled(self.vf_coef)

    def _exceeds_target_kl(self, approx_kl: float, epoch: int) -> bool:
        if self.target_kl is None or approx_kl <= 1.5 * self.target_kl:
            return False
        if self.verbose >= 1:
            print(f"Policy updates stopped in epoch {epoch}: KL divergence {approx_kl:.2f}")
        return True

    def _log_update(self, metrics: Metrics, n_policy_updates: int) -> None:
        self.logger.record("train/policy_updates_stopped_at", n_policy_updates)
        if not metrics["loss"]:
            # Without a critic, the first minibatch may stop the update.
            return
        last_loss = metrics.pop("loss")[-1]
        means = {f"train/{name}": float(np.mean(values)) for name, values in metrics.items()}
        if metrics["grad_norm"]:
            means["train/grad_norm_peak"] = max(metrics["grad_norm"]) / (float(np.median(metrics["grad_norm"])) or 1.0)
        if self.uses_critic:
            means["train/actor_grad_scale"] = self._left_by_critic(metrics["grad_norm"])
            buffer = self.rollout_buffer
            means["train/explained_variance"] = float(explained_variance(buffer.values.flatten(), buffer.returns.flatten()))
        for name, value in means.items():
            self.logger.record(name, value)
        self._watch.look(means)
        self.logger.record("train/loss", last_loss)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", th.exp(self.policy.log_std).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name in ("clip_range", "clip_range_vf", "ent_coef", "trust_region"):
            value = getattr(self, name)
            if value is not None:
                self.logger.record(f"train/{name}", value_at(value, self._current_progress_remaining))

    def _check_finite(self, metrics: Metrics) -> None:
        if np.isnan(metrics["loss"]).any():
            raise self._diverged("a loss is")
        if not all(bool(parameter.isfinite().all()) for parameter in self.policy.parameters()):
            raise self._diverged("parameters are")

    def _diverged(self, what: str) -> DivergedPolicyError:
        limit = "with `desired_kl` or `target_kl`" if self.trust_region is None else "a smaller `trust_region`"
        return DivergedPolicyError(
            f"The policy has diverged: {what} NaN or infinite after {self.num_timesteps} steps. Go on from the last "
            f"checkpoint with a smaller `learning_rate`, {limit}, or with VecNormalize."
        )

    def _left_by_critic(self, grad_norms: list[float]) -> float:
        """Return the factor that the limit of all gradients together leaves of the actor's."""
        if self.max_actor_grad_norm is not None or self.trust_region is not None:
            return 1.0
        return float(np.mean(self.max_grad_norm / np.maximum(grad_norms, self.max_grad_norm)))


def _drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _second_derivatives(policy: nn.Module) -> AbstractContextManager[None]:
    """Do without the kernels of recurrent layers on CUDA, which have none."""
    is_recurrent = any(isinstance(module, nn.RNNBase) for module in policy.modules())
    return th.backends.cudnn.flags(enabled=False) if is_recurrent else nullcontext()
