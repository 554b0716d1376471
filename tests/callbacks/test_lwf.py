import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cl import LwF, Replay, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP
from lightning_cl.streams import domain_incremental, task_incremental
from tests.callbacks.ewc_examples import Net
from tests.callbacks.ewc_examples import data as numbered
from tests.callbacks.logit_examples import Tuples, loader, weights
from tests.callbacks.replay_examples import fit
from tests.finetuning.examples import FEW_EPOCHS, blobs, stream
from tests.finetuning.examples import module as growing_module


def data(task: int, n: int = 8, dtype: torch.dtype = torch.float32) -> Any:
    return loader(Tuples.data(task, dtype)[:n])


class Look(LwF):
    """Adds up the distillation anew at each step, from a deep copy of the module made when a task ended."""

    copies: list[Any]
    extra: list[tuple[float, float]]
    expected: Any

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        super()._consolidate(trainer, module, loader)
        clone = copy.deepcopy(module).eval()
        self.copies = [*getattr(self, "copies", []), clone]

    def _distil(self, call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
        after = super()._distil(call, batch, batch_idx, output)
        if self.teacher:
            with torch.no_grad():
                expected = self.expected(self.copies[-1], self._module, batch, float(output.detach()), self.n_tasks + 1)
            self.extra.append((float(after.detach()), float(expected)))
        return after


def kd(now: Tensor, then: Tensor, temperature: float = 2.0) -> Tensor:
    p = torch.cat([(then / temperature).softmax(1), torch.zeros(len(now), now.shape[1] - then.shape[1])], 1)
    return F.cross_entropy(now / temperature, p)


def learn(lwf: Look, expected: Any, tasks: Any = None, **options: Any) -> Any:
    """Three tasks with a module of ours; every loss against ``expected(teacher, module, batch, own loss, k)``."""
    lwf.extra, lwf.expected = [], expected
    model = growing_module(**options)
    run_sequence(model, tasks or stream(), [lwf], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert len(lwf.extra) == 2 * 2 * 4
    for got, wanted in lwf.extra:
        assert got == pytest.approx(wanted, rel=1e-4)
    naive = growing_module(**options)
    run_sequence(naive, tasks or stream(), [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert not torch.equal(weights(naive), weights(model))
    return model


def raw(module: Any, batch: Any) -> Tensor:
    return module.head(module.backbone(batch[0]))


def test_a_head_that_grows_is_distilled_over_the_classes_that_the_teacher_knew():
    def expected(then: Any, now: Any, batch: Any, own: float, k: int) -> Any:
        before = raw(then, batch)
        assert before.shape == (10, 2 * (k - 1))
        return own + 0.5 * 9 * kd(raw(now, batch)[:, : before.shape[1]], before, 3.0)

    lwf = Look(0.5, temperature=3.0, scale_by_T2=True)
    model = learn(lwf, expected)
    assert lwf.groups == [[0, 1, 2, 3, 4, 5]]
    assert lwf.nbytes == sum(p.nbytes for p in model.parameters())


def test_separate_terms_of_old_heads_summed_or_averaged():
    for head, reduction in (("multi", "sum"), ("separate", "mean")):

        def expected(then: Any, now: Any, batch: Any, own: float, k: int, reduction: str = reduction) -> Any:
            z, t = raw(now, batch), raw(then, batch)
            terms = [kd(z[:, 2 * i : 2 * i + 2], t[:, 2 * i : 2 * i + 2]) for i in range(k - 1)]
            return own + sum(terms) / (1 if reduction == "sum" else k - 1)

        lwf = Look(reduction=reduction)  # type: ignore[arg-type]
        learn(lwf, expected, tasks=task_incremental(blobs(), 3), head=head)
        assert lwf.groups == [[0, 1], [2, 3], [4, 5]]


def test_van_de_vens_weights_of_a_shared_head():
    def summed(then: Any, now: Any, batch: Any, own: float, k: int) -> Any:
        return own + (k - 1) * kd(raw(now, batch), raw(then, batch))

    shared = Look(reduction="sum")
    learn(shared, summed, tasks=domain_incremental(blobs(), 3))
    assert shared.groups == [[0, 1]]

    def by_tasks(then: Any, now: Any, batch: Any, own: float, k: int) -> Any:
        return own / k + (1 - 1 / k) * kd(raw(now, batch), raw(then, batch))

    learn(Look(weights="tasks", softmax="all"), by_tasks)


def test_softmax_over_all_trained_classes_of_a_fixed_head():
    names = [f"c{i}" for i in range(6)]

    def expected(then: Any, now: Any, batch: Any, own: float, k: int) -> Any:
        return own + kd(raw(now, batch)[:, : 2 * k], raw(then, batch)[:, : 2 * k - 2])

    learn(Look(softmax="all"), expected, head="fixed", class_names=names)

    def everything(then: Any, now: Any, batch: Any, own: float, k: int) -> Any:
        return own + kd(raw(now, batch), raw(then, batch))

    learn(Look(), everything, head="fixed", class_names=names, active_classes="all")


def test_heads_and_logits_fn_of_a_module_that_is_not_ours():
    class TwoHeads(Tuples):
        """One head at a time, by the labels."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first = int(batch[1].min()) // 2 * 2
            return F.cross_entropy(self(batch[0])[:, first : first + 2], batch[1] - first)

    lwf = LwF(heads=[[0, 1], [2, 3]], logits_fn=lambda module, batch: (module(batch[0]), batch[1]))
    module = TwoHeads()
    fit(module, data(0), lwf, max_epochs=1)
    teacher, by_hand = copy.deepcopy(module), copy.deepcopy(module)
    fit(module, data(1), lwf, max_epochs=1)
    for x, y in Tuples.data(1, torch.float32):
        loss = F.cross_entropy(by_hand(x)[:, 2:], y - 2) + kd(by_hand(x)[:, :2], teacher(x)[:, :2].detach())
        for p, gradient in zip(
            by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True
        ):
            p.data -= 0.1 * gradient
    torch.testing.assert_close(weights(module), weights(by_hand))
    wrong = LwF(heads=[[4, 5]])
    fit(Tuples(), data(0), wrong, max_epochs=1)
    with pytest.raises(InputError, match=r"classes \[4, 5\] of an old task for a teacher of 4.*HINT: give heads="):
        fit(Tuples(), data(1), wrong, max_epochs=1)


def test_masked_classes_of_a_module_that_is_not_ours_are_left_out():
    class Masked(Tuples):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.tensor([True, True, False, False]))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]).masked_fill(~self.seen, float("-inf")), batch[1])

    module, lwf = Masked(), LwF()
    fit(module, data(0), lwf, max_epochs=1)
    teacher, by_hand = copy.deepcopy(module), copy.deepcopy(module)
    module.seen.fill_(True)
    fit(module, data(1), lwf, max_epochs=1)
    for x, y in Tuples.data(1, torch.float32):
        loss = F.cross_entropy(by_hand(x), y) + kd(by_hand(x)[:, :2], teacher(x)[:, :2].detach())
        for p, gradient in zip(
            by_hand.parameters(), torch.autograd.grad(loss, list(by_hand.parameters())), strict=True
        ):
            p.data -= 0.1 * gradient
    torch.testing.assert_close(weights(module), weights(by_hand))


def test_the_teacher_answers_in_eval_mode_and_leaves_no_trace():
    class Noisy(Tuples):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.LSTM(8, 4, batch_first=True)
            )
            self.tied = self.net[0]
            self.logged: list[bool] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)[0]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.logged.append(self.training)
            return super().training_step(batch, batch_idx)

    seen: list[Tensor] = []

    class Keep(LwF):
        def _find_columns(self, logits: Tensor, before: Tensor) -> Any:
            seen.append(before)
            return super()._find_columns(logits, before)

    module, lwf = Noisy(), Keep()
    fit(module, data(0), lwf, max_epochs=1)
    teacher, keys = copy.deepcopy(module).eval(), list(module.state_dict())
    identities = [id(p) for p in module.parameters()]
    fit(module, data(1), lwf, max_epochs=1)
    torch.testing.assert_close(seen[0], teacher(Tuples.data(1, torch.float32)[0][0]))
    assert module.net[1].num_batches_tracked == 16
    assert list(module.state_dict()) == keys
    assert [id(p) for p in module.parameters()] == identities
    assert module.logged == [True] * 8 + [True, False] * 8
    assert all(part.training for part in module.modules())


def test_accumulated_micro_batches_are_one_big_batch():
    def run(n: int) -> Tensor:
        module, lwf = Tuples().double(), LwF()
        for task in range(2):
            x, y = (torch.cat(part) for part in zip(*Tuples.data(task, torch.float64), strict=True))
            batches = list(zip(x.split(len(x) // n), y.split(len(x) // n), strict=True))
            fit(module, loader(batches), lwf, max_epochs=4, accumulate_grad_batches=n)
        return weights(module)

    torch.testing.assert_close(run(4), run(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("others", [[], [Replay(9, mode="separate")], [Replay(9)]])
def test_without_weight_it_is_naive_to_the_bit(others: list[Any]):
    results = []
    for callbacks in ([], [LwF(0.0)]):
        module, more = Tuples(), copy.deepcopy(others)
        torch.manual_seed(1)
        for task in range(2):
            fit(module, data(task), *callbacks, *more, max_epochs=2)
        results.append((weights(module), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    module, lwf = Tuples(), LwF()
    torch.manual_seed(1)
    for task in range(2):
        fit(module, data(task), lwf, *copy.deepcopy(others), max_epochs=2)
        if task == 0:
            naive = Tuples()
            fit(naive, data(0), max_epochs=2)
            assert torch.equal(weights(naive), weights(module)) or others, "the first task is that of naive"


def test_a_pretrained_model_is_a_teacher(tmp_path: Path):
    module, lwf = Tuples(), LwF(1e3, state_path=tmp_path / "lwf.pt")
    lwf.consolidate(None, module)
    before = module(torch.ones(1, 3)).detach()
    later = LwF(20.0, state_path=tmp_path / "lwf.pt")
    fit(module, data(1), later, max_epochs=1)
    naive = Tuples()
    fit(naive, data(1), max_epochs=1)
    moved, far = ((m(torch.ones(1, 3)) - before).abs().max() for m in (module, naive))
    assert moved < far / 2
    assert later.n_tasks == 2


def test_a_model_that_has_lost_a_layer_is_refused():
    lwf = LwF()
    fit(Tuples(), data(0), lwf, max_epochs=1)
    other = Tuples()
    other.net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(InputError, match=r"a teacher with 'net.2.bias', 'net.2.weight', which Tuples no longer.*HINT"):
        fit(other, data(1), lwf, max_epochs=1)
    assert "training_step" not in other.__dict__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, r"alpha=-1; expected a finite number >= 0. HINT: alpha=1.0"),
        ({"temperature": 0}, r"temperature=0; expected a finite number > 0. HINT: temperature=2.0"),
        ({"weights": "k"}, r"weights='k'; expected 'sum' or 'tasks'. HINT"),
        ({"reduction": "max"}, r"reduction='max'; expected 'mean' or 'sum'. HINT"),
        ({"softmax": "new"}, r"softmax='new'; expected 'old' or 'all'. HINT"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        LwF(**options)


def test_with_other_methods_and_freezing():
    from lightning_cl import DER, EWC, FreezingSchedule

    model = growing_module(backbone=MLP((8,), hidden=(16,)))
    callbacks = [FreezingSchedule(until_epoch=1), EWC(1.0), DER(20, 0.3, 0.3), LwF()]
    results = run_sequence(model, stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert results["method_state_bytes"].keys() == {"ewc", "der", "lwf"}


@pytest.mark.parametrize("draw", [lambda: float(torch.rand(())), random.random, np.random.rand])
def test_the_teacher_sees_the_batch_as_the_step_has_augmented_it(draw: Callable[[], float]):
    class Augmenting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(draw())
            return super().training_step((batch[0] + seen[-1], batch[1]), batch_idx)

    seen: list[float] = []
    lwf = LwF()
    for task in range(2):
        seen.clear()
        fit(Augmenting(), numbered(task), lwf, max_epochs=1)
    assert len(seen) == 8
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) == 4
