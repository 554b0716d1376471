"""A-GEM inside real Trainers, against a plain loop on the batches that it has drawn."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_cl import AGEM, EWC
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.path_examples import Double
from tests.callbacks.projection_examples import agem, plain_loop, trained
from tests.callbacks.replay_examples import READ, Classifier, Numbers, fit


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(optimizer: str, clip: float | None, accumulate: int):
    callback = AGEM(12, batch_size=5)
    module = trained(callback, optimizer=optimizer, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    assert [len(calls) for calls in module.passed] == [1] * 8 + [2] * 16
    expected = plain_loop(
        module.passed, agem, optimizer=optimizer, accumulate=accumulate, clip=clip, steps_per_task=8 // accumulate
    )
    torch.testing.assert_close(module.weights, expected, rtol=0, atol=1e-10)
    assert 0 < callback.projected < 16 // accumulate
    naive = trained(None, optimizer=optimizer, accumulate_grad_batches=accumulate)
    assert float((module.weights - naive.weights).abs().max()) > 1e-3


def test_the_first_task_is_plain_training_and_so_is_what_violates_nothing():
    naive = trained(None, tasks=1)
    assert torch.equal(trained(AGEM(12), tasks=1).weights, naive.weights)

    class Never(AGEM):
        def _project(self, gradient: Any, references: Any) -> Any:
            found = super()._project(gradient, [[-g for g in gradient]])
            assert found[0] is not gradient[0]
            return super()._project(gradient, [gradient])

    callback = Never(12)
    assert torch.equal(trained(callback).weights, trained(None).weights)
    assert callback.projected == 0
    assert callback.replayed > 0


def test_draws_are_different_samples_of_earlier_tasks():
    callback = AGEM(12, batch_size=100)
    module = trained(callback, tasks=3, epochs=1)
    stored = {tuple(x.tolist()) for task in range(2) for x, _ in data(task, dtype=torch.float64).dataset}
    for calls in module.passed[8:]:
        x = calls[1][0]
        # as many as there are, without repetition
        assert len(x) == len({tuple(row.tolist()) for row in x}) == 12
        assert {tuple(row.tolist()) for row in x} <= stored
    assert callback.memory.labels is not None
    assert callback.memory.labels.bincount().tolist() == [4, 4, 4]
    capped = AGEM(12, max_per_task=3)
    trained(capped, tasks=2, epochs=1)
    assert capped.memory.labels.bincount().tolist() == [3, 3]


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_other_policies_and_filling_step_by_step(policy: Any):
    callback = AGEM(9, policy=policy, fill="step")
    module = trained(callback, tasks=2, epochs=1)
    assert [len(calls) for calls in module.passed] == [1] + [2] * 7
    expected = plain_loop(module.passed, agem, steps_per_task=4)
    torch.testing.assert_close(module.weights, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("structure", READ)
def test_batches_of_any_structure_of_modules_that_are_not_ours(structure: Any):
    callback, module, naive = AGEM(8), Classifier(structure), Classifier(structure)
    for task in range(2):
        fit(module, Numbers(task, structure), callback)
        fit(naive, Numbers(task, structure))
    assert not torch.equal(module.weights, naive.weights)
    assert callback.projected > 0


class TwoHeads(Double):
    """One head for each task, none of which has a gradient in the other's."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2)).double()
        self.task = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y, *task = batch
        loss = 0
        for t in range(2):
            mine = task[0] == t
            if bool(mine.any()):
                loss = loss + nn.functional.cross_entropy(self.heads[t](self.net[:2](x[mine])), y[mine])
        return loss


def test_parameters_without_a_gradient_count_as_zeros_and_are_projected():
    def with_task(task: int) -> Any:
        x, y = data(task, dtype=torch.float64).dataset.tensors
        tasks = torch.full_like(y, task)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y, tasks), batch_size=6)

    callback, module, before, after = AGEM(12), TwoHeads(), Unfilled(), Unfilled()
    fit(module, with_task(0), callback, max_epochs=1)
    fit(module, with_task(1), before, callback, after, max_epochs=4)
    assert all(seen["heads.0.weight"] is None for seen in before.seen)
    projected = [seen for seen in after.seen if seen["heads.0.weight"] is not None]
    assert len(projected) == callback.projected > 0
    for seen, given in zip(after.seen, before.seen, strict=True):
        if seen["heads.0.weight"] is not None:
            # the whole vector, zeros included, is at a right angle to its own change
            names = [name for name, value in seen.items() if value is not None]
            change = torch.cat([(seen[n] - (0 if given[n] is None else given[n])).flatten() for n in names])
            result = torch.cat([seen[n].flatten() for n in names])
            assert abs(float(change @ result)) < 1e-12
    assert all(seen["net.2.weight"] is None for seen in after.seen)  # neither loss reads it


class Unfilled(Gradients):
    """Gradients by name; None where there is none."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.named_parameters()
        self.seen.append({n: None if p.grad is None else p.grad.detach().clone() for n, p in named})


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_penalty_that_stands_before_is_projected_and_one_behind_is_not(order: str):
    ewc, callback = EWC(30.0), AGEM(12)
    pair = [ewc, callback] if order == "before" else [callback, ewc]
    module = Double()
    fit(module, data(0, dtype=torch.float64), *pair, max_epochs=1)
    seen = [Gradients() for _ in range(3)]
    fit(module, data(1, dtype=torch.float64), seen[0], pair[0], seen[1], pair[1], seen[2], max_epochs=1)
    penalties = 0
    for loss, middle, end in zip(*(each.seen for each in seen), strict=True):
        one, two = ([b - a for a, b in zip(x, y, strict=True)] for x, y in ((loss, middle), (middle, end)))
        change, result = (two, end) if order == "before" else (one, middle)
        # a projection ends at a right angle to its change
        dot = sum(float((c * r).sum()) for c, r in zip(change, result, strict=True))
        assert abs(dot) < 1e-12
        penalties += any(bool(c.any()) for c in (one if order == "before" else two))
    assert penalties > 0
    assert callback.projected > 0


def test_bf16_mixed_precision_projects_as_full_precision_does():
    weights = {}
    for precision in ("32-true", "bf16-mixed"):
        callback, module = AGEM(12), Net()
        trained(callback, module=module, tasks=2, epochs=3, precision=precision)
        weights[precision] = module.weights
        assert callback.projected > 0
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in module.parameters())
    torch.testing.assert_close(weights["bf16-mixed"], weights["32-true"], rtol=0, atol=0.02)


@pytest.mark.parametrize("scale", [8.0, 2.0**40])
def test_a_gradient_scaler_changes_no_projection(scale: float):
    found = []
    for plugins in ([], [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))]):
        callback, module = AGEM(12), Net(lr=0.05)
        trained(callback, module=module, tasks=2, epochs=12, plugins=plugins)
        found.append(module.weights)
        assert callback.projected > 0
    # with the larger one the first steps are skipped until the scale has come down
    assert bool(found[1].isfinite().all())
    if scale == 8.0:
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=0.02)


def test_logging_and_metrics_know_nothing_of_the_memory():
    class Logging(Double):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("n", float(len(batch[1])), on_step=False, on_epoch=True, reduce_fx="sum")
            return loss

    module, callback = Logging(), AGEM(12, batch_size=5)
    for task in range(2):
        trainer = fit(module, data(task, dtype=torch.float64), callback, max_epochs=1)
        assert float(trainer.callback_metrics["n"]) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_size": -1}, r"memory_size=-1; expected an integer >= 0.*"),
        ({"memory_size": 5, "batch_size": 0}, r"batch_size=0; expected an integer >= 1, or None"),
        ({"memory_size": 5, "fill": "never"}, r"fill='never'"),
        ({"memory_size": 5, "policy": "best"}, r"policy='best'"),
        (
            {"memory_size": 5, "max_per_task": 0},
            r"max_per_task=0 with policy='task_balanced'; expected an integer >= 1",
        ),
        ({"memory_size": 5, "policy": "reservoir", "max_per_task": 2}, r"max_per_task=2 with policy='reservoir'"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        AGEM(**arguments)


def test_manual_optimization_is_refused():
    with pytest.raises(InputError, match=r"AGEM on Net with automatic_optimization=False.*HINT: return the loss"):
        fit(Net(manual=True), data(0), AGEM(5))


def test_a_fused_optimizer_with_a_scaler_is_refused():
    class Fused(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, fused=True)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(InputError, match=r"a fused optimizer with 16-mixed precision.*HINT: set fused=False"):
        fit(Fused(), data(0), AGEM(5), plugins=[plugin])
