"""A sequence learnt by two processes that share the model's parameters (FSDP2), by all four methods at once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.finetuning._sharding import shard
from tests.callbacks.distributed_examples import in_processes
from tests.resume.helpers import contents, differences
from tests.sequence.sharded_examples import Plain, learn, module, plain_stream, trainer

SCRIPT = """
import sys
from pathlib import Path
import torch
from lightning_cl._compat_fsdp2 import whole
from lightning_cl.errors import InputError
from tests.sequence.sharded_examples import Plain, learn, module, plain_stream, trainer

if __name__ == "__main__":
    folder, both, found = Path(sys.argv[1]), trainer(2), {}
    learn(folder / "whole", module(), trainer=both)
    assert learn(folder / "killed", module(), trainer=both, kill=True) is None
    learn(folder / "killed", learner := module(), trainer=both)
    with whole(learner):
        found["weights"] = {name: value.detach().clone() for name, value in learner.state_dict().items()}
    results = learn(folder / "plain", module(Plain), trainer=both, tasks=plain_stream())
    found["bytes"] = results["method_state_bytes"]
    learn(folder / "half", module(Plain), trainer=both, tasks=plain_stream(), limit_tasks=1)
    learn(folder / "first", module(Plain), trainer=both, tasks=plain_stream())
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    learn(folder / "first", module(Plain), trainer=trainer(1, sharded=False), tasks=plain_stream(), limit_tasks=1)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> Any:
    return in_processes(SCRIPT, folder, 2)


@pytest.mark.slow
def test_killed_in_the_second_task_it_ends_as_if_nothing_had_been(ranks: Any, folder: Path):
    assert differences(contents(folder / "whole"), contents(folder / "killed")) == []
    assert differences(ranks[0]["weights"], ranks[1]["weights"]) == []
    published = load_state(folder / "killed" / "model.ckpt")["state_dict"]
    assert differences(ranks[0]["weights"], published) == []
    assert type(published["head.weight"]) is torch.Tensor
    assert published["head.weight"].shape == (4, 6)


@pytest.mark.slow
def test_two_that_share_are_one_that_does_not(ranks: Any, folder: Path):
    one = trainer(1, sharded=False)
    results = learn(folder / "one", module(Plain), trainer=one, tasks=plain_stream(), batch_size=12)
    shared, alone = contents(folder / "plain"), contents(folder / "one")
    for where in ("model", "learner"):
        assert furthest(shared[where], alone[where]) < 1e-6
    matrix = json.loads((folder / "plain" / "results.json").read_text())["accuracy_matrix"]
    assert torch.tensor(matrix).allclose(torch.tensor(results["accuracy_matrix"]))
    # the parts of both processes are the whole
    for name in ("ewc", "l2sp", "lwf"):
        assert sum(rank["bytes"][name] for rank in ranks) == results["method_state_bytes"][name]


@pytest.mark.slow
def test_another_number_of_processes_goes_on(ranks: Any, folder: Path):
    one = trainer(1, sharded=False)
    assert learn(folder / "half", module(Plain), trainer=one, tasks=plain_stream())["status"] == "finished"
    for name in ("half", "first"):
        held = contents(folder / name)["learner"]["callbacks"]
        assert [state["n_tasks"] for state in held.values() if "n_tasks" in state] == [2, 2, 2, 2]
        assert held["EWC.ewc"]["importance"]["head.weight"].shape == (4, 6)


def furthest(one: Any, other: Any) -> float:
    """The largest difference of two numbers; anything else must be equal."""
    if isinstance(one, dict):
        # the count of samples replayed is each process's own
        assert one.keys() == other.keys()
        return max((furthest(one[key], other[key]) for key in one if key != "replayed"), default=0.0)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return max((furthest(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        return float((one - other).abs().max()) if one.numel() else 0.0
    if isinstance(one, float):
        return abs(one - other)
    assert differences(one, other) == []
    return 0.0


def test_separate_heads_are_refused():
    model = module(head="separate")
    model._trainer = SimpleNamespace(strategy=type("ModelParallelStrategy", (), {})())
    with pytest.raises(InputError, match=r"head='separate' with ModelParallelStrategy; .* HINT: use head='multi'"):
        shard(model)
