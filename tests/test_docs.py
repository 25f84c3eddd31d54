"""README and documentation: examples run, tables say what the code does, every public name and metric is described."""

import ast
import inspect
import re
import shutil
import sys
import warnings
from types import SimpleNamespace

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger

import sb3_hybrid_grpo
from benchmarks.speed import support_table
from sb3_hybrid_grpo import GRPO, PAPER_SETTINGS, HybridGRPO, branching, tracking
from sb3_hybrid_grpo.branching.snapshots import registry
from sb3_hybrid_grpo.diagnostics.symptoms import SYMPTOMS
from tests.envs import Walk, limited
from tests.pages import PAGES, ROOT

EXAMPLES = [
    pytest.param(inspect.cleandoc(code), id=f"{page}-{i}")
    for page, text in PAGES.items()
    for i, code in enumerate(re.findall(r"^ *```python\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE))
]
TEN_LINES = EXAMPLES[0].values[0]


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
@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, tmp_path, monkeypatch, capsys, request):
    if "huggingface" in example:
        request.getfixturevalue("hub")
    for package in ("onnx", "tensorboard", "wandb", "mlflow", "optuna"):
        if package in example:
            pytest.importorskip(package)
    if 'engine="ray"' in example:
        pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_user_registry", {})
    exec(compile(example, request.node.callspec.id, "exec"), {"__name__": "example"})
    if example == TEN_LINES:
        steps = re.fullmatch(r"2048 committed steps, (\d+) simulator steps\n", capsys.readouterr().out)
        assert 2048 < int(steps[1]) < 2048 * (1 + 8)


def test_readme_is_short():
    assert next(iter(PAGES)) == "README" and len(PAGES["README"].splitlines()) <= 150
    assert len([line for line in TEN_LINES.splitlines() if line]) <= 10


def slugs(text):
    """Return the anchors of headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page):
    """Those of the documentation are checked when it is built."""
    for path, anchor in re.findall(r"\]\(([^):#]+)(?:#([^)]*))?\)", (ROOT / page).read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path
        assert not anchor or anchor in slugs((ROOT / path).read_text(encoding="utf-8")), (path, anchor)


@pytest.mark.parametrize("arguments", [[], ["--third-party"]], ids=["families", "third-party"])
def test_tables_of_environments_can_be_written_again(arguments, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(PAGES["docs/can_i_use_it"], encoding="utf-8")
    monkeypatch.setattr(support_table, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["support_table", "--families", "none of them", "--write", *arguments])
    with warnings.catch_warnings():
        support_table.main()
    assert page.read_text(encoding="utf-8") == PAGES["docs/can_i_use_it"]


def test_table_of_arguments():
    ours = [name for name in inspect.signature(HybridGRPO).parameters if name not in inspect.signature(PPO).parameters]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGES["docs/hybrid_grpo"], flags=re.MULTILINE))
    defaults = {name: inspect.signature(HybridGRPO).parameters[name].default for name in ours}
    assert {name: eval(default) for name, default in rows.items()} == {
        name: default for name, default in defaults.items() if name != "reward_transform_kwargs"
    }
    for name, value in PAPER_SETTINGS.items():
        written = repr(value).replace("'", '"')
        assert re.search(rf"^\| `{name}` \| `.+?` \| `{written}` \|", PAGES["docs/hybrid_grpo"], flags=re.MULTILINE), name


def test_arguments_shared_with_ppo_are_ppos():
    """Same names, order and defaults."""
    ours = list(inspect.signature(HybridGRPO.__init__).parameters.values())
    ppos = list(inspect.signature(PPO.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(ppos)]] == [(p.name, p.default, p.kind) for p in ppos]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours[len(ppos) :])


def test_table_of_symptoms():
    row = re.compile(r"^\| [^|]+ \| `((?:diagnostics|train)/\w+)` \| ([<>]) (-?[\d.]+)", flags=re.MULTILINE)
    rows = row.findall(PAGES["docs/diagnostics"])
    assert {(metric, sign, float(threshold)) for metric, sign, threshold in rows} == {
        (symptom.metric, ">" if symptom.is_beyond(1e9, 0) else "<", symptom.threshold) for symptom in SYMPTOMS
    }


GLOSSARY = dict(re.findall(r"^\| `(\w+/\w+)` \| .+ \| (.*?) ?\|$", PAGES["docs/diagnostics"], flags=re.MULTILINE))
METRIC = re.compile(r"(rollout|time|train|diagnostics)/\w+")


def test_glossary_has_healthy_ranges_of_symptoms():
    for symptom in SYMPTOMS:
        healthy = "≤" if symptom.is_beyond(1e9, 0) else "≥"
        assert GLOSSARY[symptom.metric] == f"{healthy} {symptom.threshold:g}"


class Recorder(KVWriter):
    """Keeps the names of metrics."""

    def __init__(self):
        self.names = set()

    def write(self, key_values, key_excluded, step=0):
        self.names |= set(key_values)


class Succeeding(Walk):
    def step(self, action):
        *result, info = super().step(action)
        return *result, info | {"is_success": True}


# The smallest rollouts of all kinds of training have symptoms.
@pytest.mark.filterwarnings("ignore:.* updates in a row show:UserWarning")
def test_glossary_has_the_metrics_that_are_logged():
    recorder = Recorder()
    trainings = [
        (HybridGRPO, Succeeding, {"desired_kl": 0.01, "clip_range_vf": 0.2, "branch_horizon": 2}),
        (HybridGRPO, limited(5), {"brancher": "learned", "branch_horizon": 1}),
        (HybridGRPO, limited(5), {"branch_fraction": "auto"}),
        (HybridGRPO, limited(5), {"trust_region": 0.01}),
        (GRPO, limited(5), {}),
    ]
    for algorithm, env, kwargs in trainings:
        model = algorithm("MlpPolicy", make_vec_env(env, 1, seed=0), n_steps=32, batch_size=32, n_epochs=1, seed=0, **kwargs)
        model.set_logger(Logger(folder=None, output_formats=[recorder]))
        model.learn(64)
    assert recorder.names == set(GLOSSARY)


def test_glossary_has_the_metrics_that_the_code_names():
    """Also those that the training of the test above may have missed."""
    for path in (ROOT / "sb3_hybrid_grpo").rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        metrics = set(filter(METRIC.fullmatch, strings))
        assert metrics <= set(GLOSSARY), path


@pytest.mark.parametrize("package", [sb3_hybrid_grpo, branching, tracking], ids=lambda package: package.__name__)
def test_public_names_are_documented(package):
    described = re.findall(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)$", "\n".join(PAGES.values()), flags=re.MULTILINE)
    assert {f"{package.__name__}.{name}" for name in package.__all__} <= set(described)
