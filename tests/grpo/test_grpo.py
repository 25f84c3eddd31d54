"""GRPO's arguments are those of ``HybridGRPO`` that mean something without a critic."""

import inspect
import re

import pytest

from sb3_hybrid_grpo import GRPO, HybridGRPO

WITHOUT = set(inspect.signature(HybridGRPO).parameters) - set(inspect.signature(GRPO).parameters)


def test_arguments_keep_order_and_defaults():
    ours, theirs = inspect.signature(GRPO).parameters, inspect.signature(HybridGRPO).parameters
    assert list(ours) == [name for name in theirs if name not in WITHOUT]
    assert {name for name in ours if ours[name].default != theirs[name].default} == {"n_samples"}
    assert ours["n_samples"].default == 4


def test_the_docstring_names_what_is_missing():
    without = re.search(r"and\s+without(.*?)\.\s", GRPO.__doc__, flags=re.DOTALL).group(1)
    assert set(re.findall(r"``(\w+)``", without)) == WITHOUT


@pytest.mark.parametrize("name", sorted(WITHOUT))
def test_what_has_no_meaning_is_refused(name):
    with pytest.raises(TypeError, match=name):
        GRPO("MlpPolicy", "CartPole-v1", **{name: inspect.signature(HybridGRPO).parameters[name].default})


def test_positional_arguments_are_those_of_the_signature():
    model = GRPO("MlpPolicy", "CartPole-v1", 1e-3, 32, 16, 1, 0.9, 0.1, n_samples=2)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs, model.gamma) == (1e-3, 32, 16, 1, 0.9)
    assert model.clip_range(1.0) == 0.1 and model.n_samples == 2 and model.advantage == "group_normalized"
