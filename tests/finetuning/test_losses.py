"""Which logits the training loss reads, against cross-entropy over slices made by hand."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_cl.errors import InputError
from tests.finetuning.examples import module, plain_loader, trainer

NAMES = ["a", "b", "c", "d", "e", "f"]


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([0, 0, 1, 1, 1, 0])


def learner(**options: Any) -> Any:
    """Six rows; tasks (0, 1) and (2, 3) seen; classes 4 and 5 known and not seen."""
    return module(class_names=NAMES, tasks=[[0, 1], [2, 3]], **options)


def raw(model: Any, x: Tensor) -> Tensor:
    return model.head(model.backbone(x))


def test_seen() -> None:
    model = learner(head="fixed", active_classes="seen")
    x, y, _ = batch()
    assert torch.allclose(model.training_step((x, y), 0), cross_entropy(raw(model, x)[:, :4], y))


def test_all() -> None:
    model = learner(head="fixed", active_classes="all")
    x, y, _ = batch()
    assert torch.equal(model.training_step((x, y), 0), cross_entropy(raw(model, x), y))


@pytest.mark.parametrize("given", [True, False], ids=["task ids", "from labels"])
def test_task(given: bool) -> None:
    model = learner(active_classes="task")
    x, y, task = batch()
    logits = raw(model, x)
    slices = [logits[i, 2 * t : 2 * t + 2] for i, t in enumerate(task.tolist())]
    expected = torch.stack([cross_entropy(s[None], y[i : i + 1] - 2 * task[i]) for i, s in enumerate(slices)]).mean()
    assert torch.allclose(model.training_step((x, y, task) if given else (x, y), 0), expected)


def test_hand_worked_number() -> None:
    """Logits (1, 2, 3) of which the first two are seen: log(1 + e) - 1 for class 1."""
    model = module(backbone=nn.Flatten(), class_names=["a", "b", "c"], tasks=[[0, 1]], head="fixed")
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    loss = model.training_step((torch.zeros(1, 8), torch.tensor([1])), 0)
    assert float(loss) == pytest.approx(0.313262, abs=1e-6)


@pytest.mark.parametrize(("head", "active"), [("growing", "seen"), ("multi", "task"), ("fixed", "seen")])
def test_default_by_head(head: str, active: str) -> None:
    assert module(head=head, class_names=NAMES).active_classes == active


@pytest.mark.parametrize(("head", "rows"), [("growing", slice(4, 6)), ("multi", slice(4, 6))])
def test_masked_rows_get_no_gradient(head: str, rows: slice) -> None:
    model = learner(head=head)
    model.training_step(batch(), 0).backward()
    assert torch.equal(model.head.weight.grad[rows], torch.zeros(2, 16))
    assert torch.equal(model.head.bias.grad[rows], torch.zeros(2))
    assert (model.head.weight.grad[:4].abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mask_is_safe_in_half_precision(dtype: torch.dtype) -> None:
    model = learner().to(dtype)
    x, y, task = batch()
    for part in ((x.to(dtype), y), (x.to(dtype), y, task)):
        model.zero_grad()
        loss = model.training_step(part, 0)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
        assert torch.equal(model.head.weight.grad[4:], torch.zeros(2, 16, dtype=dtype))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("active", ["seen", "task"])
def test_trains_in_half_precision(precision: str, active: str) -> None:
    model = learner(active_classes=active, head="fixed", optimizer=partial(torch.optim.Adam, lr=0.03))
    model.learn_classes(NAMES, [[0, 1, 2], [3, 4, 5]] if active == "task" else [[0, 1, 2, 3, 4, 5]])
    run = trainer(precision=precision, max_epochs=8)
    run.fit(model, plain_loader())
    run.test(model, plain_loader(), verbose=False)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert run.callback_metrics["test_accuracy"] > 0.4  # chance is 1/6


def test_multi_head_reads_one_task_at_a_time() -> None:
    model = learner(head="multi")
    x, _, task = batch()
    logits = model(x, task)
    assert torch.equal(logits[task == 1][:, 2:4], raw(model, x)[task == 1][:, 2:4])
    assert (logits[task == 1].argmax(1) >= 2).all()
    assert (logits[task == 0].argmax(1) < 2).all()
    with pytest.raises(InputError, match=r"a batch without task ids; expected \(x, y, task\)"):
        model(x)


def test_own_loss() -> None:
    model = module(class_names=NAMES, loss=lambda logits, y: logits.sum() * 0 + 7)
    x, y, _ = batch()
    assert float(model.training_step((x, y), 0)) == 7
