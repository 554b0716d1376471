"""LUCIR, PODNet and EEIL inside real Trainers: what each step computes, and what all of them have to keep to."""

import copy
import re
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_cl import EEIL, EWC, LUCIR, PODNet, Replay
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP
from lightning_cl.streams import TaskDataModule, domain_incremental, permutation, task_incremental
from tests.callbacks.replay_examples import Classifier, fit, loader
from tests.callbacks.teacher_examples import COSINE, METHODS, PLAIN, WITHOUT, Keep, er, learn, one_step
from tests.finetuning.examples import blobs, module, plain_loader, stream, trainer


def weights(model: LightningModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def after(*callbacks: Any, model: Any = None, **options: Any) -> Tensor:
    model = model or module(**COSINE)
    learn(model, *callbacks, **options)
    return weights(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_step_has_the_gradient_of_the_plain_loss(method: str):
    options = {"fix_old_rows": False} if method == "lucir" else {}
    found, expected = one_step(*METHODS[method](**options), PLAIN[method])
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_it_differs_from_naive_and_from_replay_and_without_its_terms_it_is_replay(method: str):
    full, without = after(*METHODS[method]()), after(*METHODS[method](**WITHOUT[method]))
    replay, naive = after(er(method)), after()
    assert torch.equal(without, replay)
    assert not torch.equal(full, replay)
    assert not torch.equal(full, naive)


@pytest.mark.parametrize("method", ["podnet", "eeil"])
def test_linear_heads(method: str):
    options = {"loss": "module"} if method == "podnet" else {}
    full, replay = after(*METHODS[method](**options), model=module()), after(er(method), model=module())
    assert not torch.equal(full, replay)
    plain = after(*METHODS[method](**WITHOUT[method]), model=module())
    assert torch.equal(plain, replay)


def test_weights_grow_with_the_number_of_old_classes():
    lucir, podnet = LUCIR(12, lambda_base=2.0), PODNet(12)
    seen = []

    class See(Keep):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append((lucir.old_classes, lucir.new_classes, lucir.lambda_, podnet.scale))

    learn(module(**COSINE), lucir, See(), podnet)
    assert [s[:2] for s in seen] == [([], [0, 1]), ([0, 1], [2, 3]), ([0, 1, 2, 3], [4, 5])]
    assert [s[2] for s in seen] == pytest.approx([0, 2.0, 2 * 2**0.5])
    assert [s[3] for s in seen] == pytest.approx([1, 2**0.5, 3**0.5])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_vectors_of_old_classes_stay_whatever_the_optimizer(accumulate: int):
    def learnt(**options: Any) -> tuple[Tensor, Tensor]:
        model = module(**COSINE, optimizer=lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1))
        lucir = LUCIR(12, **options)
        trainer(callbacks=[lucir]).fit(model, datamodule=TaskDataModule(stream()[0], batch_size=10))
        before = model.head.weight.detach().clone()
        more: dict[str, Any] = {"callbacks": [lucir], "accumulate_grad_batches": accumulate, "gradient_clip_val": 0.1}
        trainer(**more).fit(model, datamodule=TaskDataModule(stream()[1], batch_size=10))
        return before, model.head.weight.detach()

    before, end = learnt()
    assert torch.equal(end[:2], before)
    before, end = learnt(fix_old_rows=False)
    assert not torch.equal(end[:2], before)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_precision_and_accumulation(method: str, options: dict[str, Any]):
    model, callbacks = module(**COSINE), METHODS[method]()
    for task in stream()[:2]:
        trainer(callbacks=callbacks, **options).fit(model, datamodule=TaskDataModule(task, batch_size=10))
    assert bool(weights(model).isfinite().all())
    assert all(value.dtype == torch.float32 for value in callbacks[0].teacher.tensors.values())
    assert callbacks[0].n_tasks == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_teacher_lies_outside_the_module_and_nothing_is_left_on_it(method: str):
    model, callbacks = module(**COSINE), METHODS[method]()
    names = set(model.state_dict())
    for task in stream()[:2]:
        trainer(callbacks=callbacks).fit(model, datamodule=TaskDataModule(task, batch_size=10))
    assert set(model.state_dict()) == names
    assert not any(part._forward_hooks for part in model.modules())
    assert "training_step" not in model.__dict__
    assert model.loss is torch.nn.functional.cross_entropy
    own = {"backbone." + n: v for n, v in model.backbone.state_dict().items()}
    assert all(torch.equal(callbacks[0].teacher.tensors[name], value) for name, value in own.items())
    assert callbacks[0].nbytes == callbacks[0].memory.nbytes + sum(4 * p.numel() for p in model.parameters())


def test_a_copy_of_the_module_in_a_fit_has_no_hooks():
    copies = []

    class Copies(Keep):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            copies.append(copy.deepcopy(pl_module.backbone))

    podnet = PODNet(12)
    learn(module(**COSINE), podnet, Copies(), limit_tasks=1)
    podnet._captured.start()
    copies[0](torch.zeros(2, 8))
    assert podnet._captured.stop() == {}


@pytest.mark.parametrize("method", METHODS)
def test_with_penalties_and_more_replay(method: str):
    alone = after(*METHODS[method]())
    assert not torch.equal(after(*METHODS[method](), EWC(1.0)), alone)
    assert not torch.equal(after(Replay(12, mode="separate"), *METHODS[method]()), alone)
    assert not torch.equal(after(*METHODS[method](), Replay(12, mode="separate")), alone)


class Maps(torch.nn.Module):
    """(N, 8) as 2x4 images; two stages of maps."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU())
        self.layer2 = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(x.view(-1, 1, 2, 4))).mean((2, 3))


def test_podnet_pools_maps_and_takes_stages_by_name():
    def model() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return module(backbone=Maps(), **COSINE)

    assert set(PODNet(12)._watched(model())) == {"features", "stage layer1", "stage layer2"}
    assert set(PODNet(12, stages=["layer1.0"])._watched(model())) == {"features", "stage layer1.0"}
    # an MLP's Linear layers
    assert set(PODNet(12)._watched(module())) == {"features", "stage layers.1"}
    deep = module(backbone=MLP((8,), (5, 4)))
    assert set(PODNet(12)._watched(deep)) == {"features", "stage layers.1", "stage layers.3"}
    ends = [after(PODNet(12, stages=s), model=model()) for s in (None, ["layer1"], ["layer2"])]
    assert all(bool(end.isfinite().all()) for end in ends)
    assert not torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[1], ends[2])


@pytest.mark.parametrize("method", METHODS)
def test_task_incremental(method: str):
    options = {"margin_weight": 0} if method == "lucir" else {}
    tasks = stream(task_incremental)
    full = after(*METHODS[method](**options), model=module(head="multi", **COSINE), tasks=tasks)
    replay = after(er(method), model=module(head="multi", **COSINE), tasks=tasks)
    assert not torch.equal(full, replay)
    assert bool(full.isfinite().all())


def test_eeil_in_a_domain_incremental_stream():
    tasks = domain_incremental(blobs(2), 3, transform=permutation(3))
    full, replay = (after(c, model=module(), tasks=tasks) for c in (EEIL(12), er("eeil")))
    assert not torch.equal(full, replay)


def domains() -> Any:
    return domain_incremental(blobs(2), 2, transform=permutation(2))


CONSTRUCTORS: list[tuple[Any, dict[str, Any], str]] = [
    (LUCIR, {"lambda_base": -1}, "lambda_base=-1; expected a finite number >= 0. HINT: 0 leaves this term out"),
    (LUCIR, {"margin_weight": "x"}, "margin_weight='x'; expected a finite number >= 0. HINT:"),
    (LUCIR, {"n_negatives": 0}, "n_negatives=0; expected an integer >= 1. HINT:"),
    (PODNet, {"lambda_c": float("nan")}, "lambda_c=nan; expected a finite number >= 0. HINT:"),
    (PODNet, {"loss": "ce"}, "loss='ce'; expected 'nca' or 'module'. HINT:"),
    (PODNet, {"stages": "layer1"}, "stages='layer1'; expected a list of names, or None. HINT:"),
    (EEIL, {"temperature": 0}, "temperature=0; expected a finite number > 0. HINT:"),
    (EEIL, {"lambda_": True}, "lambda_=True; expected a finite number >= 0. HINT:"),
]


@pytest.mark.parametrize(("kind", "options", "message"), CONSTRUCTORS)
def test_constructors_refuse(kind: Any, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        kind(12, **options)


@pytest.mark.parametrize("method", METHODS)
def test_modules_and_data_that_cannot_work(method: str):
    with pytest.raises(InputError, match=r"on Classifier; expected a FineTuningModule, .* HINT: .*or use Replay"):
        fit(Classifier(), loader(0), *METHODS[method]())
    model = module(class_names=[f"c{i}" for i in range(6)], **COSINE)
    with pytest.raises(InputError, match=r"with data that have no task; .* HINT: use TaskDataModule"):
        fit(model, plain_loader(), *METHODS[method]())
    model.automatic_optimization = False
    with pytest.raises(InputError, match=r"automatic_optimization=False; .* HINT:"):
        fit(model, TaskDataModule(stream()[0]), *METHODS[method]())


def test_heads_and_scenarios_that_cannot_work():
    with pytest.raises(InputError, match=r"LUCIR on a linear head; .* HINT: set model.head_layer=cosine"):
        learn(module(), LUCIR(12))
    with pytest.raises(InputError, match=r"loss='nca' on a linear head; .* HINT: .*loss='module'"):
        learn(module(), PODNet(12))
    with pytest.raises(InputError, match=r"on a module with a loss of its own; .* HINT: use loss='module'"):
        learn(module(loss=torch.nn.CrossEntropyLoss(), **COSINE), PODNet(12))
    with pytest.raises(InputError, match=r"margin_weight=1.0 with head='multi'; .* HINT: set margin_weight=0"):
        learn(module(head="multi", **COSINE), LUCIR(12), tasks=stream(task_incremental))
    for callback in (LUCIR(12), PODNet(12)):
        with pytest.raises(
            InputError, match=r"'permutation 1' without new classes for .* HINT: .* take er, derpp or ewc"
        ):
            learn(module(**COSINE), callback, tasks=domains())
    with pytest.raises(InputError, match=r"stages \['layer9'\]; .* HINT: for example layers.1"):
        learn(module(**COSINE), PODNet(12, stages=["layer9"]))
    with pytest.raises(InputError, match=r"without submodules that have parameters; .* HINT: give stages"):
        learn(module(backbone=torch.nn.Identity(), **COSINE), PODNet(12))


def test_a_stage_that_is_not_called_is_noticed():
    backbone = Maps()
    backbone.spare = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"did not show stage spare to PODNet; .* HINT: compile the module before"):
        learn(module(backbone=backbone, **COSINE), PODNet(12, stages=["spare"]))


def test_two_trainers_of_ones_own_are_enough():
    model, eeil = module(), EEIL(12)
    for task in stream()[:2]:
        Trainer(
            max_epochs=1, callbacks=[eeil], logger=False, enable_checkpointing=False, enable_progress_bar=False
        ).fit(model, datamodule=TaskDataModule(task))
    assert (eeil.n_tasks, len(eeil.memory), eeil.phase) == (2, 12, "consolidated")
