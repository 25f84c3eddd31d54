"""Whether the policy of a rollout stays what it is."""

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_hybrid_grpo.common import InvalidArgumentError


class Constancy:
    """
    Remembers the changes that a policy has seen.

    :param policy: the policy, as a rollout begins with it
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy
        self._versions = self._count()

    def _count(self) -> list[int]:
        return [parameter._version for parameter in self._policy.parameters()]

    def check(self) -> None:
        """
        Check that there were none since.

        :raises InvalidArgumentError: if parameters were changed
        """
        if self._count() != self._versions:
            raise InvalidArgumentError(
                "A callback has changed the policy in `_on_step`: the actions of this rollout are not those of one policy. "
                "Change it in `_on_rollout_start`, before the first action."
            )
