"""
Film what the main job's default run has trained, side by side: ``python -m benchmarks.pictures.film FOLDER``.

Frames are rendered off-screen (``MUJOCO_GL=egl`` or ``osmesa`` where there is no display).
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks import HERE
from sb3_hybrid_grpo.compare.folder import read_evaluations
from sb3_hybrid_grpo.compare.training import Evaluation

FILM = HERE.parent / "docs" / "_static" / "agents.gif"
LIMIT = 1_000_000
ENV = "HalfCheetah-v5"
NAMES = {"ppo": "PPO", "hybrid_grpo": "HybridGRPO"}
WIDTH, HEIGHT, CAPTION = 240, 150, 30
STEPS, EVERY = 200, 2
"""Steps of 0.05 s, and how many of them are one frame."""


def frames(folder: Path, algo: str, seed: int) -> Iterator[Image.Image]:
    """
    Let an agent run. Checkpoints of both algorithms are loaded as PPO's, which they are, too.

    :param folder: where the main job has left its results
    :param algo: name of the algorithm
    :param seed: seed of the run
    :return: pictures with a caption
    """
    run = f"{algo}_{seed}"
    env = gym.make(ENV, render_mode="rgb_array", width=WIDTH, height=HEIGHT, camera_name="track")
    normalization = VecNormalize.load(str(folder / f"{run}_vecnormalize.pkl"), DummyVecEnv([lambda: env]))
    policy = PPO.load(folder / f"{run}.zip", device="cpu")
    last = [point for point in read_evaluations(folder / "results.csv") if (point.algo, point.seed) == (algo, seed)][-1]
    obs, _ = env.reset(seed=0)
    for step in range(STEPS):
        action, _ = policy.predict(normalization.normalize_obs(obs), deterministic=True)
        obs, _, _, _, info = env.step(action)
        if step % EVERY == 0:
            yield captioned(env.render(), last, info["x_position"])
    env.close()


def captioned(picture: np.ndarray, last: Evaluation, distance: float) -> Image.Image:
    """
    Write below a picture who it is.

    :param picture: the picture, [height, width, 3]
    :param last: the run's last evaluation
    :param distance: metres so far
    :return: picture and caption
    """
    image = Image.new("RGB", (WIDTH, HEIGHT + CAPTION), "white")
    image.paste(Image.fromarray(picture))
    text = f"{NAMES[last.algo]} after {last.cpu_seconds:.0f} s of training\n{distance:.1f} m"
    ImageDraw.Draw(image).text((6, HEIGHT + 3), text, fill="black")
    return image


def save(pairs: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """
    Write a film as finely as a small file allows.

    :param pairs: what stands side by side, picture by picture
    :param path: a GIF file
    """
    film = [Image.new("RGB", (WIDTH * len(pair), HEIGHT + CAPTION)) for pair in pairs]
    for image, pair in zip(film, pairs, strict=True):
        for i, part in enumerate(pair):
            image.paste(part, (i * WIDTH, 0))
    for colors in (32, 16, 8):
        palette = film[len(film) // 2].quantize(colors, dither=Image.Dither.NONE)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in film]
        images[0].save(path, save_all=True, append_images=images[1:], duration=50 * EVERY, loop=0, optimize=True)
        if path.stat().st_size < LIMIT:
            return
    raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes and may have {LIMIT:,}: film fewer steps")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Film.

    :param argv: arguments of the command line, ``sys.argv`` by default
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the main job has left its results")
    parser.add_argument("--seed", type=int, default=0, help="which of its runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FILM)
    options = parser.parse_args(argv)
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    save(list(zip(*(frames(options.folder, algo, options.seed) for algo in NAMES), strict=True)), options.out)


if __name__ == "__main__":
    main()
