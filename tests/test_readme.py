"""The README's examples run, and its tables say what the code does."""

import inspect
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from stable_baselines3 import PPO

from sb3_hybrid_grpo import PAPER_SETTINGS, HybridGRPO
from sb3_hybrid_grpo.branching.snapshots import registry
from sb3_hybrid_grpo.diagnostics.symptoms import SYMPTOMS

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


class Hub:
    """Stands for the Hugging Face Hub, which tests cannot reach: what is uploaded can be downloaded."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, token=None):
        return self

    def create_repo(self, repo_id, exist_ok):
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id, **kwargs):
        shutil.copy(path_or_fileobj, self.folder / repo_id / path_in_repo)

    def download(self, repo_id, filename, **kwargs):
        return str(self.folder / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    package = pytest.importorskip("huggingface_sb3.push_to_hub")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(package, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "True")


# PyTorch warns of its own exporter.
@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example, tmp_path, monkeypatch, capsys, request):
    if "huggingface" in example:
        request.getfixturevalue("hub")
    if "onnx" in example:
        pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_user_registry", {})
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    if "print(" in example:
        steps = re.fullmatch(r"2048 committed steps, (\d+) simulator steps\n", capsys.readouterr().out)
        assert 2048 < int(steps[1]) < 2048 * (1 + 8)


def test_ten_lines_are_ten_lines():
    assert len([line for line in EXAMPLES[0].splitlines() if line]) <= 10


def test_table_of_arguments():
    ours = [name for name in inspect.signature(HybridGRPO).parameters if name not in inspect.signature(PPO).parameters]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", README, flags=re.MULTILINE))
    defaults = {name: inspect.signature(HybridGRPO).parameters[name].default for name in ours}
    assert {name: eval(default) for name, default in rows.items()} == {
        name: default for name, default in defaults.items() if name != "reward_transform_kwargs"
    }
    for name, value in PAPER_SETTINGS.items():
        written = repr(value).replace("'", '"')
        assert re.search(rf"^\| `{name}` \| `.+?` \| `{written}` \|", README, flags=re.MULTILINE), name


def test_arguments_shared_with_ppo_are_ppos():
    """Same names, order and defaults."""
    ours = list(inspect.signature(HybridGRPO.__init__).parameters.values())
    ppos = list(inspect.signature(PPO.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(ppos)]] == [(p.name, p.default, p.kind) for p in ppos]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(ppos) :])


def test_table_of_symptoms():
    rows = re.findall(r"^\| [^|]+ \| `((?:diagnostics|train)/\w+)` \| ([<>]) (-?[\d.]+)", README, flags=re.MULTILINE)
    assert {(metric, sign, float(threshold)) for metric, sign, threshold in rows} == {
        (symptom.metric, ">" if symptom.is_beyond(1e9, 0) else "<", symptom.threshold) for symptom in SYMPTOMS
    }
