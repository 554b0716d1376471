"""The cosine head alone, and inside the module: growth, masks, checkpoints, imprinting."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import EWC, FreezingSchedule, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.finetuning import CosineHead, FineTuningModule
from lightning_cl.functional.imprinting import imprinted_rows
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams import TaskDataModule, task_incremental
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, plain_loader, stream, trainer


def head(proxies: int = 3, **options: Any) -> CosineHead:
    return CosineHead(4, ["a", "b", "c"], proxies=proxies, **options)


@pytest.mark.parametrize("proxies", [1, 3])
def test_logits_against_a_plain_loop(proxies: int) -> None:
    layer = head(proxies, eta=7.0).double()
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for f in features.tolist():
        row = []
        for vectors in layer.weight.tolist():
            cosines = [sum(a * b for a, b in zip(w, f, strict=True)) / math.hypot(*w) / math.hypot(*f) for w in vectors]
            total = sum(math.exp(c) for c in cosines)
            row.append(7.0 * sum(math.exp(c) / total * c for c in cosines))
        expected.append(row)
    torch.testing.assert_close(layer(features), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(layer(9 * features), layer(features))
    assert bool((layer.similarities(features).abs() <= 1).all())
    features.requires_grad_()
    assert torch.autograd.gradcheck(lambda f, w, e: torch.func.functional_call(layer, {"weight": w, "eta": e}, f),
                                    (features, layer.weight, layer.eta))  # fmt: skip


def test_growth_keeps_old_rows_and_new_ones_do_not_depend_on_arrival() -> None:
    one, other = head(), CosineHead(4, ["c"], proxies=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert other.add_classes(["b", "c", "b", "a"]) == 2
    assert torch.equal(torch.get_rng_state(), before)
    assert other.class_names == ["c", "b", "a"]
    for i, name in enumerate(other.class_names):
        assert torch.equal(other.weight[i], one.weight[one.class_names.index(name)])
    assert other.add_classes(["a"]) == 0
    assert float(one.weight.detach().abs().max()) <= 0.5
    frozen = head().bfloat16().requires_grad_(False)
    frozen.add_classes(["d"])
    assert (frozen.weight.dtype, frozen.weight.requires_grad, frozen.out_features) == (torch.bfloat16, False, 4)


def learn(model: Any, tasks: Any = None, *callbacks: Any, **options: Any) -> dict[str, Any]:
    options = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10, **options}
    return run_sequence(model, stream() if tasks is None else tasks, callbacks, **options)


def cosine(**options: Any) -> FineTuningModule:
    return module(head_layer="cosine", head_options={"proxies": 2, "imprint": True}, **options)


def test_a_grown_model_reloads_from_its_file_alone(tmp_path: Path) -> None:
    model = cosine()
    learn(model, run_dir=tmp_path)
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (again.head.proxies, again.head.imprint, again.class_names) == (2, True, [f"c{i}" for i in range(6)])
    x = blobs().test.batch(torch.arange(30))[0]
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert again.predict_step(x) == model.predict_step(x)
    assert len(set(model.predict_step(x))) > 1
    assert float(model.head.eta) != 10


def test_masks_and_other_kinds_of_heads() -> None:
    multi = cosine(head="multi")
    tasks = stream(task_incremental)
    learn(multi, tasks)
    x, y, task = tasks[1].test.batch(torch.arange(10))
    assert set(multi.predict_step((x, y, task))) <= {"c2", "c3"}
    model = cosine(head="fixed", class_names=[f"c{i}" for i in range(6)])
    trainer().fit(model, datamodule=TaskDataModule(stream()[0]))
    assert bool((model.eval()(x)[:, 2:] < -1e29).all())
    assert model.head.out_features == 6


@pytest.mark.parametrize("proxies", [1, 3])
@pytest.mark.parametrize("kind", ["growing", "fixed"])
def test_rows_of_new_classes_start_where_their_features_lie(proxies: int, kind: Any, tmp_path: Path) -> None:
    tasks = stream()
    names = tasks.class_names if kind == "fixed" else ()
    model = module(head=kind, class_names=names, head_layer="cosine",
                   head_options={"imprint": True, "proxies": proxies})  # fmt: skip
    drawn = model.head.weight.detach().clone()
    trainer(max_epochs=0).fit(model, datamodule=TaskDataModule(tasks[0]))
    assert torch.equal(model.head.weight[: len(drawn)], drawn), "the first task's rows are drawn"
    before = model.head.weight[:2].detach().clone()
    trainer(max_epochs=0).fit(model, datamodule=TaskDataModule(tasks[1]))
    assert torch.equal(model.head.weight[:2], before)
    rows = [0, 1] if kind == "growing" else [0, 1, 4, 5]
    length = model.head.weight[rows].norm(dim=-1).mean()
    x, y = tasks[1].train.batch(torch.arange(len(tasks[1].train)))
    for i in (2, 3):
        vectors = imprinted_rows(model.backbone(x[y == i]), proxies, derive_seed(0, "imprint", f"c{i}"))
        expected = length * torch.nn.functional.normalize(vectors, dim=-1)
        torch.testing.assert_close(model.head.weight[i], expected, rtol=1e-5, atol=1e-6)
    trained = model.head.weight.detach().clone()
    trainer(max_epochs=0).fit(model, datamodule=TaskDataModule(tasks[1]))
    assert torch.equal(model.head.weight, trained), "only before the first fit on a task"


def test_other_callbacks_know_the_head() -> None:
    model = cosine()
    ewc = EWC(1.0)
    learn(model, None, ewc, limit_tasks=2)
    assert ewc.importance["head.weight"].shape == (4, 2, 16)
    assert ewc.importance["head.eta"].shape == (1,)
    frozen = cosine()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    learn(frozen, None, FreezingSchedule(until_epoch=None), limit_tasks=1, optimizer_state="keep")
    changed = {name for name, value in frozen.state_dict().items() if name.startswith("backbone")
               and not torch.equal(value, before[name])}  # fmt: skip
    assert changed == set()
    assert float(frozen.head.eta) != 10


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"head_layer": "rbf"}, "head_layer='rbf'; expected 'linear', 'mlp' or 'cosine'. HINT: leave it out"),
    ({"head_options": {"eta": 1.0}}, "head_options={'eta': 1.0} with head_layer='linear'; expected none. HINT: set"),
    ({"head_layer": "cosine", "head_options": {"bias": 1}}, "head_options ['bias']; expected proxies, eta, imprint"),
    ({"head_layer": "cosine", "head": "separate"}, "head='separate' with head_layer='cosine'; expected one head"),
    ({"head_layer": "cosine", "head_options": {"proxies": 0}}, "proxies=0; expected an integer >= 1. HINT: 1 for"),
    ({"head_layer": "cosine", "head_options": {"eta": 0}}, "eta=0; expected a finite number > 0. HINT: leave it out"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        module(**options)


def test_imprinting_needs_the_training_data() -> None:
    model = cosine()
    trainer(max_epochs=0).fit(model, datamodule=TaskDataModule(stream()[0]))
    data = TaskDataModule(stream()[1])
    data.importance_dataloader = None  # type: ignore[method-assign, assignment]
    with pytest.raises(InputError, match=r"imprint=True with data that have no importance_dataloader\(\); .* HINT:"):
        trainer(max_epochs=0).fit(model, datamodule=data)
    trainer(max_epochs=0).fit(cosine(class_names=[f"c{i}" for i in range(6)]), plain_loader())
