"""Runs in trackers, offline, and what they are told beside the metrics."""

import importlib.util
import sys
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import (
    Figure,
    FormatUnsupportedError,
    HParam,
    Image,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    Video,
)
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_hybrid_grpo import HybridGRPO, MissingExtraError, check_branchable
from sb3_hybrid_grpo.branching.copies.child import CAN_FORK
from sb3_hybrid_grpo.diagnostics.symptoms import SYMPTOMS
from sb3_hybrid_grpo.tracking import Alert, MLflowOutputFormat, TrackingCallback, WandbOutputFormat, hyperparameters
from tests.envs import Walk

OF_PEOPLE = ("stdout", "log", "json", "csv")


class Record(KVWriter):
    """Keeps what is written."""

    def __init__(self):
        self.values, self.excluded = {}, {}

    def write(self, key_values, key_excluded, step=0):
        self.values.update(key_values)
        self.excluded.update(key_excluded)

    def close(self):
        pass


def small(algorithm=HybridGRPO, env="CartPole-v1", **kwargs):
    settings = {"n_steps": 32, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu", **kwargs}
    return algorithm("MlpPolicy", env, **settings)


def learn(formats, callback=None, n_updates=2, **kwargs):
    model = small(**kwargs)
    logger = Logger(folder=None, output_formats=formats)
    model.set_logger(logger)
    model.learn(n_updates * 32, callback=callback or TrackingCallback())
    return logger


def test_hyperparameters_of_the_constructor():
    values = hyperparameters(
        small(
            learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
            ent_coef=lambda _: 0.1,
            policy_kwargs={"net_arch": [8, 8], "activation_fn": th.nn.ReLU},
            desired_kl=np.float64(0.01),
        )
    )
    assert {
        "algorithm": "HybridGRPO",
        "policy": "ActorCriticPolicy",
        "env": "CartPole-v1",
        "n_envs": 1,
    }.items() <= values.items()
    assert {
        "n_samples": 2,
        "clip_range": 0.2,
        "target_kl": None,
        "refit_critic": True,
        "device": "cpu",
    }.items() <= values.items()
    assert values["policy_kwargs.net_arch"] == "[8, 8]"
    assert values["policy_kwargs.activation_fn"] == "ReLU"
    assert values["reward_transform"] == "ScaledTanh"
    assert values["learning_rate"] == "LinearSchedule(start=0.001, end=0.0, end_fraction=1.0)"
    assert "<lambda>" in values["ent_coef"]
    assert not {"self", "verbose", "tensorboard_log"} & set(values)
    assert {type(value) for value in values.values()} <= {bool, int, float, str, type(None)}
    assert not any(" at 0x" in str(value) for value in values.values())


def test_environments_without_an_id_and_other_algorithms():
    values = hyperparameters(small(PPO, Walk()))
    assert values["algorithm"] == "PPO" and values["clip_range"] == 0.2 and "n_samples" not in values
    assert values["env"] is None


class Drawn(Walk):
    def __str__(self):
        return f"<Walk<{self.position}>>"


def test_environments_that_draw_themselves_before_they_can():
    assert hyperparameters(small(PPO, Drawn()))["env"] is None


@pytest.mark.skipif(not CAN_FORK, reason="needs workers that know what was registered here")
def test_environments_whose_specification_cannot_be_sent():
    gym.register("Local-v0", lambda **kwargs: CartPoleEnv())
    try:
        env = make_vec_env(lambda: gym.make("Local-v0"), 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
        assert hyperparameters(small(PPO, env))["env"] == "Local-v0"
        env.close()
    finally:
        del gym.registry["Local-v0"]


def test_hyperparameters_and_the_verdict_are_logged():
    record, report = Record(), check_branchable("CartPole-v1", n_steps=5)
    learn([record], TrackingCallback(report))
    logged = record.values["hparams"]
    assert isinstance(logged, HParam)
    assert logged.hparam_dict["support"] == report.verdict and "exact by snapshots" in report.verdict
    assert logged.hparam_dict["n_steps"] == 32
    assert record.values["support/report"] == str(report)
    assert record.excluded["hparams"] == record.excluded["support/report"] == OF_PEOPLE


def test_symptoms_are_alerts():
    """Also where the training itself does not watch."""
    (unstable,) = (symptom for symptom in SYMPTOMS if symptom.name == "unstable updates")
    settings = {"algorithm": PPO, "learning_rate": 0.01, "clip_range": 10.0, "n_epochs": 20}
    record = Record()
    learn([record], n_updates=5, **settings)
    assert "alerts/unstable updates" not in record.values
    learn([record], n_updates=unstable.patience + 1, **settings)
    alert = record.values["alerts/unstable updates"]
    assert isinstance(alert, Alert)
    assert alert.startswith("5 updates in a row show unstable updates (train/approx_kl = ")
    assert record.excluded["alerts/unstable updates"] == OF_PEOPLE


def test_tensorboard_has_hyperparameters(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    plugin_data = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    learn([TensorBoardOutputFormat(str(tmp_path))], TrackingCallback(check_branchable("CartPole-v1", n_steps=5))).close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    logged = plugin_data.HParamsPluginData.FromString(metadata).session_start_info.hparams
    assert logged["n_samples"].number_value == 2
    assert logged["support"].string_value.startswith("exact by snapshots")
    experiment = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    infos = plugin_data.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert {info.name.tag for info in infos} == {"rollout/ep_rew_mean", "train/explained_variance"}


@pytest.mark.parametrize("output_format", [WandbOutputFormat, MLflowOutputFormat])
def test_missing_extra(output_format, tmp_path, monkeypatch):
    """Nor does a folder of runs in the working directory pass for the package."""
    package = output_format.package
    (tmp_path / package).mkdir()
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    importlib.invalidate_caches()
    with pytest.raises(
        MissingExtraError, match=rf'{package}, which is not installed: pip install "sb3-hybrid-grpo\[{package}\]"'
    ):
        output_format()


@pytest.fixture
def figure(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    yield Figure(pyplot.figure(figsize=(1, 1)), close=True)
    assert not pyplot.get_fignums()


def write(output_format, step=7, exclude=(), **values):
    output_format.write(values, {name: exclude for name in values}, step)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    if wandb.run is not None:
        wandb.finish()


def test_wandb(wandb, figure, tmp_path):
    output_format = WandbOutputFormat(project="tests")
    logger = learn([output_format], TrackingCallback(check_branchable("CartPole-v1", n_steps=5)))
    run = output_format.run
    assert run.config["n_samples"] == 2 and run.config["support"].startswith("exact by snapshots")
    summary = dict(run.summary)
    assert summary["global_step"] == 64
    assert summary["time/simulator_steps"] > 64
    assert "hparams" not in summary
    with mock.patch.object(run, "alert", wraps=run.alert) as alert:
        write(output_format, **{"alerts/collapsed policy": Alert("Raise ent_coef.")})
    alert.assert_called_once_with(title="collapsed policy", text="Raise ent_coef.", level="WARN")
    write(output_format, step=1, exclude=("wandb",), hidden=1.0)
    write(output_format, step=1, array=np.arange(5), image=Image(np.zeros((3, 4, 5), dtype=np.uint8), "CHW"), figure=figure)
    summary = dict(run.summary)
    assert summary["global_step"] == 1 and "hidden" not in summary
    assert summary["array"]["_type"] == "histogram"
    assert (summary["image"]["height"], summary["image"]["width"]) == (4, 5)
    assert summary["figure"]["_type"] == "image-file"
    logger.close()
    assert wandb.run is None
    assert list(tmp_path.rglob("*.wandb"))


def test_wandb_video(wandb):
    pytest.importorskip("moviepy")
    output_format = WandbOutputFormat()
    write(output_format, video=Video(th.zeros(1, 2, 3, 16, 16, dtype=th.uint8), fps=10.0))
    assert output_format.run.summary["video"]["_type"] == "video-file"
    output_format.close()


def test_wandbs_active_run_is_used_and_left_open(wandb):
    run = wandb.init()
    output_format = WandbOutputFormat()
    assert output_format.run is run
    output_format.close()
    assert wandb.run is run


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{(tmp_path / 'mlflow.db').as_posix()}")
    yield mlflow
    while mlflow.active_run() is not None:
        mlflow.end_run()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow(mlflow, figure):
    with mlflow.start_run():
        output_format = MLflowOutputFormat()
        output_format.close()
        assert mlflow.active_run() is not None
    output_format = MLflowOutputFormat(run_name="ours")
    logger = learn([output_format], TrackingCallback(check_branchable("CartPole-v1", n_steps=5)))
    write(output_format, **{"alerts/collapsed policy": Alert("Raise ent_coef.")})
    write(output_format, text="hello", image=Image(np.zeros((3, 4, 5), dtype=np.uint8), "CHW"), figure=figure)
    write(output_format, exclude=("mlflow",), hidden=1.0, array=np.zeros(3))
    with pytest.raises(FormatUnsupportedError, match="ndarray"):
        write(output_format, array=np.zeros(3))
    logger.close()
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    data = client.get_run(output_format.run_id).data
    assert data.params["n_samples"] == "2" and data.params["support"].startswith("exact by snapshots")
    assert data.tags["alerts/collapsed policy"] == "Raise ent_coef."
    assert data.tags["mlflow.runName"] == "ours"
    assert "hidden" not in data.metrics
    steps = client.get_metric_history(output_format.run_id, "time/simulator_steps")
    assert [metric.step for metric in steps] == [32, 64]
    artifacts = [client.list_artifacts(output_format.run_id, name)[0].path for name in ("text", "image", "figure")]
    assert artifacts == ["text/7.txt", "image/7.png", "figure/7.png"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_parameters_that_change_in_a_run_of_mlflow(mlflow):
    output_format = MLflowOutputFormat(run_name="stages")
    output_format._write_hyperparameters({"ent_coef": 0.0, "gamma": 0.99})
    output_format._write_hyperparameters({"ent_coef": 0.01, "gamma": 0.99, "n_epochs": 4})
    output_format.close()
    data = mlflow.MlflowClient().get_run(output_format.run_id).data
    assert data.params == {"ent_coef": "0.0", "gamma": "0.99", "n_epochs": "4"}
    assert {name: value for name, value in data.tags.items() if name.startswith("changed/")} == {"changed/ent_coef": "0.01"}
