"""What this package raises on purpose."""


class HybridGRPOError(Exception):
    """Base class of every error that this package raises on purpose."""


class InvalidArgumentError(HybridGRPOError, ValueError):
    """A constructor argument has a value that cannot work; the message lists what can."""


class RewardTransformError(HybridGRPOError):
    """A reward transform returned something else than one finite number per reward."""


class InvalidOutcomeError(HybridGRPOError):
    """The environment returned NaN or infinity, in a committed step or in a branch."""


class DivergedPolicyError(HybridGRPOError, ValueError):
    """An update had a loss that is NaN, or its gradient or the policy's parameters are NaN or infinite."""


class CheckpointError(HybridGRPOError, ValueError):
    """A file is no checkpoint of this algorithm, or is damaged."""


class UnbranchableEnvError(HybridGRPOError):
    """
    The state of an environment cannot be saved and restored exactly.

    It is not a ``ValueError`` on purpose: hyperparameter tuners take that for a bad trial.
    """


class FunctionalEnvError(HybridGRPOError):
    """An environment is no functional one: its steps depend on more than their arguments, or return arrays of a wrong kind."""


class MissingExtraError(HybridGRPOError, ImportError):
    """A package is not installed that is needed; the message says how to install it."""


class BranchError(HybridGRPOError):
    """
    An environment raised inside a branch. Its committed state was restored before this was raised.

    Workers of a ``SubprocVecEnv`` may have taken the committed step after that, see ``FollowingBrancher``.
    """


class UnrestorableStateError(BranchError, UnbranchableEnvError):
    """
    A branch did something to an environment that cannot be undone, which its snapshots gave no reason to expect.

    The environment is not as it was before: go on from the last checkpoint.
    """


class BranchTimeoutError(BranchError):
    """An environment took longer in a branch than ``branch_timeout`` allows."""


class WorkerLostError(BranchError):
    """
    A worker of a vectorised environment died, or does not answer; the message names its environments.

    All workers were ended. Make the vectorised environment anew and go on from the last checkpoint.
    """


class WorkerTimeoutError(WorkerLostError, BranchTimeoutError):
    """A worker of a vectorised environment does not answer in time."""
