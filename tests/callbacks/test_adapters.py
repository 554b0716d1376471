import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import DER, EWC, L2SP, SI, Adapters, FreezingSchedule, KroneckerEWC, LwF, Replay
from lightning_cl.callbacks._random_state import RandomState
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.finetuning import adapter_counts, adapter_state, add_adapters, load_adapters, merge_adapters
from lightning_cl.streams import TaskLoader
from tests.callbacks.freezing_examples import Net, images, loader, train, weights
from tests.finetuning.adapter_examples import logits, make

pytest.importorskip("peft")
BOTH = pytest.mark.parametrize("kind", ["lora", "ia3"])


def base(module: nn.Module) -> dict[str, Tensor]:
    """The base's tensors by the names that they have without adapters."""
    trained = adapter_state(module)
    state = {name: value for name, value in module.state_dict().items() if name not in trained}
    return {name.replace(".base_layer", ""): value.clone() for name, value in state.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def scores(module: nn.Module) -> Tensor:
    module.eval()
    return module(next(iter(loader()))[0]).detach()


@BOTH
def test_only_adapters_and_head_are_trained(kind: Any):
    module, start = Net(), weights(Net())
    train(module, Adapters(kind))
    held = base(module)
    assert same(held, {name: start[name] for name in held})
    assert set(start) - set(held) == {"head.weight", "head.bias"}
    assert not torch.equal(module.head.weight, start["head.weight"])
    fresh = adapter_state(add_adapters(Net(), kind))
    assert all(not torch.equal(value, fresh[name]) for name, value in adapter_state(module).items())


def test_a_module_is_adapted_once_and_later_fits_go_on_with_the_same():
    module, adapters = Net(), Adapters()
    train(module, adapters, epochs=1)
    parameters, before = dict(module.named_parameters()), adapter_state(module)
    before = {name: value.clone() for name, value in before.items()}
    train(module, Adapters(), epochs=1)
    assert all(parameters[name] is parameter for name, parameter in module.named_parameters())
    assert not any(torch.equal(value, before[name]) for name, value in adapter_state(module).items())


def test_a_module_that_was_adapted_by_hand_is_taken_as_it_is():
    module = add_adapters(Net(), rank=2)
    train(module, Adapters(rank=2), epochs=1)
    assert module.neck.lora_A["default"].weight.shape[0] == 2
    with pytest.raises(InputError, match=r"Adapters with other arguments \(rank: 2 in the module\)"):
        train(module, Adapters(rank=4), epochs=1)


def test_what_is_logged(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        train(Net(), Adapters(targets="neck", rank=2), epochs=1)
    assert "lora on 1 layers of Net: 59 of 699 parameters train (8.44 %), 27 of them the head's" in caplog.text


def resumed(folder: Path, module: nn.Module, step: int, **options: Any) -> Net:
    """From a checkpoint of :func:`whole`."""
    train(module, Adapters(**options), RandomState(), resume=str(folder / f"step={step}.ckpt"))
    return module


def whole(folder: Path, **options: Any) -> Net:
    module = Net(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    keep = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, save_last=False, filename="{step}")
    train(module, Adapters(**options), keep, RandomState(), enable_checkpointing=True)
    return module


@pytest.mark.parametrize("save", ["all", "trained"])
@BOTH
def test_resumed_is_uninterrupted(kind: Any, save: Any, tmp_path: Path):
    module = whole(tmp_path, kind=kind, save=save)
    for step in (2, 4, 6):
        again = Net(optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
        assert same(weights(resumed(tmp_path, again, step, kind=kind, save=save)), weights(module))


def test_a_checkpoint_of_what_was_trained_alone(tmp_path: Path):
    module = whole(tmp_path, save="trained")
    file = str(tmp_path / "step=6.ckpt")
    held = load_state(file)
    assert held["state_dict"].keys() == adapter_state(module).keys()
    assert sum(value.numel() for value in held["state_dict"].values()) == adapter_counts(module)["trained"]
    other = Net()
    nn.init.ones_(other.neck.weight)
    nn.init.ones_(other.backbone[0].weight)
    with pytest.raises(InputError, match="base weights of Net that are not those on which the adapters were trained"):
        train(other, Adapters(save="trained"), resume=file)
    # without the callback, and for an evaluation
    again = load_adapters(Net(), tmp_path / "step=12.ckpt")
    assert torch.equal(scores(again), scores(module))
    fresh = Net()
    fresh.test_step = fresh.validation_step  # type: ignore[method-assign, assignment]
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[Adapters()], enable_progress_bar=False)
    trainer.test(fresh, loader(), ckpt_path=str(tmp_path / "step=12.ckpt"), weights_only=True, verbose=False)
    assert torch.equal(scores(fresh), scores(module))


def test_a_checkpoint_of_all_is_read_by_load_adapters_too(tmp_path: Path):
    module = whole(tmp_path)
    other = Net()
    nn.init.ones_(other.neck.weight)
    assert torch.equal(scores(load_adapters(other, tmp_path / "step=12.ckpt")), scores(module))


def test_checkpoints_of_other_adapters_are_refused(tmp_path: Path):
    whole(tmp_path, targets="neck", dropout=0.1)
    with pytest.raises(InputError, match=r"\(dropout: 0.1 in the checkpoint\)"):
        resumed(tmp_path, Net(), 4, targets="neck")


def test_files_at_the_end(tmp_path: Path):
    module = Net()
    train(module, Adapters(export=tmp_path / "a.pt", export_merged=tmp_path / "plain.pt"), epochs=1)
    assert torch.equal(scores(load_adapters(Net(), tmp_path / "a.pt")), scores(module))
    plain = Net()
    plain.load_state_dict(load_state(tmp_path / "plain.pt"))
    assert float((scores(plain) - scores(module)).abs().max()) < 1e-5
    assert torch.equal(scores(plain), scores(merge_adapters(module)))


def test_no_files_after_a_stop(tmp_path: Path):
    class Stops(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = True

    train(Net(), Adapters(export=tmp_path / "a.pt"), Stops())
    assert not (tmp_path / "a.pt").exists()


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("options", [
    {"recipe": "lp_ft", "recipe_options": {"epoch": 1}},
    {"recipe": "gradual_unfreeze"},
    {"recipe": "full"},
    {"phases": [{"thaw": "head"}, {"thaw": "all", "epoch": 1}]},
    {"phases": [{"thaw": "re:head"}, {"thaw": "re:neck", "step": 2}, {"thaw": "type:Linear", "epoch": 1}]},
    {"freeze": "auto"},
], ids=str)  # fmt: skip
def test_no_schedule_thaws_the_base(tmp_path: Path, options: dict[str, Any], first: bool, kind: Any):
    file = tmp_path / "a.safetensors"
    both = [Adapters(kind, save="trained", export=file), FreezingSchedule(**options, table=False)]
    module, start = Net(), weights(Net())
    train(module, *(both if first else reversed(both)), epochs=4)
    held = base(module)
    assert held
    assert same(held, {name: start[name] for name in held})
    load_adapters(Net(), file)  # refuses those of another base


def test_a_schedule_freezes_adapters_and_thaws_nothing_of_the_base():
    class Watch(Callback):
        def __init__(self) -> None:
            self.moves: list[bool] = []

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.moves.append(pl_module.neck.lora_B["default"].weight.grad is not None)

    module, start, watch = Net(), weights(Net()), Watch()
    module.train_everywhere = True
    train(module, Adapters(), FreezingSchedule(until_epoch=1), watch, epochs=2)
    assert watch.moves == [False] * 4 + [True] * 4
    held = base(module)
    assert same(held, {name: start[name] for name in held})
    assert {name for name, p in module.named_parameters() if p.requires_grad} == set(adapter_state(module))


OTHERS: dict[str, Any] = {"EWC": lambda: EWC(50.0), "LwF": lambda: LwF(), "Replay": lambda: Replay(8)}


def learn(*callbacks: Callback) -> Net:
    module = Net()
    train(module, *callbacks, epochs=1)
    train(module, *callbacks, epochs=1)
    return module


@pytest.mark.parametrize("kind", ["lora", "ia3"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("method", OTHERS)
def test_with_a_method_against_forgetting(method: str, first: bool, kind: Any):
    def both(other: Callback) -> list[Callback]:
        return [Adapters(kind), other] if first else [other, Adapters(kind)]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        alone = learn(Adapters(kind))
        torch.manual_seed(0)
        callback = OTHERS[method]()
        module = learn(*both(callback))
    start = weights(Net())
    held = base(module)
    assert same(held, {name: start[name] for name in held})
    assert any(not torch.equal(value, adapter_state(alone)[name]) for name, value in adapter_state(module).items())
    if method == "EWC":
        assert callback.importance.keys() == adapter_state(module).keys()
        assert all(value.any() for value in callback.importance.values())


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
    ],
    ids=str,
)
@BOTH
def test_precision_accumulation_and_clipping(kind: Any, options: dict[str, Any]):
    module, plain = Net(), Net()
    if options.get("precision") == "bf16-true":
        plain.to(torch.bfloat16)
    start = weights(plain)
    train(module, Adapters(kind), epochs=1, **options)
    held = base(module)
    assert same(held, {name: start[name].to(held[name].dtype) for name in held})
    assert all(bool(value.isfinite().all()) for value in adapter_state(module).values())
    if kind == "lora":
        assert bool(module.neck.lora_B["default"].weight.any())


def test_accumulation_is_the_larger_batch():
    found = []
    for size, accumulate in ((12, 1), (6, 2)):
        module = Net()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        trainer = Trainer(
            accelerator="cpu", max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[Adapters()], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, TaskLoader(images(), size, shuffle=True))
        found.append(adapter_state(module))
    assert all(torch.allclose(value, found[1][name], atol=1e-6) for name, value in found[0].items())


class Compiled(Net):
    """Parts compiled, and used, before there were adapters."""

    def __init__(self, parts: str) -> None:
        super().__init__()
        setattr(self, parts, torch.compile(getattr(self, parts), backend="eager"))
        self.eval()(torch.zeros(2, 1, 6, 6))
        self.train()


@pytest.mark.slow
def test_compiled_parts_and_modules():
    torch._dynamo.reset()
    plain = Net()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train(plain, Adapters(), epochs=1)
        for module in (Compiled("backbone"), torch.compile(Net(), backend="eager")):
            torch.manual_seed(0)
            train(module, Adapters(), epochs=1)
            state = {name.replace("_orig_mod.", ""): value for name, value in module.state_dict().items()}
            assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in plain.state_dict().items())
    with pytest.raises(InputError, match=r"layer 'neck', which torch.compile has wrapped by itself"):
        train(Compiled("neck"), Adapters())


def test_sharded_strategies_are_refused():
    strategy = type("FSDPStrategy", (), {})()
    with pytest.raises(InputError, match=r"strategy 'FSDPStrategy' with Adapters; .* HINT: use strategy='auto' or"):
        Adapters().setup(SimpleNamespace(strategy=strategy), Net(), "fit")


def test_an_optimizer_without_the_adapters_is_refused():
    class HeadOnly(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.head.parameters(), lr=0.1)

    with pytest.raises(InputError, match=r"6 trainable parameters in no optimizer, like 'backbone.0.lora_A.default"):
        train(HeadOnly(), Adapters())


def test_layers_that_are_not_called_are_refused(caplog: pytest.LogCaptureFixture):
    class Reads(Net):
        def forward(self, x: Tensor) -> Tensor:
            neck = self.neck
            return self.head(nn.functional.linear(self.backbone(x), neck.weight, neck.bias))

    with pytest.raises(InputError, match="adapters on 'neck' and 0 other layers, of which none has a gradient"):
        train(Reads(), Adapters(targets="neck"))
    train(Reads(), Adapters(), epochs=1)
    assert "adapters on neck have no gradient: the module does not call these layers" in caplog.text


def test_layers_that_come_too_late_are_refused():
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = self.neck = self.drop = nn.Identity()

    with pytest.raises(InputError, match="HINT: build them in __init__; setup"):
        train(Late(), Adapters())


def test_bad_arguments():
    with pytest.raises(InputError, match="save='base'; expected 'all' or 'trained'"):
        Adapters(save="base")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rank=0"):
        Adapters(rank=0)
    assert not hasattr(Adapters(), "needs_boundary")


class Text(LightningModule):
    """A transformers model with its own loss, on padded dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make("hf_bert")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def texts() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 50, (12, 7), generator=generator)
    mask = torch.arange(7) < torch.randint(3, 8, (12, 1), generator=generator)
    samples = [
        {"input_ids": i, "attention_mask": m.long(), "labels": y}
        for i, m, y in zip(ids, mask, torch.arange(12) % 3, strict=True)
    ]
    return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]


@BOTH
def test_a_transformers_model_on_dicts(kind: Any, tmp_path: Path):
    module, start = Text(), weights(Text())
    module.model.train()
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[Adapters(kind, export=tmp_path / "a.safetensors"), EWC(1.0)],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, texts())
    held = base(module)
    assert same(held, {name: start[name] for name in held})
    # the network alone, as it is served
    alone = load_adapters(make("hf_bert"), tmp_path / "a.safetensors", strip="model.").eval()
    assert torch.equal(logits(alone), logits(module.model.eval()))
    assert torch.allclose(logits(merge_adapters(alone)), logits(module.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("callback", [lambda: KroneckerEWC(1.0), lambda: SI(1.0), lambda: DER(8), lambda: L2SP(0.1)])
@BOTH
def test_with_more_methods(kind: Any, callback: Any):
    module, start, method = Net(), weights(Net()), callback()
    for _ in range(2):
        train(module, Adapters(kind), method, epochs=1)
    held = base(module)
    assert same(held, {name: start[name] for name in held})
