"""Names of SB3's actor-critic policies, as every SB3 algorithm offers them, and of sb3-contrib's with masks or memory."""

from sb3_contrib.common.maskable.policies import (
    MaskableActorCriticCnnPolicy,
    MaskableActorCriticPolicy,
    MaskableMultiInputActorCriticPolicy,
)
from sb3_contrib.ppo_recurrent.policies import CnnLstmPolicy, MlpLstmPolicy, MultiInputLstmPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy, BasePolicy, MultiInputActorCriticPolicy

MlpPolicy = ActorCriticPolicy
CnnPolicy = ActorCriticCnnPolicy
MultiInputPolicy = MultiInputActorCriticPolicy
MaskableMlpPolicy = MaskableActorCriticPolicy
MaskableCnnPolicy = MaskableActorCriticCnnPolicy
MaskableMultiInputPolicy = MaskableMultiInputActorCriticPolicy

ALIASES: dict[str, type[BasePolicy]] = {
    "MlpPolicy": MlpPolicy,
    "CnnPolicy": CnnPolicy,
    "MultiInputPolicy": MultiInputPolicy,
    "MaskableMlpPolicy": MaskableMlpPolicy,
    "MaskableCnnPolicy": MaskableCnnPolicy,
    "MaskableMultiInputPolicy": MaskableMultiInputPolicy,
    "MlpLstmPolicy": MlpLstmPolicy,
    "CnnLstmPolicy": CnnLstmPolicy,
    "MultiInputLstmPolicy": MultiInputLstmPolicy,
}
