"""iCaRL in real runs, against a plain loop; its exemplars, its means, and what it refuses."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import EWC, ICaRL, Replay
from lightning_cl.errors import InputError
from lightning_cl.finetuning import NearestMean
from lightning_cl.functional import herding_order
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
from tests.finetuning.examples import blobs, module, stream, trainer


def oracle_loss(model: Any, teacher: Any, x: Tensor, y: Tensor, old: int, n: int, temperature: float = 2.0) -> Tensor:
    z = logits_of(model, x)
    total = torch.zeros(())
    for c in range(n):
        target = (y == c).float() if c >= old else (logits_of(teacher, x)[:, c].detach() / temperature).sigmoid()
        q = z[:, c].sigmoid()
        total = total - (target * q.log() + (1 - target) * (1 - q).log()).mean()
    return total


@pytest.mark.parametrize("batch_size", ["union", 5, None])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(batch_size: Any) -> None:
    batches = Batches()
    model, _ = learn(ICaRL(30, batch_size=batch_size, temperature=2.0), batches)
    expected = plain_loop(learner(), batches.of_task, oracle_loss)
    assert max(distances(model, expected).values()) < 1e-5
    assert min(distances(model, learn()[0]).values()) > 1e-3
    assert min(distances(model, learn(Replay(30))[0]).values()) > 1e-3
    added = sum(len(y) for _, y in batches.of_task[1]) - 2 * 40
    # 30 exemplars beside 40 samples, twice; 5 or 8 in each of 10 batches
    assert added == {"union": 60, 5: 50, None: 80}[batch_size]


def test_exemplars_are_the_herds_of_each_task_and_the_rule_their_means() -> None:
    tasks, icarl = stream(), ICaRL(30, max_per_class=6)
    model, results = learn(icarl, tasks=tasks, limit_tasks=2)
    held = icarl.memory.at(slice(0, len(icarl.memory)))
    assert icarl.memory.labels.bincount().tolist() == [6, 6, 6, 6]
    x, y = tasks[1].train.batch(torch.arange(40))[:2]
    model.eval()
    for c in (2, 3):
        features = normalize(model.backbone(x[y == c]).detach(), dim=1)
        chosen = x[y == c][herding_order(features, 6)]
        assert torch.equal(held["0"][icarl.memory.labels == c], chosen)
    assert isinstance(model.rule, NearestMean)
    for c in range(4):
        mean = normalize(model.backbone(held["0"][icarl.memory.labels == c]), dim=1).mean(0)
        torch.testing.assert_close(model.rule.means[c], mean / mean.norm())
    inputs, labels = inputs_to_test()
    known = labels < 4
    distance = torch.cdist(normalize(model.backbone(inputs[known]), dim=1), model.rule.means)
    accuracy = (distance.argmin(1) == labels[known]).float().mean()
    assert results["average_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)


def test_a_smaller_share_drops_the_last_exemplars() -> None:
    icarl = ICaRL(25)
    learn(icarl, limit_tasks=1)
    first = icarl.memory.at(slice(0, len(icarl.memory)))["0"]
    labels = icarl.memory.labels
    assert labels.bincount().tolist() == [12, 12]
    learned = ICaRL(25)
    learn(learned)
    assert learned.memory.labels.bincount().tolist() == [4] * 6
    now = learned.memory.at(slice(0, 24))["0"]
    for c in (0, 1):
        assert torch.equal(now[learned.memory.labels == c], first[labels == c][:4])
    assert learned.classes == [0, 1, 2, 3, 4, 5]
    assert learned.nbytes > 24 * 8 * 4 + sum(p.nbytes for p in learner(class_names=list("abcdef")).parameters())


def test_the_model_of_a_run_reloads_and_predicts_names_by_the_rule(tmp_path: Path) -> None:
    model, _ = learn(ICaRL(30), run_dir=tmp_path)
    inputs, _ = inputs_to_test()
    model.eval()
    names = reloaded_names(tmp_path, inputs)
    nearest = torch.cdist(normalize(model.backbone(inputs), dim=1), model.rule.means).argmin(1)
    assert names == [f"c{i}" for i in nearest.tolist()]
    assert names != [f"c{i}" for i in logits_of(model, inputs).argmax(1).tolist()]


@pytest.mark.parametrize("head", ["multi", "separate", "fixed"])
def test_other_heads(head: str) -> None:
    tasks = stream() if head == "fixed" else stream(task_incremental)
    options = {"class_names": [f"c{i}" for i in range(6)], "active_classes": "all"} if head == "fixed" else {}
    icarl = ICaRL(60)
    model, results = learn(icarl, model=learner(head=head, **options), tasks=tasks)
    assert results["average_accuracy"] > 0.7
    assert icarl.memory.labels.bincount().tolist() == [10] * 6
    assert model.rule.covers(torch.ones(6, dtype=torch.bool))
    assert not same_weights(model, learn(model=learner(head=head, **options), tasks=tasks)[0])


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}]
)
def test_accumulation_clipping_and_half_precision(options: dict[str, Any]) -> None:
    run = partial(Trainer, max_epochs=4, accelerator="cpu", enable_progress_bar=False, **options)
    _, results = learn(ICaRL(60), trainer=run)
    assert results["average_accuracy"] > 0.5


def test_beside_ewc_and_replay() -> None:
    alone = learn(ICaRL(30))[0]
    model, results = learn(ICaRL(30), EWC(10.0))
    assert not same_weights(alone, model)
    # a loss that another method adds is added to iCaRL's, wherever it stands in the list
    separate = [
        learn(*pair)[0]
        for pair in (
            [ICaRL(30), Replay(20, mode="separate", batch_size=8)],
            [Replay(20, mode="separate", batch_size=8), ICaRL(30)],
        )
    ]
    assert same_weights(*separate)
    assert not same_weights(alone, separate[0])
    assert results["method_state_bytes"].keys() == {"icarl", "ewc"}


def test_on_a_trainer_of_your_own_with_plain_loaders() -> None:
    data = blobs().train
    x, y = data.batch(torch.arange(len(data)))[:2]
    model, icarl = learner(class_names=[f"c{i}" for i in range(6)], active_classes="all"), ICaRL(30)
    for t in range(3):
        chosen = (y // 2 == t).nonzero().flatten()
        trainer(callbacks=[icarl]).fit(model, DataLoader(TensorDataset(x[chosen], y[chosen]), 8, shuffle=True))
    assert icarl.n_tasks == 3
    assert icarl.memory.labels.bincount().tolist() == [5] * 6
    inputs, labels = inputs_to_test()
    accuracy = (model.eval()(inputs).argmax(1) == labels).float().mean()
    assert accuracy > 0.5


class Foreign(LightningModule):
    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.net = torch.nn.Linear(8, 6)
        for name, part in parts.items():
            setattr(self, name, part)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def refused(icarl: ICaRL, model: Any, tasks: Any = None) -> str:
    data = TaskDataModule((tasks or stream())[0], batch_size=8)
    with pytest.raises(InputError) as error:
        trainer(callbacks=[icarl]).fit(model, datamodule=data)
    return str(error.value)


def test_what_it_refuses() -> None:
    message = refused(ICaRL(30), Foreign(backbone=torch.nn.Identity()))
    assert "ICaRL on Foreign, which has no head, set_rule; expected a module with logits = head(backbone(x))" in message
    assert "HINT: train a lightning_cl.FineTuningModule" in message
    assert "memory_size=1 of ICaRL for 2 classes; expected an exemplar for every class" in refused(ICaRL(1), module())
    manual = module()
    manual.automatic_optimization = False
    assert "automatic_optimization=False" in refused(ICaRL(30), manual)
    ruled = module(class_names=["c0", "c1"])
    ruled.set_rule("bias_correction")
    assert "rule 'nearest_mean' for a module that predicts by 'bias_correction'" in refused(ICaRL(30), ruled)
    tasks = data_incremental(blobs(), 2)
    with pytest.raises(InputError, match=r"'task 1' without new classes for ICaRL; .*HINT: .*take er, derpp"):
        learn(ICaRL(30), tasks=tasks)
    for options, text in (
        ({"max_per_class": 0}, "max_per_class=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"batch_size": "half"}, "batch_size='half'"),
    ):
        with pytest.raises(InputError, match=text):
            ICaRL(30, **options)


def test_a_loader_without_a_length_needs_a_number() -> None:
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            yield from ((torch.zeros(8), 0) for _ in range(16))

    run = trainer(callbacks=[ICaRL(30)], max_steps=2, max_epochs=-1)
    with pytest.raises(
        InputError, match=r"batch_size='union' of ICaRL with a loader of unknown length; .*HINT: set batch_size"
    ):
        run.fit(learner(class_names=["a", "b"]), DataLoader(Endless(), 8))


def test_validation_in_a_fit_goes_by_the_logits_and_the_module_is_left_as_it_was() -> None:
    tasks = stream(validation_fraction=0.2)
    icarl, model = ICaRL(30), learner()
    _, results = learn(icarl, model=model, tasks=tasks, select="best")
    assert results["status"] == "finished"
    assert not model.head._forward_hooks
    assert "training_step" not in model.__dict__
