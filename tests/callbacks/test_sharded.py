"""Two processes that share the parameters (FSDP2) of a project's own module are one plain process."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import EWC, SI, Adapters, LwF
from lightning_cl.callbacks._best import BestWeights
from lightning_cl.callbacks._fit_checkpoint import FitCheckpoint
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from tests.callbacks.distributed_examples import in_processes
from tests.callbacks.ewc_examples import Net
from tests.callbacks.sharded_examples import METHODS, all_four, difference, learnt, resumed

CLIPPED = {"gradient_clip_val": 0.3, "accumulate_grad_batches": 2}

FIRST = """
import sys
import torch
from lightning_cl._compat_fsdp2 import whole
from lightning_cl._compat_sharded import refuse_unshared
from tests.callbacks.sharded_examples import *
from tests.callbacks.test_sharded import CLIPPED

if __name__ == "__main__":
    found = {name: learnt(name, 2) for name in METHODS}
    found["clipped"] = learnt("online ewc", 2, **CLIPPED)
    found["adam"] = learnt("proximal ewc", 2, "Adam")
    found["four"] = all_four(2, folder=sys.argv[1] + "/two")
    found["errors"] = errors()
    torch.save(found, f"{sys.argv[1]}/rank{torch.distributed.get_rank()}.pt")
"""

NEXT = """
import sys
import torch
from tests.callbacks.sharded_examples import *

if __name__ == "__main__":
    source, processes, target = SOURCE, PROCESSES, TARGET
    found = resumed(source, processes, folder=target, sharded=True)
    torch.save(found, f"{sys.argv[1]}/rank{torch.distributed.get_rank()}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def first(folder: Path) -> Any:
    return in_processes(FIRST, folder, 2)


@pytest.fixture(scope="module")
def uninterrupted() -> Any:
    """Of one plain process."""
    return all_four(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*METHODS, "clipped", "adam"])
def test_two_that_share_are_one_that_does_not(first: Any, name: str):
    one, two = (rank[name] for rank in first)
    given = {"clipped": ("online ewc", 1, "SGD"), "adam": ("proximal ewc", 1, "Adam")}
    plain = learnt(*given.get(name, (name, 1)), **(CLIPPED if name == "clipped" else {}))
    assert difference(one, two) == 0
    assert difference(one, plain) < 1e-6
    if name != "naive":
        assert float((one["weights"] - first[0]["naive"]["weights"]).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["online ewc", "proximal ewc", "l2sp", "lwf"])
def test_neither_process_keeps_more_than_its_share(first: Any, name: str):
    one, two = (rank[name] for rank in first)
    whole = sum(value.nbytes for value in one["kept"].values())
    assert one["sharded"]
    assert two["sharded"]
    assert one["bytes"] + two["bytes"] == whole
    assert max(one["bytes"], two["bytes"]) < 0.6 * whole


@pytest.mark.long
def test_a_checkpoint_goes_from_two_to_one_and_back(first: Any, uninterrupted: Any, folder: Path):
    names = ["ewc", "l2sp", "replay", "lwf"]
    saved = load_state(folder / "two" / "epoch=0.ckpt")["callbacks"]
    assert type(saved["EWC.ewc"]["importance"]["net.0.weight"]) is torch.Tensor
    assert saved["EWC.ewc"]["importance"]["net.0.weight"].shape == (8, 4)
    # one plain process, and one that shards by itself
    plain = resumed(folder / "two" / "epoch=0.ckpt", 1, sharded=False)
    (alone := folder / "alone").mkdir()
    script = NEXT.replace("SOURCE", repr(str(folder / "two" / "epoch=0.ckpt"))).replace("TARGET", repr(str(alone)))
    (one,) = in_processes(script.replace("PROCESSES", "1"), alone, 1)
    (again := folder / "again").mkdir()
    script = NEXT.replace("SOURCE", repr(str(alone / "epoch=1.ckpt"))).replace("TARGET", repr(str(again)))
    back = in_processes(script.replace("PROCESSES", "2"), again, 2)
    for found in (first[0]["four"], plain, one, *back):
        for name in names:
            assert difference(found[name], uninterrupted[name]) < 1e-6
    assert back[0]["ewc"]["sharded"]


@pytest.mark.slow
def test_what_configure_model_may_not_do(first: Any):
    lone, group, late, _ = first[0]["errors"]
    assert "parameters net.2.weight, net.2.bias that configure_model has not sharded; expected" in lone
    assert "fully_shard([several modules]); expected units of one module" in group
    assert "a checkpoint of a finished training, not consolidated by EWC.ewc, with sharded" in late
    # a state is whole in the first process only
    assert "state version 'of the first process'" in first[1]["errors"][3]


def fake(name: str = "ModelParallelStrategy", split: int = 1, folders: bool = False) -> Any:
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: split)}
    strategy = type(name, (), {"device_mesh": mesh, "_save_distributed_checkpoint": folders})()
    return SimpleNamespace(strategy=strategy, world_size=2)


@pytest.mark.parametrize(
    ("callback", "trainer", "message"),
    [
        (EWC(1.0), fake("FSDPStrategy"), r"strategy 'FSDPStrategy' with EWC; .* HINT: use strategy='ddp', or Model"),
        (LwF(), fake("DeepSpeedStrategy"), r"strategy 'DeepSpeedStrategy' with LwF; .* HINT: use strategy='ddp', or"),
        (SI(1.0), fake(), r"'ModelParallelStrategy' with SI; expected .* HINT: use strategy='auto' or 'ddp'"),
        (Adapters("lora"), fake(), r"strategy 'ModelParallelStrategy' with Adapters; expected"),
        (EWC(1.0), fake(split=2), r"tensor_parallel_size=2 and EWC; .* HINT: set data_parallel_size=2 tensor_par"),
        (EWC(1.0, select="best"), fake(), r"select='best' with sharded parameters; expected select='last'"),
        (BestWeights("val_loss"), fake(), r"'ModelParallelStrategy' with select='best'; expected"),
        (FitCheckpoint(Path("x"), 1), fake(folders=True), r"save_distributed_checkpoint=True .* HINT: set save_distr"),
    ],
)
def test_what_is_refused(callback: Callback, trainer: Any, message: str):
    with pytest.raises(InputError, match=message):
        callback.setup(trainer, Net(), "fit")
