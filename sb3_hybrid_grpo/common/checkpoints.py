"""Clear errors for files that are no checkpoint."""

import copy
import io
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_hybrid_grpo.common.errors import CheckpointError, InvalidArgumentError

SelfCheckedCheckpoints = TypeVar("SelfCheckedCheckpoints", bound="CheckedCheckpoints")

# What SB3 and PyTorch raise about a file, by a piece of their messages, and what it means
_CAUSES = {
    "wasn't a zip-file": "is no zip-file: was the run killed while it was saving?",
    "in the saved file": "holds no model of SB3, or lost it.",
    "got set()": "holds no parameters of a model, or lost them.",
    "is no ActorCriticPolicy": "holds another kind of model.",
    "PytorchStreamReader": "is damaged.",
}
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, pickle.UnpicklingError, UnicodeDecodeError)


@contextmanager
def readable_checkpoint(path: Any) -> Iterator[None]:
    """
    Raise ``CheckpointError`` where reading a file fails because of the file.

    :param path: the file, for the message
    :raises CheckpointError: if it is damaged, or no zip-file of a model that fits
    """
    try:
        yield
    except Exception as error:
        causes = (cause for piece, cause in _CAUSES.items() if piece in str(error))
        cause = next(causes, "is damaged." if isinstance(error, _DAMAGE) else None)
        if cause is None:
            raise
        raise CheckpointError(f"{path} {cause} Load another checkpoint of the run. ({error})") from error


class CheckedCheckpoints(OnPolicyAlgorithm):
    """Loading as in SB3, with ``CheckpointError`` for files that are none, and without half-loaded models."""

    @classmethod
    def load(
        cls: type[SelfCheckedCheckpoints],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfCheckedCheckpoints:
        """
        Load a model from a zip-file of this algorithm or of PPO, as in SB3.

        :param path: path to the file, or a file-like
        :param env: the new environment to run the loaded model on
        :param device: Device on which the code should run
        :param custom_objects: objects that replace those of the file
        :param print_system_info: Whether to print system info of the saved model and the current one
        :param force_reset: Force call to ``reset()`` before training
        :param kwargs: arguments of the constructor to change
        :return: new model instance with loaded parameters
        :raises CheckpointError: if the file is damaged or holds another kind of model
        :raises InvalidArgumentError: if an argument has a value that cannot work
        """
        if "reward_transform_kwargs" in kwargs and "reward_transform" not in kwargs:
            raise InvalidArgumentError("reward_transform_kwargs need the name of a reward_transform: pass it, too.")
        if "reward_transform" in kwargs:
            # Those of the file are for the one that it had.
            kwargs = {"reward_transform_kwargs": None, **kwargs}
        with readable_checkpoint(path):
            return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters from a zip-file or a nested dictionary, as in SB3; if that fails, keep those of before.

        :param load_path_or_dict: Location of the saved data, or a nested dictionary of parameters
        :param exact_match: whether the given parameters must include each of the model's
        :param device: Device on which the code should run
        :raises CheckpointError: if the file is damaged or holds no model
        """
        before = copy.deepcopy(self.get_parameters())
        try:
            with readable_checkpoint(load_path_or_dict):
                super().set_parameters(load_path_or_dict, exact_match, device)
        except Exception:
            super().set_parameters(before)  # type: ignore[arg-type]
            raise
