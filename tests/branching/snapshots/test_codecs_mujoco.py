"""MuJoCo before version 3.5 is copied by its library, or refused if that forgets something."""

import pytest

from sb3_hybrid_grpo import UnbranchableEnvError
from sb3_hybrid_grpo.branching import Snapshot
from sb3_hybrid_grpo.branching.snapshots.codecs import mujoco as mujoco_codec
from tests.lockstep import describe

mujoco = pytest.importorskip("mujoco")
MODEL = """
<mujoco><worldbody>
  <geom type='plane' size='1 1 1'/>
  <body pos='0 0 .2'><freejoint/><geom size='.1'/></body>
</worldbody></mujoco>
"""


@pytest.fixture(autouse=True)
def version_before_3_5(monkeypatch):
    monkeypatch.delattr(mujoco, "mj_copyData")
    mujoco_codec._copy_function.cache_clear()
    yield
    mujoco_codec._copy_function.cache_clear()


@pytest.mark.skipif(mujoco_codec._function_of_library(mujoco) is None, reason="this version has another library")
def test_library_copies_all():
    model = mujoco.MjModel.from_xml_string(MODEL)
    data = mujoco.MjData(model)
    snapshots = []
    for _ in range(6):
        snapshots.append((describe(data), data.contact.dist.tolist(), Snapshot(data)))
        mujoco.mj_step(model, data, 40)
    for before, contacts, snapshot in reversed(snapshots):
        snapshot.restore()
        assert (describe(data), data.contact.dist.tolist()) == (before, contacts)
    assert snapshots[-1][1], "the ball never touched the ground"


def test_version_that_forgets_contacts_is_refused(monkeypatch):
    monkeypatch.setattr(mujoco_codec, "_function_of_library", lambda module: lambda destination, model, source: None)
    with pytest.raises(UnbranchableEnvError, match=r"MuJoCo \S+ cannot copy its state.* environment's own package"):
        mujoco_codec._copy_function()
