"""What a measurement was made on."""

import platform
import subprocess
from importlib.metadata import version

from benchmarks import HERE

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "mujoco")


def provenance() -> dict[str, str]:
    """
    Describe code and machine.

    :return: commit, versions and processor, as columns of a CSV row
    """
    describe = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout
    return {
        "commit": commit.strip(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": platform.machine(),
    }
