"""BiC in real runs, against a plain loop; what it holds out, what it corrects, and what it refuses."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from lightning_cl import WA, BiC, Replay
from lightning_cl.callbacks._held_out import Skipping, held_out_positions, without
from lightning_cl.errors import InputError
from lightning_cl.finetuning import BiasCorrection
from lightning_cl.functional import fit_bias
from lightning_cl.streams import TaskDataModule, TaskLoader, TensorData, task_incremental
from lightning_cl.streams.selected_data import SelectedData
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
from tests.finetuning.examples import blobs, module, stream, trainer


class Keeps(Callback):
    """The held-out samples of each task, as the stage gets them, and each task's corrections."""

    def __init__(self, bic: BiC) -> None:
        self.bic, self.validation, self.rules = bic, [], []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation.append((self.bic.held["0"].clone(), self.bic.held_labels.clone()))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.rules.append({name: value.clone() for name, value in pl_module.rule.state_dict().items()})


def test_three_tasks_end_with_the_weights_and_corrections_of_a_plain_loop() -> None:
    batches, bic = Batches(), BiC(30, validation_fraction=0.4, temperature=2.0)
    keeps = Keeps(bic)
    model, results = learn(bic, batches, keeps)
    factors: list[tuple[float, float]] = [(1.0, 0.0)]

    def corrected(teacher: Any, x: Tensor, old: int) -> Tensor:
        scale, shift = factors[-1]
        z = logits_of(teacher, x).detach()[:, :old]
        return torch.cat([z[:, : old - 2], scale * z[:, old - 2 :] + shift], 1)

    def loss(model: Any, teacher: Any, x: Tensor, y: Tensor, old: int, n: int) -> Tensor:
        z = logits_of(model, x)
        classification = nn.functional.cross_entropy(z, y)
        if teacher is None:
            return classification
        target = (corrected(teacher, x, old) / 2).softmax(1)
        distillation = -(target * (z[:, :old] / 2).log_softmax(1)).sum(1).mean()
        return old / n * distillation + (1 - old / n) * classification

    def end(model: Any, task: int) -> None:
        x, y = keeps.validation[task]
        assert y.bincount(minlength=6)[2 * task : 2 * task + 2].tolist() == [12 // (2 * task + 2)] * 2
        if task == 0:
            return
        inputs, labels = validation[task]
        assert all(any(torch.equal(row, kept) for kept in inputs) for row in x)
        z = logits_of(model, inputs).detach()[:, : 2 * task + 2]
        factors.append(fit_bias(z, labels, torch.arange(2 * task + 2) >= 2 * task, ridge=1e-3))

    # which of the old samples a smaller share keeps is the memory's business: they are read from the runs themselves
    validation = {}
    for tasks in (2, 3):
        other = BiC(30, validation_fraction=0.4, temperature=2.0)
        learn(other, limit_tasks=tasks)
        validation[tasks - 1] = (other.validation.at(slice(0, 12))["0"], other.validation.labels)
    expected = plain_loop(learner(), batches.of_task, loss, end)
    assert max(distances(model, expected).values()) < 1e-5
    assert min(distances(model, learn()[0]).values()) > 1e-3
    assert isinstance(model.rule, BiasCorrection)
    torch.testing.assert_close(model.rule.scale, torch.tensor([1.0] * 4 + [factors[-1][0]] * 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(model.rule.shift, torch.tensor([0.0] * 4 + [factors[-1][1]] * 2), atol=1e-4, rtol=0)
    assert float(model.rule.shift[5]) != 0
    # training sees no correction, and the samples held out are never trained on
    assert all(bool((rule["scale"] == 1).all()) and bool((rule["shift"] == 0).all()) for rule in keeps.rules)
    trained = {tuple(x.tolist()) for task in batches.of_task for batch, _ in task for x in batch}
    assert not trained & {tuple(x.tolist()) for x, _ in keeps.validation for x in x}
    stored = {tuple(x.tolist()) for x in bic.memory.at(slice(0, len(bic.memory)))["0"]}
    assert stored <= trained
    inputs, labels = inputs_to_test()
    z = logits_of(model.eval(), inputs)
    z[:, 4:] = factors[-1][0] * z[:, 4:] + factors[-1][1]
    accuracy = float((z.argmax(1) == labels).float().mean())
    assert results["average_accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert results["per_task"][1]["seconds"].keys() >= {"train", "fit_bias", "consolidate", "evaluate"}


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}]
)
def test_accumulation_clipping_and_half_precision(options: dict[str, Any]) -> None:
    run = partial(Trainer, max_epochs=4, accelerator="cpu", enable_progress_bar=False, **options)
    model, results = learn(BiC(60), WA(distillation=True), trainer=run)
    assert results["average_accuracy"] > 0.3
    assert model.rule.shift.isfinite().all()


def test_every_class_is_held_out_alike_and_the_sizes_add_up() -> None:
    bic = BiC(60, max_per_class=8, validation_fraction=0.25)
    learn(bic)
    assert bic.memory.labels.bincount().tolist() == [6] * 6
    assert bic.validation.labels.bincount().tolist() == [2] * 6
    assert bic.classes == [0, 1, 2, 3, 4, 5]
    assert bic.nbytes > bic.memory.nbytes + bic.validation.nbytes


def test_the_model_of_a_run_reloads_and_predicts_names_by_the_rule(tmp_path: Path) -> None:
    model, _ = learn(BiC(30, validation_fraction=0.4), run_dir=tmp_path)
    inputs, _ = inputs_to_test()
    corrected = logits_of(model.eval(), inputs) * model.rule.scale + model.rule.shift
    assert reloaded_names(tmp_path, inputs) == [f"c{i}" for i in corrected.argmax(1).tolist()]


def test_on_a_trainer_of_your_own_with_plain_loaders() -> None:
    data = blobs().train
    x, y = data.batch(torch.arange(len(data)))[:2]
    model, bic = (
        learner(class_names=[f"c{i}" for i in range(6)], active_classes="all"),
        BiC(30, validation_fraction=0.4),
    )
    batches = Batches()
    for t in range(3):
        chosen = (y // 2 == t).nonzero().flatten()
        loader = DataLoader(TensorDataset(x[chosen], y[chosen]), 8, shuffle=True)
        trainer(callbacks=[bic, batches]).fit(model, loader)
        assert loader.dataset.tensors[0].shape[0] == 40  # type: ignore[attr-defined]
    assert bic.n_tasks == 3
    assert bic.memory.labels.bincount().tolist() == [3] * 6
    assert bic.validation.labels.bincount().tolist() == [2] * 6
    assert float(model.rule.shift[4]) != 0
    assert model.rule.scale[:4].tolist() == [1.0] * 4
    trained = {tuple(row.tolist()) for task in batches.of_task for batch, _ in task for row in batch}
    assert not trained & {tuple(row.tolist()) for row in bic.validation.at(slice(0, 12))["0"]}
    assert len({tuple(row.tolist()) for batch, _ in batches.of_task[0] for row in batch}) == 40 - 2 * 6


def test_beside_replay_and_a_fixed_head() -> None:
    alone = learn(BiC(60))[0]
    beside, results = learn(BiC(60), Replay(20))
    assert not same_weights(alone, beside)
    assert results["method_state_bytes"].keys() == {"bic", "replay"}
    options = {"head": "fixed", "class_names": [f"c{i}" for i in range(6)], "active_classes": "all"}
    model, results = learn(BiC(60, validation_fraction=0.4), model=learner(**options))
    assert results["average_accuracy"] > 0.5
    assert not model.head._forward_hooks


def test_what_it_refuses() -> None:
    def refused(bic: BiC, model: Any, loader: Any = None) -> str:
        data: Any = {"datamodule": TaskDataModule(stream()[0], batch_size=8)}
        with pytest.raises(InputError) as error:
            trainer(callbacks=[bic]).fit(model, **({"train_dataloaders": loader} if loader is not None else data))
        return str(error.value)

    with pytest.raises(InputError, match=r"BiC with a head that is read one task at a time; .*HINT: .*take er"):
        learn(BiC(60), model=learner(head="multi"), tasks=stream(task_incremental))
    with pytest.raises(InputError, match=r"1 samples held out by BiC for 6 classes; .*HINT: set a larger memory_size"):
        learn(BiC(10))
    data = blobs().train
    dataset = TensorDataset(*data.batch(torch.arange(len(data)))[:2])
    weighted = DataLoader(dataset, 8, sampler=WeightedRandomSampler([1.0] * len(dataset), 16))
    known = learner(class_names=[f"c{i}" for i in range(6)])
    message = refused(BiC(60, validation_fraction=0.5), known, weighted)
    assert "a train_dataloader of type DataLoader with a WeightedRandomSampler" in message
    assert "HINT: leave the sampler to DataLoader" in message
    bic = BiC(60, validation_fraction=0.5)
    trainer(callbacks=[bic]).fit(known, DataLoader(dataset, 8))
    with pytest.raises(InputError, match="a task without new classes for BiC"):
        trainer(callbacks=[bic]).fit(known, DataLoader(dataset, 8))
    for options, text in (
        ({"validation_fraction": 1}, "validation_fraction=1"),
        ({"temperature": -1.0}, r"temperature=-1\.0"),
        ({"ridge": 0}, "ridge=0"),
        ({"memory_size": 3}, "memory_size=3 with validation_fraction=0.1"),
    ):
        with pytest.raises(InputError, match=text):
            BiC(**{"memory_size": 30, **options})
    assert "BiC on" in refused(BiC(30), _without_head())


def test_a_task_consolidated_after_its_fit_loses_the_held_out_samples_only() -> None:
    bic, model = BiC(60, validation_fraction=0.4, consolidate="manual"), learner()
    for number, task in enumerate(stream()):
        before = bic.memory.n_seen
        one = trainer(callbacks=[bic])
        one.fit(model, datamodule=TaskDataModule(task, batch_size=8))
        held = len(bic.positions)
        assert held > 0
        bic.consolidate(one, model)
        assert (bic.n_tasks, bic.memory.n_seen - before) == (number + 1, len(task.train) - held)


def test_a_class_of_one_sample_is_not_held_out() -> None:
    bic, model = BiC(60), learner()
    for task in stream():
        y = task.train.batch(torch.arange(len(task.train)))[1]
        first = torch.tensor([int((y == c).nonzero()[0]) for c in y.unique()])
        few = replace(task, train=SelectedData(task.train, first))
        trainer(callbacks=[bic]).fit(model, datamodule=TaskDataModule(few, batch_size=8))
    assert (len(bic.memory), len(bic.validation)) == (6, 0)


def _without_head() -> Any:
    model = module(class_names=["c0", "c1"])
    model.head = None  # type: ignore[assignment]
    return model


def test_positions_and_loaders_without_them() -> None:
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 2])
    positions = held_out_positions(labels, [0, 1, 2], 2, torch.Generator().manual_seed(0))
    # of three samples one, of one none
    assert labels[positions].bincount(minlength=3).tolist() == [1, 1, 0]
    data = TensorData(torch.arange(7.0)[:, None], labels)
    for loader in (TaskLoader(data, 2, shuffle=True), DataLoader(TensorDataset(data.x, labels), 2, shuffle=True)):
        served = torch.cat([x for x, _ in without(loader, positions, "it")]).flatten()
        assert sorted(served.tolist()) == [i for i in range(7) if i not in positions.tolist()]
    batches = [(data.x[i : i + 3], labels[i : i + 3]) for i in (0, 3, 6)]
    kept = torch.cat([x for x, _ in Skipping(batches, torch.tensor([0, 4, 6]))]).flatten()
    assert kept.tolist() == [1, 2, 3, 5]
