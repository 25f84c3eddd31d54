"""What goes wrong in training, by which logged metric it shows, and which argument to change."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sb3_hybrid_grpo.common import warn


class Symptom(NamedTuple):
    """
    A metric beyond its threshold.

    :param name: what is wrong, in two or three words
    :param metric: name of the metric in the logs
    :param threshold: where it begins
    :param is_beyond: compares a value with the threshold
    :param advice: what it means and what to do
    :param patience: number of updates in a row that show it before it is reported: a few may be chance, or the beginning
    """

    name: str
    metric: str
    threshold: float
    is_beyond: Callable[[float, float], bool]
    advice: str
    patience: int = 5

    def is_present(self, metrics: Mapping[str, float]) -> bool | None:
        """
        Look for the symptom.

        :param metrics: logged values
        :return: whether they show it, ``None`` if its metric is not among them
        """
        return self.is_beyond(metrics[self.metric], self.threshold) if self.metric in metrics else None

    def describe(self, value: float) -> str:
        """
        Describe the symptom.

        :param value: value of its metric
        :return: a sentence for people
        """
        return f"{self.name} ({self.metric} = {value:.3g}, threshold {self.threshold:g}): {self.advice}"


def _above(value: float, threshold: float) -> bool:
    return value > threshold


def _below(value: float, threshold: float) -> bool:
    return value < threshold


SYMPTOMS = (
    Symptom(
        "noisy advantages",
        "diagnostics/advantage_variance_ratio",
        1.0,
        _above,
        "the estimates of N actions are no less noisy than PPO's single one. Lower `tail_coef`, or raise `n_samples`; with "
        '`advantage="averaged"` it is in the nature of the formula.',
    ),
    Symptom(
        "useless critic",
        "train/explained_variance",
        0.02,
        _below,
        "the critic explains the returns no better than their mean does, and every advantage rests on it. Raise `vf_coef` or "
        "`n_epochs`, check `learning_rate` and `gamma`, normalise with VecNormalize, and keep `refit_critic=True`.",
        patience=20,
    ),
    Symptom(
        "critic wrong about branches",
        "diagnostics/branch_explained_variance",
        -0.5,
        _below,
        "the critic has another scale than what branches return, as after a warm start with other rewards, or does not know "
        "the states that they lead to. Raise `vf_coef` or `n_epochs`, keep `refit_critic=True`, or shorten `branch_horizon`.",
    ),
    Symptom(
        "collapsed policy",
        "diagnostics/coincident_actions",
        0.9,
        _above,
        "the N actions of a state are the same, so that they teach nothing. Raise `ent_coef`, lower `learning_rate`, set "
        "`target_kl`, or start from a larger `log_std_init` (policy_kwargs).",
    ),
    Symptom(
        "saturated rewards",
        "diagnostics/saturated_rewards",
        0.3,
        _above,
        'the reward transform makes different rewards equal. Use `reward_transform="scaled_tanh"` or `"identity"`, or '
        "normalise rewards with VecNormalize.",
    ),
    Symptom(
        "unstable updates",
        "train/approx_kl",
        0.1,
        _above,
        "an update moves the policy far beyond the trust region. Lower `learning_rate`, `n_epochs` or `trust_region`, or set "
        "`target_kl`.",
    ),
    Symptom(
        "runaway learning rate",
        "train/learning_rate_factor",
        20.0,
        _above,
        "updates hardly move the policy, so that `desired_kl` has raised the learning rate far beyond its schedule. Where a "
        "policy that has solved its task hardly varies its actions any more, one such update may undo all: lower the second "
        "of `learning_rate_bounds`, or set `trust_region` in place of `desired_kl`; if all rewards are alike, explore.",
    ),
    Symptom(
        "steps that fail",
        "train/is_line_search_success",
        0.5,
        _below,
        "no length of the natural step lowered the clipped loss, so that the policy stays as it is. Raise `clip_range`, or "
        "lower `trust_region`; if all rewards are alike, explore until some are not.",
    ),
    Symptom(
        "exploding gradients",
        "train/grad_norm_peak",
        100.0,
        _above,
        "single minibatches have gradients a hundred times the usual. Look for outliers among rewards and observations: "
        'normalise with VecNormalize, or use `reward_transform="scaled_tanh"`.',
    ),
    Symptom(
        "starved actor",
        "train/actor_grad_scale",
        1e-3,
        _below,
        "the critic's gradient, which is large because returns are, uses up `max_grad_norm`, and the policy hardly moves. "
        "Give the actor's a limit of its own, `max_actor_grad_norm=0.005`, or normalise rewards with VecNormalize.",
        patience=20,
    ),
    Symptom(
        "groups without signal",
        "diagnostics/groups_without_signal",
        0.9,
        _above,
        "all actions of a state lead to the same estimate. Raise `branch_horizon` or `n_samples`; if rewards are sparse, "
        "explore (`ent_coef`) until some are found.",
    ),
    Symptom(
        "branches disagree",
        "diagnostics/branch_disagreement",
        6.0,
        _above,
        "branches are rewarded otherwise than the same policy's committed actions. Run `python -m sb3_hybrid_grpo.check` on "
        "the environment, or correct your own brancher or reward function.",
    ),
)


def _warn(_: Symptom, text: str) -> None:
    warn(text)


class Watch:
    """
    Looks at the metrics of update after update, and reports once each symptom that stays.

    :param report: is told the symptom, and about it; by default, the user is warned
    """

    def __init__(self, report: Callable[[Symptom, str], None] = _warn) -> None:
        self._report = report
        self._streaks = dict.fromkeys(SYMPTOMS, 0)
        self._reported: set[Symptom] = set()

    def look(self, metrics: Mapping[str, float]) -> None:
        """
        Look at the metrics of one rollout or update.

        :param metrics: logged values
        """
        for symptom in SYMPTOMS:
            present = symptom.is_present(metrics)
            if present is None or symptom in self._reported:
                continue
            self._streaks[symptom] = self._streaks[symptom] + 1 if present else 0
            if self._streaks[symptom] == symptom.patience:
                self._reported.add(symptom)
                text = symptom.describe(metrics[symptom.metric])
                self._report(symptom, f"{symptom.patience} updates in a row show {text}")
