"""What a measurement was made on."""

import platform
import subprocess
from importlib.metadata import version

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "numpy", "mujoco")


def provenance() -> dict[str, str]:
    """
    Describe code and machine.

    :return: commit, versions and processor, as columns of a CSV row
    """
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout
    return {
        "commit": commit.strip(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": platform.machine(),
    }
