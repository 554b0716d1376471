"""Freezing on modules as people write them: other optimizers, compiled parts, manual optimization, dict batches."""

import importlib.util
import pickle
import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_cl import FreezingSchedule
from lightning_cl._compat import seeded
from lightning_cl.errors import InputError
from tests.callbacks.freezing_examples import Net, largest_difference, train, weights

THAW: list[dict[str, Any]] = [{"thaw": "head"}, {"thaw": "all", "epoch": 1}]


class Each(Callback):
    """The weights behind each step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.weights.append(weights(pl_module))


def moved(each: Each, name: str) -> list[bool]:
    """Whether a tensor changed in each step from the second on."""
    return [not torch.equal(a[name], b[name]) for a, b in zip(each.weights, each.weights[1:], strict=False)]


class Filtered(Net):
    """As in Lightning's documentation of BackboneFinetuning: a frozen backbone, which the optimizer does not get."""

    def __init__(self, frozen: bool = True) -> None:
        super().__init__()
        self.backbone.requires_grad_(not frozen)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam((p for p in self.parameters() if p.requires_grad), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.5**epoch)]


@pytest.mark.parametrize("lr", [None, 0.001])
def test_what_the_optimizer_does_not_hold_is_added_as_a_group_and_trained(lr: float | None):
    each, rates = Each(), []

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    module = Filtered()
    phase = {"thaw": "all", "epoch": 1} | ({"lr": lr} if lr else {})
    trainer = train(
        module, FreezingSchedule(phases=[{"thaw": ["re:^head$", "re:^neck$"]}, phase], table=False), each, Rates()
    )
    first, second = trainer.optimizers[0].param_groups
    assert [id(p) for p in first["params"]] == [id(p) for p in [*module.neck.parameters(), *module.head.parameters()]]
    assert [id(p) for p in second["params"]] == [id(p) for p in module.backbone.parameters()]
    assert moved(each, "backbone.5.weight") == [False] * 3 + [True] * 8
    assert moved(each, "head.weight") == [True] * 11
    base = lr or 0.01
    assert rates[::4] == [[0.01, base], [0.005, base / 2], [0.0025, base / 4]]


def test_short_form_adds_what_it_thaws_and_nothing_else():
    class HeadOnly(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    module, each = HeadOnly(), Each()
    trainer = train(module, FreezingSchedule(["backbone"], until_epoch=1), each)
    assert [len(group["params"]) for group in trainer.optimizers[0].param_groups] == [2, 6]
    assert moved(each, "backbone.5.weight") == [False] * 3 + [True] * 8
    assert not any(moved(each, "neck.weight"))  # the user's business


def test_twins_of_equal_values_are_both_held_and_both_trained():
    class Twins(Filtered):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.backbone.append(nn.Linear(8, 8))
                self.backbone[6].load_state_dict(self.neck.state_dict())
            self.backbone[6].requires_grad_(False)

    module, each = Twins(), Each()
    trainer = train(
        module,
        FreezingSchedule(phases=[{"thaw": ["re:^head$", "re:^neck$"]}, {"thaw": "all", "epoch": 1}], table=False),
        each,
    )
    held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())
    assert moved(each, "backbone.6.weight") == [False] * 3 + [True] * 8


def test_a_checkpoint_with_other_groups_is_refused(tmp_path: Any):
    trainer = train(Filtered(), epochs=1)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(
        InputError, match=r"optimizers with \[1\] parameter groups; expected \[2\], with those of Freez"
    ):
        train(Filtered(), FreezingSchedule(phases=THAW, table=False), resume=str(tmp_path / "without.ckpt"))


def test_no_graph_and_no_memory_for_a_frozen_stem():
    seen: list[tuple[bool, bool]] = []

    class Looks(Net):
        def forward(self, x: Tensor) -> Tensor:
            features = self.backbone(x)
            seen.append((features.requires_grad, self.backbone[1].training))
            return self.head(self.neck(self.drop(features)))

    train(Looks(), FreezingSchedule(phases=THAW, table=False), epochs=2)
    assert seen == [(False, False)] * 4 + [(True, True)] * 4


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}], ids=str
)
def test_precision_accumulation_and_clipping_as_by_hand(options: dict[str, Any]):
    """Frozen by hand, thawed by hand: the same weights."""

    class ByHand(Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            for part in (pl_module.backbone, pl_module.drop, pl_module.neck):
                part.train(trainer.current_epoch > 0)
                part.requires_grad_(trainer.current_epoch > 0)

    results = []
    for callback in (ByHand(), FreezingSchedule(phases=THAW, table=False)):
        module = Net()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            train(module, callback, **options)
        results.append(weights(module))
    assert largest_difference(*results) == 0.0


class Manual(Net):
    """Two steps a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for _ in range(2):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()


@pytest.mark.parametrize("trigger", [{"epoch": 1}, {"step": 8}, {"fraction": 0.5}], ids=str)
def test_manual_optimization(trigger: dict[str, Any]):
    each, phases = Each(), [{"thaw": "head"}, {"thaw": "all", **trigger}]
    train(Manual(), FreezingSchedule(phases=phases, table=False), each, epochs=2)
    assert moved(each, "head.weight") == [True] * 7
    assert moved(each, "backbone.5.weight") == [False] * 3 + [True] * 4  # of eight batches with two steps each


@pytest.mark.parametrize("which", ["submodule", "module", "forward"])
def test_compiled(which: str):
    """Compiled by the user before the fit; compiled again at the thaw."""
    module, each = Net(), Each()
    module.drop.p = module.backbone[3].p = 0.0
    module.forward = lambda x: module.head(module.neck(module.drop(module.backbone(x))))  # type: ignore[method-assign]
    plain, other = Net(), Each()
    plain.drop.p = plain.backbone[3].p = 0.0
    torch._dynamo.reset()
    fitted: Any = module
    if which == "submodule":
        module.backbone.compile(backend="aot_eager")
    elif which == "forward":
        module.backbone[5] = torch.compile(module.backbone[5], backend="aot_eager")  # type: ignore[assignment]
    else:
        fitted = torch.compile(module, backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(fitted, FreezingSchedule(phases=THAW, table=False), each, epochs=2)
    train(plain, FreezingSchedule(phases=THAW, table=False), other, epochs=2)
    for name in ("backbone.0.weight", "neck.weight"):
        assert moved(each, name) == [False] * 3 + [True] * 4
    stem = "backbone.5._orig_mod.weight" if which == "forward" else "backbone.5.weight"
    assert moved(each, stem) == [False] * 3 + [True] * 4
    assert moved(each, "backbone.1.running_mean") == [False] * 3 + [True] * 4
    for ours, theirs in zip(each.weights, other.weights, strict=True):
        named = {name.replace("_orig_mod.", ""): value for name, value in ours.items()}
        assert largest_difference(named, theirs) < 1e-5


class Bert(LightningModule):
    """A transformers classifier on dict batches, as in its documentation."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=4, num_attention_heads=2, intermediate_size=8, num_labels=2
        )
        self.model = BertForSequenceClassification(config)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers")
def test_transformers_with_dict_batches():
    generator = torch.Generator().manual_seed(0)
    data = [
        {"input_ids": torch.randint(20, (6,), generator=generator), "attention_mask": torch.ones(6), "labels": i % 2}
        for i in range(8)
    ]
    with seeded(0):
        each, module = Each(), Bert()
    schedule = FreezingSchedule(recipe="gradual_unfreeze", recipe_options={"unit": "step"}, table=False)
    fit_plain(module, torch.utils.data.DataLoader(data, batch_size=2), schedule, each, max_epochs=2)
    first = {name: moved(each, name).index(True) for name in each.weights[0] if any(moved(each, name))}
    layers = [first[f"model.bert.encoder.layer.{i}.output.dense.weight"] for i in range(4)]
    assert layers == [3, 2, 1, 0]  # thawed at the steps 4, 3, 2, 1
    assert first["model.bert.embeddings.word_embeddings.weight"] == 4


def fit_plain(module: Any, batches: Any, *callbacks: Any, package: Any = None, **options: Any) -> None:
    import lightning.pytorch

    trainer = (package or lightning.pytorch).Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, batches)


@pytest.mark.skipif(importlib.util.find_spec("pytorch_lightning") is None, reason="needs pytorch_lightning")
def test_module_of_the_other_package():
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.out = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.out(self.encoder(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD((p for p in self.out.parameters()), lr=0.1)

    with seeded(0):
        module, each = Other(), Each()
    batches = torch.utils.data.DataLoader([(torch.ones(3) * i, i % 2) for i in range(4)], batch_size=2)
    schedule = FreezingSchedule(recipe="lp_ft", table=False)
    fit_plain(module, batches, schedule, each, package=pytorch_lightning, max_epochs=2)
    assert moved(each, "out.weight") == [True] * 3
    assert moved(each, "encoder.2.weight") == [False, True, True]


def test_a_module_with_a_frozen_part_is_pickled_inside_a_fit():
    copies: list[nn.Module] = []

    class Copy(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            copies.append(pickle.loads(pickle.dumps(pl_module.backbone)))

    train(Net(), FreezingSchedule(phases=THAW), Copy(), epochs=2)
    assert len(copies) == 2
    for read in copies:
        assert read.train() is read
        assert all(part.training for part in read.modules())
