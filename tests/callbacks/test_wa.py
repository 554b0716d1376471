"""WA in real runs: the rescaling by hand, distillation against a plain loop, beside others, and what it refuses."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import EWC, WA, Replay
from lightning_cl.errors import InputError
from lightning_cl.streams import TaskDataModule, data_incremental, task_incremental
from tests.callbacks.classifier_examples import (
    Batches,
    distances,
    inputs_to_test,
    learn,
    learner,
    logits_of,
    plain_loop,
    reloaded_names,
    same_weights,
)
from tests.finetuning.examples import blobs, stream, trainer


class AtEnd(Callback):
    """The head when each training ended."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(pl_module.head.weight.detach().clone())


def align(model: Any, task: int) -> None:
    if task:
        with torch.no_grad():
            lengths = [float(row.norm()) for row in model.head.weight]
            old, new = lengths[: 2 * task], lengths[2 * task :]
            model.head.weight[2 * task :] *= (sum(old) / len(old)) / (sum(new) / len(new))


def test_the_rows_of_a_learnt_task_are_as_long_as_the_old_ones() -> None:
    ends = AtEnd()
    model, results = learn(ends, WA())
    last = ends.weights[-1]
    lengths = last.norm(dim=1)
    factor = float(lengths[:4].mean() / lengths[4:].mean())
    assert abs(factor - 1) > 0.01
    assert torch.equal(model.head.weight[:4], last[:4])
    torch.testing.assert_close(model.head.weight[4:], last[4:] * factor)
    assert results["per_task"][1]["seconds"].keys() >= {"align"}
    plain = learn(ends := AtEnd())[0]
    # the first task is untouched, and the rescaling is all that there is
    assert torch.equal(learn(WA(), limit_tasks=1)[0].head.weight, learn(limit_tasks=1)[0].head.weight)
    assert torch.equal(plain.head.weight, ends.weights[-1])
    assert not same_weights(plain, model)


@pytest.mark.parametrize("distillation", [False, True])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(distillation: bool) -> None:
    def loss(model: Any, teacher: Any, x: Tensor, y: Tensor, old: int, n: int) -> Tensor:
        z = logits_of(model, x)
        classification = nn.functional.cross_entropy(z, y)
        if teacher is None or not distillation:
            return classification
        target = (logits_of(teacher, x).detach()[:, :old] / 2).softmax(1)
        return old / n * -(target * (z[:, :old] / 2).log_softmax(1)).sum(1).mean() + (1 - old / n) * classification

    batches = Batches()
    model, _ = learn(Replay(20, batch_size=4), WA(distillation=distillation), batches)
    expected = plain_loop(learner(), batches.of_task, loss, align)
    assert max(distances(model, expected).values()) < 1e-5


def test_clipping_keeps_the_head_at_or_above_zero() -> None:
    model, _ = learn(WA(clip_weights=True))
    assert float(model.head.weight.min()) == 0
    assert not same_weights(model, learn(WA())[0])


def test_others_consolidate_the_aligned_model() -> None:
    for callbacks in ([EWC(1.0), WA()], [WA(), EWC(1.0)]):
        model, _ = learn(*callbacks)
        ewc = next(c for c in callbacks if isinstance(c, EWC))
        assert torch.equal(ewc.anchor["head.weight"][4:], model.head.weight[4:])
        again, _ = learn(Replay(20, mode="separate"), *[WA(distillation=True)])
        assert not same_weights(model, again)


def test_on_a_trainer_of_your_own() -> None:
    tasks, wa, model = stream(), WA(), learner()
    for task in tasks[:2]:
        trainer(callbacks=[wa]).fit(model, datamodule=TaskDataModule(task, batch_size=8))
    assert torch.equal(model.head.weight, learn(WA(), limit_tasks=2)[0].head.weight)
    assert wa.n_tasks == 2


def test_the_model_of_a_run_reloads(tmp_path: Any) -> None:
    model, _ = learn(Replay(20), WA(distillation=True), run_dir=tmp_path)
    inputs, _ = inputs_to_test()
    assert reloaded_names(tmp_path, inputs) == [f"c{i}" for i in model.eval()(inputs).argmax(1).tolist()]
    assert not model.head._forward_hooks
    assert "training_step" not in model.__dict__


def test_what_it_refuses() -> None:
    for head in ("multi", "separate"):
        with pytest.raises(InputError, match=r"WA with a head that is read one task at a time; .*HINT: .*take er"):
            learn(WA(), model=learner(head=head), tasks=stream(task_incremental))
    with pytest.raises(InputError, match=r"'task 1' without new classes for WA; .*HINT: set stream.scenario="):
        learn(WA(), tasks=data_incremental(blobs(), 2))
    with pytest.raises(InputError, match="temperature=0"):
        WA(temperature=0)
    manual = learner()
    manual.automatic_optimization = False
    with pytest.raises(InputError, match=r"WA on FineTuningModule with automatic_optimization=False"):
        learn(WA(distillation=True), model=manual)
