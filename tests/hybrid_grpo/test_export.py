"""Policies leave Python as SB3's do: https://stable-baselines3.readthedocs.io/en/master/guide/export.html."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_hybrid_grpo import GRPO, HybridGRPO

pytestmark = [
    # What PyTorch and its exporters say to each other.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

MODELS = {
    "categorical": (HybridGRPO, "CartPole-v1", {}),
    "Gaussian": (HybridGRPO, "Pendulum-v1", {}),
    "gSDE": (HybridGRPO, "Pendulum-v1", {"use_sde": True}),
    "GRPO": (GRPO, "CartPole-v1", {}),
}


class Controller(th.nn.Module):
    """Deterministic actions before they are clipped to the space, as SB3's guide exports them."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.is_discrete = isinstance(policy.action_space, gym.spaces.Discrete)

    def forward(self, obs):
        latent_pi, _ = self.policy.mlp_extractor(self.policy.extract_features(obs))
        outputs = self.policy.action_net(latent_pi)
        return outputs.argmax(dim=1) if self.is_discrete else outputs


@pytest.fixture(params=MODELS)
def trained(request):
    """A model, its controller, observations, and the actions that the model predicts for them."""
    algorithm, env_id, kwargs = MODELS[request.param]
    model = algorithm("MlpPolicy", env_id, n_steps=64, n_epochs=1, seed=0, device="cpu", **kwargs).learn(64)
    observations = np.array([model.observation_space.sample() for _ in range(5)]).clip(-10, 10)
    actions, _ = model.predict(observations, deterministic=True)
    return model, Controller(model.policy).eval(), observations, actions


def in_the_space(model, actions):
    space = model.action_space
    return np.clip(actions, space.low, space.high) if isinstance(space, gym.spaces.Box) else actions


def test_torchscript(trained, tmp_path):
    model, controller, observations, actions = trained
    path = str(tmp_path / "policy.pt")
    th.jit.trace(controller, th.as_tensor(observations[:1])).save(path)
    loaded = th.jit.load(path)
    np.testing.assert_allclose(in_the_space(model, loaded(th.as_tensor(observations)).detach().numpy()), actions, atol=1e-5)


def test_onnx(trained, tmp_path):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, controller, observations, actions = trained
    path = str(tmp_path / "policy.onnx")
    example = (th.as_tensor(observations[:1]),)
    th.onnx.export(
        controller, example, path, input_names=["obs"], output_names=["action"], dynamic_axes={"obs": {0: "n"}}, dynamo=False
    )
    (predicted,) = onnxruntime.InferenceSession(path).run(None, {"obs": observations})
    np.testing.assert_allclose(in_the_space(model, predicted), actions, atol=1e-5)
