"""Take pictures of what the check and the doctor say: ``python -m benchmarks.pictures.screens``."""

import io
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from rich.console import Console
from rich.text import Text
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from benchmarks import HERE
from sb3_hybrid_grpo import HybridGRPO

FOLDER = HERE.parent / "docs" / "_static"
WIDTH = 100


def screen(command: str, output: str) -> str:
    """
    Draw a terminal.

    :param command: what was typed
    :param output: what was printed
    :return: a picture in SVG
    """
    console = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text(output.rstrip()))
    return console.export_svg(title=" ", unique_id=command.split()[2].rpartition(".")[2])


def take(name: str, command: str, folder: Path) -> None:
    """
    Run a command and keep a picture of it.

    :param name: name of the picture
    :param command: a command that begins with "python"
    :param folder: where it runs
    """
    arguments = command.split()[1:]
    done = subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, text=True)
    (FOLDER / f"{name}.svg").write_text(screen(command, done.stdout), encoding="utf-8")


def train_badly(folder: Path) -> None:
    """
    Train a policy that hardly varies its actions.

    :param folder: where its log goes
    """
    env = make_vec_env("Pendulum-v1", 4, seed=0)
    settings = {"n_steps": 64, "batch_size": 256, "learning_rate": 1e-3, "gamma": 0.9, "branch_horizon": 1}
    model = HybridGRPO("MlpPolicy", env, seed=0, policy_kwargs={"log_std_init": -8.0}, **settings)
    model.set_logger(configure(str(folder), ["csv"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.learn(8 * 256)
    model.logger.close()


def main() -> None:
    """Take all pictures."""
    with tempfile.TemporaryDirectory() as folder:
        take("check", "python -m sb3_hybrid_grpo.check CartPole-v1", Path(folder))
        train_badly(Path(folder, "logs"))
        take("doctor", "python -m sb3_hybrid_grpo.doctor logs", Path(folder))


if __name__ == "__main__":
    main()
