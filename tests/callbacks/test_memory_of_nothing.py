"""A memory of size 0 stores nothing: a method is then naive, bit for bit, but for terms with a weight of their own."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

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
from tests.callbacks.replay_examples import Classifier, Numbered, fit
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
    "er_ace": lambda size: ERACE(size),
    "er_ace, consolidate": lambda size: ERACE(size, fill="consolidate"),
    "icarl": lambda size: ICaRL(size),
    "bic": lambda size: BiC(size, validation_fraction=0.3),
    "gdumb": lambda size: GDumb(size, max_epochs=3),
    "uniform": lambda size: UniformSampling(size),
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
    assert len(callback.memory) == callback.memory.nbytes == getattr(callback, "replayed", 0) == 0
    # and with one it is not
    assert not torch.equal(learn(make(20), **options), naive)


@pytest.mark.parametrize("make", [lambda: EEIL(0), lambda: LUCIR(0), lambda: PODNet(0)])
def test_distillation_goes_on_without_a_memory(make: Any):
    weights = learn(make(), **COSINE)
    assert bool(weights.isfinite().all())
    assert not torch.equal(weights, learn(**COSINE))


@pytest.mark.parametrize("make", [lambda: ICaRL(0), lambda: BiC(0)], ids=["ICaRL", "BiC"])
def test_without_a_memory_it_predicts_like_the_module(make: Any):
    """No rule of prediction is set, no new classes are asked for, and a small share is no error."""
    net = module()
    tasks = stream()
    callback = make()
    run_sequence(net, tasks, [callback], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, limit_tasks=1)
    assert net.hparams["rule"] is None
    callback.refuse_tasks([tasks[0], tasks[0]])
    with pytest.raises(InputError):
        type(callback)(20).refuse_tasks([tasks[0], tasks[0]])


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


@pytest.mark.parametrize("make", [lambda: Replay(0), lambda: AGEM(0), lambda: DER(0, fill="consolidate")])
def test_data_that_draw_from_other_generators_than_torchs_are_drawn_alike(make: Any):
    class Augmented(Numbered):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(index)
            return x + random.random() + float(np.random.rand()), y

    def learned(*callbacks: Any) -> Tensor:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        net = Classifier()
        for task in range(2):
            fit(net, DataLoader(Augmented(task), batch_size=6, shuffle=True), *callbacks)
        return net.weights

    assert torch.equal(learned(make()), learned())
