import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import F1Score
from torchmetrics.functional import f1_score

from lightning_cl import run_sequence
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP, FineTuningModule
from lightning_cl.streams import TaskDataModule, domain_incremental, permutation, task_incremental
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, plain_loader, stream, trainer

RELOAD = """
import sys, torch
from torch.utils.data import DataLoader
from lightning.pytorch import Trainer
from lightning_cl import FineTuningModule
model = FineTuningModule.load_from_checkpoint(sys.argv[1], weights_only=True)
x = torch.load(sys.argv[2], weights_only=True)
trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
batches = trainer.predict(model, DataLoader(x, batch_size=7))
print(",".join(name for batch in batches for name in batch))
"""


def learn(model: Any, tasks: Any, **options: Any) -> dict[str, Any]:
    return run_sequence(model, tasks, trainer=FEW_EPOCHS, progress_bar=False, **options)


def test_grown_model_reloads_from_its_file_alone_and_predicts_names(tmp_path: Path) -> None:
    model, tasks = module(), stream()
    learn(model, tasks, run_dir=tmp_path / "run")
    x = blobs().test.batch(torch.arange(30))[0]
    torch.save(x, tmp_path / "x.pt")
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path / "run" / "model.ckpt"), str(tmp_path / "x.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    expected = [f"c{i}" for i in model.eval()(x).argmax(1).tolist()]
    assert done.stdout.strip().splitlines()[-1].split(",") == expected
    assert len(set(expected)) > 1


def test_reloaded_model_goes_on_growing(tmp_path: Path) -> None:
    model, tasks = module(active_classes="seen"), stream()
    learn(model, tasks, run_dir=tmp_path, limit_tasks=2)
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt")
    assert again.class_names == ["c0", "c1", "c2", "c3"]
    assert again.tasks == [[0, 1], [2, 3]]
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    trainer(max_epochs=0).fit(again, datamodule=TaskDataModule(tasks[2]))
    assert again.class_names == [f"c{i}" for i in range(6)]
    assert again.tasks == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(again.head.weight[:4], model.head.weight)


def test_multi_head_reloads_and_predicts_within_a_task(tmp_path: Path) -> None:
    tasks = stream(task_incremental)
    learn(module(head="multi"), tasks, run_dir=tmp_path)
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt")
    x, y, task = tasks[1].test.batch(torch.arange(10))
    assert set(again.predict_step((x, y, task))) <= {"c2", "c3"}


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def test_own_backbone_is_measured_and_given_again_to_reload(tmp_path: Path) -> None:
    model = module(backbone=Own())
    assert model.head.in_features == 5
    learn(model, stream(), run_dir=tmp_path)
    path = tmp_path / "model.ckpt"
    with pytest.raises(InputError, match=r"backbone=None; expected a module; .* HINT: .*\(path, backbone="):
        FineTuningModule.load_from_checkpoint(path)
    again = FineTuningModule.load_from_checkpoint(path, backbone=Own())
    assert torch.equal(again.backbone.layer.weight, model.backbone.layer.weight)
    assert again.class_names == model.class_names


def test_a_checkpoint_names_only_our_backbones() -> None:
    with pytest.raises(InputError, match=r"backbone 'os\.system' in the checkpoint; expected one of mlp, torchvision"):
        module(backbone={"name": "os.system", "_target_": "os.system"})


def test_checkpoint_holds_plain_values_only(tmp_path: Path) -> None:
    learn(module(metric=partial(F1Score, task="multiclass"), metric_name="f1"), stream(), run_dir=tmp_path, metric="f1")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {
        "backbone.layers.1.weight",
        "backbone.layers.1.bias",
        "head.weight",
        "head.bias",
    }


def test_own_metric_is_read_by_name(tmp_path: Path) -> None:
    tasks = stream()
    model = module(metric=partial(F1Score, task="multiclass", average="macro"), metric_name="f1")
    results = learn(model, tasks, run_dir=tmp_path, metric="f1")
    assert results["metric"]["name"] == "f1"
    x, y = tasks[0].test.batch(torch.arange(len(tasks[0].test)))
    expected = f1_score(model.eval()(x), y, task="multiclass", num_classes=6, average="macro")
    assert results["accuracy_matrix"][-1][0] == pytest.approx(float(expected))
    with pytest.raises(InputError, match="expected a metric 'test_accuracy"):
        learn(module(metric=partial(F1Score, task="multiclass"), metric_name="f1"), tasks)


def test_without_our_streams() -> None:
    model = module(class_names=[f"c{i}" for i in range(6)], optimizer=partial(torch.optim.Adam, lr=0.03))
    run = trainer(max_epochs=10)
    run.fit(model, plain_loader(shuffle=True), plain_loader())
    assert {"val_loss", "val_accuracy"} <= run.callback_metrics.keys()
    validated = run.validate(model, plain_loader(), verbose=False)[0]
    tested = run.test(model, plain_loader(), verbose=False)[0]
    assert validated["val_accuracy"] == tested["test_accuracy"] > 0.6
    names = [name for batch in run.predict(model, plain_loader()) for name in batch]
    data = blobs().train
    right = sum(int(name[1:]) == y for name, y in zip(names, data.targets.tolist(), strict=True))
    assert right / len(data) == pytest.approx(tested["test_accuracy"])
    assert set(names) <= set(model.class_names)


def test_several_plain_loaders_have_metrics_of_their_own() -> None:
    model = module(class_names=[f"c{i}" for i in range(6)])
    x, y = blobs().test.batch(torch.arange(60))
    wrong = DataLoader(list(zip(x, (y + 1) % 6, strict=True)), batch_size=7)
    right = DataLoader(list(zip(x, y, strict=True)), batch_size=7)
    run = trainer(max_epochs=10)
    run.fit(model, right)
    first, second = run.test(model, [right, wrong], verbose=False)
    chosen = model.eval()(x).argmax(1)
    assert first["test_accuracy/dataloader_idx_0"] == pytest.approx(float((chosen == y).float().mean()))
    assert second["test_accuracy/dataloader_idx_1"] == pytest.approx(float((chosen == (y + 1) % 6).float().mean()))


def test_datamodules_of_other_kinds_may_have_a_task_of_their_own() -> None:
    model = module(class_names=["a"])
    model._trainer = SimpleNamespace(datamodule=SimpleNamespace(task="sentiment"))
    model.setup("fit")
    assert model.class_names == ["a"]


def test_domain_incremental_keeps_its_rows() -> None:
    tasks = domain_incremental(blobs(), 2, transform=permutation(2))
    model = module()
    learn(model, tasks)
    assert model.class_names == [f"c{i}" for i in range(6)]


def test_fixed_head_refuses_a_new_class() -> None:
    tasks = stream()
    with pytest.raises(InputError, match=r"new classes \['c4', 'c5'\]; expected classes of the fixed head"):
        learn(module(head="fixed", class_names=["c0", "c1", "c2", "c3"]), tasks)


def test_labels_in_another_order_than_the_rows_are_refused() -> None:
    with pytest.raises(InputError, match=r"class 'c0' is label 0 of the data and row 1 of the head; expected labels"):
        learn(module(class_names=["c1", "c0"]), stream())


def test_no_classes_at_all_are_refused() -> None:
    with pytest.raises(InputError, match=r"a head without classes; expected class_names, or a task's data"):
        trainer().fit(module(), plain_loader())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"head": "tree"}, "head='tree'; expected 'growing', 'multi', 'separate' or 'fixed'"),
        ({"active_classes": "some"}, "active_classes='some'; expected 'seen', 'task' or 'all'"),
        ({"backbone": nn.Unflatten(1, (2, 4))}, r"backbone output \(1, 2, 4\); expected features of shape"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        module(**arguments)


def test_backbone_without_a_known_width_needs_the_input_shape() -> None:
    with pytest.raises(InputError, match="a backbone without feature_dim; expected input_shape"):
        FineTuningModule(Own())


def test_bad_mlp() -> None:
    with pytest.raises(InputError, match=r"hidden=\[\]; expected widths >= 1"):
        MLP((8,), hidden=())


def test_rows_of_a_task_that_comes_alone_stand_behind_those_before() -> None:
    tasks, model = stream(), module()
    for task in tasks:
        trainer(max_epochs=1).fit(model, datamodule=TaskDataModule(task))
    together = module()
    learn(together, tasks)
    assert model.tasks == together.tasks == [[0, 1], [2, 3], [4, 5]]
    assert model.class_names == together.class_names


def test_all_logits_and_the_rows_that_share_a_softmax() -> None:
    batch = (torch.randn(4, 8), torch.tensor([0, 1, 0, 1]))
    names = [f"c{i}" for i in range(6)]
    tasks = [[0, 1], [2, 3]]
    expected = {
        ("multi", None): tasks,
        ("separate", None): tasks,
        ("fixed", None): [[0, 1, 2, 3]],
        ("fixed", "all"): [[0, 1, 2, 3, 4, 5]],
        ("fixed", "task"): [[0, 1, 2, 3]],
    }
    for (head, active), groups in expected.items():
        model = module(head=head, active_classes=active, class_names=names, tasks=[*tasks, [4, 5]])
        model.learn_classes(names, tasks)
        assert model.logit_groups == groups
        logits, labels = model.all_logits(batch)
        assert torch.equal(logits, model.head(model.backbone(batch[0])))
        assert torch.equal(labels, batch[1])
        assert bool((logits.abs() < 100).all())
    assert module(class_names=names).logit_groups == [[0, 1, 2, 3, 4, 5]]
