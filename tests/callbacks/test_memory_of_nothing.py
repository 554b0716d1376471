"""A memory of size 0 stores nothing: a method that only replays is then naive, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl import (
    AGEM,
    DER,
    EEIL,
    ERACE,
    GEM,
    LUCIR,
    BiC,
    GDumb,
    ICaRL,
    PODNet,
    Replay,
    UniformSampling,
    run_sequence,
)
from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from lightning_cl.memory.policies import POLICIES
from tests.finetuning.examples import FEW_EPOCHS, module, stream

COSINE = {"head_layer": "cosine"}
#: naive without a memory
REPLAY: dict[str, Any] = {
    "er": lambda size: Replay(size),
    "er, separate": lambda size: Replay(size, mode="separate", weights=(1.0, 1.0)),
    "er, step": lambda size: Replay(size, policy="class_balanced", fill="step"),
    "der": lambda size: DER(size),
    "derpp": lambda size: DER(size, beta=0.5),
    "der, consolidate": lambda size: DER(size, fill="consolidate"),
    "a_gem": lambda size: AGEM(size),
    "gem": lambda size: GEM(size),
}
#: and these, if their other terms are left out
DISTILLATION: dict[str, tuple[Any, dict[str, Any]]] = {
    "eeil": (lambda size: EEIL(size, lambda_=0.0), {}),
    "lucir": (lambda size: LUCIR(size, lambda_base=0.0, margin_weight=0.0, fix_old_rows=False), COSINE),
    "podnet": (lambda size: PODNet(size, lambda_c=0.0, lambda_f=0.0, loss="module"), COSINE),
}
ALL: dict[str, tuple[Any, dict[str, Any]]] = {**{name: (make, {}) for name, make in REPLAY.items()}, **DISTILLATION}


def learn(*callbacks: Any, limit_tasks: int = 2, **options: Any) -> Tensor:
    net = module(**options)
    run_sequence(
        net, stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, limit_tasks=limit_tasks
    )
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("name", ALL)
def test_without_a_memory_it_is_naive(name: str):
    make, options = ALL[name]
    callback, naive = make(0), learn(**options)
    assert torch.equal(learn(callback, **options), naive)
    assert len(callback.memory) == callback.replayed == callback.memory.nbytes == 0
    # and with one it is not
    assert not torch.equal(learn(make(20), **options), naive)


@pytest.mark.parametrize("make", [lambda: EEIL(0), lambda: LUCIR(0), lambda: PODNet(0)])
def test_distillation_goes_on_without_a_memory(make: Any):
    weights = learn(make(), **COSINE)
    assert bool(weights.isfinite().all())
    assert not torch.equal(weights, learn(**COSINE))


def test_er_ace_without_a_memory_is_its_masked_loss_alone():
    """It is not naive: the asymmetric cross-entropy stays. In the first task nothing is replayed anyway."""
    assert torch.equal(learn(ERACE(0), limit_tasks=1), learn(ERACE(20, fill="consolidate"), limit_tasks=1))
    without, callback = learn(), ERACE(0)
    assert not torch.equal(learn(callback), without)
    assert callback.replayed == 0


@pytest.mark.parametrize(
    "make",
    [lambda: ICaRL(0), lambda: BiC(0), lambda: GDumb(0), lambda: UniformSampling(0)],
    ids=["ICaRL", "BiC", "GDumb", "UniformSampling"],
)
def test_what_is_nothing_without_a_memory_is_refused(make: Any):
    with pytest.raises(InputError, match=r"memory_size=0 with \w+.*HINT: set memory_size=200"):
        make()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_of_nothing(policy: str, tmp_path: Any):
    memory = Memory(0, policy)
    options = {"tasks": 0, "features": torch.ones(3, 2), "losses": torch.ones(3)}
    memory.add((torch.ones(3, 2), torch.arange(3)), torch.arange(3), **options)
    assert (len(memory), memory.n_seen, memory.nbytes) == (0, 3, 0)
    again = Memory(0, policy)
    again.load_state_dict(memory.state_dict())
    assert (len(again), again.n_seen) == (0, 3)
    with pytest.raises(InputError, match=r"HINT: use memory_size=0"):
        Memory(5, policy).load_state_dict(memory.state_dict())
