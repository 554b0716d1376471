"""Rules for prediction: part of the module, in its files, out of its training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_cl import FineTuningModule
from lightning_cl.errors import InputError
from lightning_cl.finetuning import BiasCorrection, NearestMean
from lightning_cl.functional import nearest_mean_scores
from lightning_cl.streams import TaskDataModule, task_incremental
from tests.finetuning.examples import blobs, module, stream, trainer

NAMES = [f"c{i}" for i in range(6)]
X = blobs().test.batch(torch.arange(60))[0]


def with_means() -> FineTuningModule:
    model = module(class_names=NAMES[:4]).eval()
    means = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    model.set_rule("nearest_mean").set_means(means / means.norm(dim=1, keepdim=True))
    return model


def with_correction(**options: Any) -> FineTuningModule:
    model = module(class_names=NAMES[:4], **options).eval()
    model.set_rule("bias_correction").correct([2, 3], 0.5, 3.0)
    return model


def test_prediction_goes_by_the_nearest_mean() -> None:
    model = with_means()
    features = model.backbone(X)
    expected = nearest_mean_scores(features, model.rule.means)
    torch.testing.assert_close(model(X), expected)
    assert model.predict_step(X) == [NAMES[i] for i in expected.argmax(1).tolist()]
    assert model.predict_step(X) != [NAMES[i] for i in model.head(features).argmax(1).tolist()]


def test_prediction_goes_by_corrected_logits() -> None:
    model = with_correction()
    logits = model.head(model.backbone(X))
    expected = torch.cat([logits[:, :2], 0.5 * logits[:, 2:] + 3], 1)
    torch.testing.assert_close(model(X), expected)
    model.rule.reset()
    torch.testing.assert_close(model(X), logits)


@pytest.mark.parametrize("build", [with_means, with_correction])
def test_training_sees_the_logits(build: Any) -> None:
    ruled, plain = build(), module(class_names=NAMES[:4])
    batch = (X, torch.arange(60) % 4)
    assert torch.equal(ruled.training_step(batch, 0), plain.training_step(batch, 0))
    assert len(list(ruled.parameters())) == len(list(plain.parameters()))


@pytest.mark.parametrize("build", [with_means, with_correction])
def test_reloads_from_its_file_alone_and_goes_on_growing(build: Any, tmp_path: Path) -> None:
    model = build()
    loop = trainer(max_epochs=0)
    loop.strategy.connect(model)
    loop.save_checkpoint(tmp_path / "a.ckpt")
    again = FineTuningModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert type(again.rule) is type(model.rule)
    assert torch.equal(again(X), model(X))
    batches = trainer().predict(again, DataLoader(X, batch_size=7))
    assert batches is not None
    assert [name for batch in batches for name in batch] == model.predict_step(X)
    again.learn_classes(NAMES)
    assert {len(value) for name, value in again.rule.state_dict().items()} == {6}
    assert torch.equal(next(again.rule.buffers())[:4], next(model.rule.buffers()))
    # one that had no rule, or another one
    other = module(class_names=NAMES[:4])
    other.set_rule("bias_correction" if isinstance(model.rule, NearestMean) else "nearest_mean")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for target in (other, module()):
        target.on_load_checkpoint(checkpoint)
        target.load_state_dict(checkpoint["state_dict"])
        assert torch.equal(target.eval()(X), model(X))


def test_a_class_without_a_mean_leaves_the_decision_to_the_logits() -> None:
    model = with_means()
    model.learn_classes(NAMES[:5])
    torch.testing.assert_close(model(X), model.head(model.backbone(X)))
    # a class of a task to come is not asked for
    fixed = with_means()
    fixed.learn_classes(NAMES, [[0, 1, 2, 3]])
    assert set(fixed.predict_step(X)) <= set(NAMES[:4])
    torch.testing.assert_close(fixed(X)[:, :4], nearest_mean_scores(fixed.backbone(X), fixed.rule.means)[:, :4])


def test_inactive_classes_are_masked_behind_the_rule() -> None:
    model = with_correction(head="multi", tasks=[[0, 1], [2, 3]])
    batch = (X, torch.zeros(60, dtype=torch.long), torch.zeros(60, dtype=torch.long))
    assert set(model.predict_step(batch)) <= {"c0", "c1"}
    assert set(model.predict_step((X, batch[1], batch[2] + 1))) <= {"c2", "c3"}


def test_validation_scores_by_the_rule_and_reports_the_loss_of_the_logits() -> None:
    tasks = stream(n_tasks=1, validation_fraction=0.3)
    model = module(class_names=NAMES)
    model.set_rule("bias_correction").correct([0], 1.0, 1e3)
    data = TaskDataModule(tasks[0])
    logged = trainer().validate(model, data.val_dataloader(), verbose=False)[0]
    data_ = tasks[0].validation
    assert data_ is not None
    x, y = data_.batch(torch.arange(len(data_)))
    loss = torch.nn.functional.cross_entropy(model.head(model.backbone(x)), y)
    assert logged["val_loss"] == pytest.approx(float(loss), rel=1e-5)
    assert logged["val_accuracy"] == pytest.approx(float((y == 0).float().mean()))


def test_a_multi_head_evaluates_by_the_rule() -> None:
    tasks = stream(task_incremental)
    model = module(head="multi")
    trainer(max_epochs=0).fit(model, datamodule=TaskDataModule(tasks[0]))
    means = torch.nn.functional.normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    model.set_rule("nearest_mean").set_means(means)
    x, y, _ = tasks[0].test.batch(torch.arange(40))
    logged = trainer().test(model, TaskDataModule(tasks[0]).test_dataloader(), verbose=False)[0]
    expected = (nearest_mean_scores(model.backbone(x), means).argmax(1) == y).float().mean()
    assert logged["test_accuracy"] == pytest.approx(float(expected))


def test_one_rule_at_a_time() -> None:
    model = with_means()
    means = model.rule.means
    assert model.set_rule("nearest_mean").means is means
    with pytest.raises(InputError, match=r"predicts by 'nearest_mean'; expected one rule.*HINT: .*set_rule\(None\)"):
        model.set_rule("bias_correction")
    with pytest.raises(InputError, match=r"rule 'oracle'; expected one of bias_correction, nearest_mean"):
        module(class_names=NAMES).set_rule("oracle")
    assert model.set_rule(None) is None
    torch.testing.assert_close(model(X), model.head(model.backbone(X)))
    assert isinstance(model.set_rule("bias_correction"), BiasCorrection)
