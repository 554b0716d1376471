"""Parameter groups: rates, decay, names; in the module, with penalties, and against timm."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from torch import nn

from lightning_cl import EWC, FineTuningModule, Replay, depth_groups, parameter_groups, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.finetuning import grouped_optimizer
from tests.finetuning.examples import FEW_EPOCHS, module, plain_loader, stream, trainer
from tests.finetuning.models import Tokens, bert, plain_mlp, timm_model, torchvision_model

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def by_name(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """``{parameter: (lr, weight decay)}``; fails if one is in two groups."""
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], (g["lr"], g["weight_decay"])) for g in groups for p in g["params"]]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize(
    "name",
    ["vit_tiny_patch16_224", "resnet18", "tf_efficientnet_lite0", "convnext_tiny", "swin_tiny_patch4_window7_224"],
)
def test_the_same_scales_and_decays_as_timm(name: str):
    optim = pytest.importorskip("timm.optim")
    model = timm_model(name)
    spared = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = optim.param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=list(spared), layer_decay=0.75
    )
    scaled = [{**group, "lr": 0.1 * group["lr_scale"]} for group in theirs]
    expected = by_name(model, scaled)
    found = by_name(model, parameter_groups(model, 0.1, weight_decay=0.05, layer_decay=0.75))
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for parameter, (rate, decay) in expected.items():
        assert found[parameter] == (pytest.approx(rate, rel=1e-9), decay), parameter


def test_rates_fall_by_blocks():
    model = Tokens(blocks=2)
    rates = {name: rate for name, (rate, _) in by_name(model, parameter_groups(model, 1.0, layer_decay=0.5)).items()}
    assert (rates["head.weight"], rates["blocks.1.one.weight"], rates["norm.weight"]) == (1.0, 0.5, 0.5)
    assert (rates["blocks.0.two.bias"], rates["embed.weight"], rates["token"]) == (0.25, 0.125, 0.125)


def test_no_decay_on_norms_biases_vectors_and_tokens():
    model = Tokens(blocks=1)
    decays = {name: decay for name, (_, decay) in by_name(model, parameter_groups(model, 1, weight_decay=0.1)).items()}
    assert {name for name, decay in decays.items() if decay} == {
        *("embed.weight", "blocks.0.one.weight", "blocks.0.two.weight", "head.weight")
    }
    groups = parameter_groups(model, 1, weight_decay=0.1, no_decay=["bias"])
    spared = {name for name, (_, decay) in by_name(model, groups).items() if not decay}
    assert spared == {
        "embed.bias",
        "blocks.0.norm.bias",
        "blocks.0.one.bias",
        "blocks.0.two.bias",
        "norm.bias",
        "head.bias",
    }
    (single,) = parameter_groups(model, 1, weight_decay=0.1, no_decay=[])
    assert len(single["params"]) == len(list(model.parameters()))
    text = bert(1)
    plain, embedding = (
        by_name(text, parameter_groups(text, 1, weight_decay=0.1, no_decay=words))
        for words in (["norm", "bias"], ["norm", "bias", "type:Embedding"])
    )
    changed = {name for name in plain if plain[name] != embedding[name]}
    assert changed == {f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")}
    lstm = nn.Sequential(nn.LSTM(3, 3), nn.Linear(3, 1))
    assert sum(not decay for _, decay in by_name(lstm, parameter_groups(lstm, 1, weight_decay=1)).values()) == 3
    norms = nn.Sequential(nn.GroupNorm(1, 4), nn.RMSNorm(4), nn.InstanceNorm1d(4, affine=True), nn.Linear(4, 1))
    kept = by_name(norms, parameter_groups(norms, 1, weight_decay=1, no_decay=["norm"]))
    assert {name for name, (_, decay) in kept.items() if decay} == {"3.weight", "3.bias"}


def test_multipliers_by_group_selector_and_name():
    model = torchvision_model("resnet18")
    factors = {"head": 10, r"re:^layer1$": 0.5, "type:BatchNorm2d": 2, r"^conv1\.weight$": 3.0}
    rates = {
        name: rate for name, (rate, _) in by_name(model, parameter_groups(model, 1.0, multipliers=factors)).items()
    }
    assert (rates["fc.weight"], rates["conv1.weight"], rates["layer2.0.conv1.weight"]) == (10, 3, 1)
    assert (rates["layer1.0.conv1.weight"], rates["layer1.0.bn1.weight"], rates["bn1.bias"]) == (0.5, 1, 2)


def test_names_are_readable_and_unique():
    model = Tokens(blocks=2)
    plain = parameter_groups(model, 0.1, weight_decay=0.1)
    assert [group["name"] for group in plain] == ["all", "all, no decay"]
    names = [g["name"] for g in parameter_groups(model, 0.1, layer_decay=0.5, multipliers={"head": 10})]
    weights_first = [
        f"{name}{end}" for name in ("stem", "blocks.0", "blocks.1 + norm", "head, x10") for end in ("", ", no decay")
    ]
    assert names == weights_first
    assert all(group.keys() == {"params", "lr", "weight_decay", "name"} for group in plain)


def test_frozen_parameters_are_held_unless_they_are_not_wanted():
    model = torchvision_model("resnet18")
    for parameter in model.conv1.parameters():  # type: ignore[union-attr]
        parameter.requires_grad_(False)
    assert "conv1.weight" in by_name(model, parameter_groups(model, 1))
    assert "conv1.weight" not in by_name(model, parameter_groups(model, 1, trainable_only=True))


def test_tied_parameters_and_twins():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].load_state_dict(model[0].state_dict())
    model[2].weight = model[0].weight
    groups = parameter_groups(model, 1.0, layer_decay=0.5)
    assert by_name(model, groups).keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "2.bias"}
    torch.optim.SGD(groups)


def test_an_optimizer_keeps_its_own_rate_decay_and_settings():
    model = plain_mlp(3)
    adamw = grouped_optimizer(
        partial(torch.optim.AdamW, lr=0.2, weight_decay=0.3, betas=(0.5, 0.6)), model, layer_decay=0.5
    )
    found = {group["name"]: (group["lr"], group["weight_decay"]) for group in adamw.param_groups}
    rates = {"stem": 0.05, "4 + 5": 0.1, "head": 0.2}
    weights_and_others = {k: (rate, 0.3) for k, rate in rates.items()}
    assert found == weights_and_others | {f"{k}, no decay": (rate, 0.0) for k, rate in rates.items()}
    assert all(group["betas"] == (0.5, 0.6) for group in adamw.param_groups)


def fitted(optimizer: Any = SGD, **options: Any) -> FineTuningModule:
    model = module(class_names=[f"c{i}" for i in range(6)], optimizer=optimizer, **options)
    trainer().fit(model, plain_loader())
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_in_the_module_groups_of_equal_rates_change_nothing_and_others_do():
    plain = weights(fitted())
    assert torch.equal(plain, weights(fitted(parameter_groups={"layer_decay": 1.0})))
    assert not torch.equal(plain, weights(fitted(parameter_groups={"layer_decay": 0.5})))
    start = module(class_names=[f"c{i}" for i in range(6)])
    slow = fitted(parameter_groups={"layer_decay": 1e-9})
    assert torch.allclose(slow.backbone.layers[1].weight, start.backbone.layers[1].weight, atol=1e-6)
    assert not torch.allclose(slow.head.weight, start.head.weight, atol=1e-3)


def test_rates_against_a_loop_by_hand():
    model = module(class_names=[f"c{i}" for i in range(6)])
    for x, y in plain_loader():
        model.loss(model(x), y).backward()
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.1 * (1.0 if name.startswith("head") else 0.5) * (p.grad + 0.01 * p * ("bias" not in name))
        model.zero_grad()
    groups = {"layer_decay": 0.5}
    found = module(
        class_names=[f"c{i}" for i in range(6)],
        optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.01),
        parameter_groups=groups,
    )
    trainer(max_epochs=1).fit(found, plain_loader())
    assert torch.allclose(weights(found), weights(model), atol=1e-6)


class Rates(Callback):
    """Names and rates of the groups at the start of every fit."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        held = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
        assert held == {id(p) for p in pl_module.parameters()}
        self.seen.append({g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups})


def sequence(callbacks: list[Any], **options: Any) -> FineTuningModule:
    model = module(**options)
    run_sequence(model, stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, seed=1)
    return model


@pytest.mark.parametrize("callback", [partial(EWC, 50.0), partial(Replay, 20)])
def test_penalties_and_replay_over_several_groups_equal_one_group(callback: Any):
    sgd = partial(torch.optim.SGD, lr=0.05)
    rates = Rates()
    one = sequence([callback()], optimizer=sgd)
    several = sequence([callback(), rates], optimizer=sgd, parameter_groups={"layer_decay": 1.0})
    assert torch.equal(weights(one), weights(several))
    assert [len(seen) for seen in rates.seen] == [2, 2, 2]
    naive = sequence([], optimizer=sgd, parameter_groups={"layer_decay": 1.0})
    assert not torch.equal(weights(several), weights(naive))


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_a_penalty_with_rates_that_differ(apply: str):
    rates = Rates()
    options: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.05), "parameter_groups": {"layer_decay": 0.5}}
    penalised = sequence([EWC(50.0, apply=apply), rates], **options)  # type: ignore[arg-type]
    assert not torch.equal(weights(penalised), weights(sequence([], **options)))
    assert torch.equal(weights(sequence([EWC(0.0, apply=apply)], **options)), weights(sequence([], **options)))  # type: ignore[arg-type]
    assert set(rates.seen[0].values()) == {0.05, 0.025}


def test_a_carried_optimizer_state_finds_its_groups():
    options: dict[str, Any] = {"head": "fixed", "class_names": [f"c{i}" for i in range(6)], "optimizer": SGD}
    results = []
    for groups in (None, {"layer_decay": 1.0}):
        model = module(**options, parameter_groups=groups)
        run_sequence(model, stream(), [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, optimizer_state="keep")
        results.append(weights(model))
    assert torch.equal(*results)


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path: Path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    options: dict[str, Any] = {
        "optimizer": partial(torch.optim.AdamW, lr=0.01),
        "parameter_groups": {"layer_decay": 0.5, "multipliers": {"head": 2}},
        "class_names": [f"c{i}" for i in range(6)],
    }
    whole = module(**options)
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(max_epochs=3, enable_checkpointing=True, callbacks=[saves]).fit(whole, plain_loader())
    resumed = module(**options)
    trainer(max_epochs=3).fit(resumed, plain_loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert torch.equal(weights(whole), weights(resumed))


def test_the_learning_rate_monitor_tells_the_groups_apart(tmp_path: Path):
    from lightning.pytorch.loggers import CSVLogger

    model = module(class_names=[f"c{i}" for i in range(6)], optimizer=SGD, parameter_groups={"layer_decay": 0.5})
    monitor = LearningRateMonitor()
    trainer(logger=CSVLogger(tmp_path), callbacks=[monitor], log_every_n_steps=1).fit(model, plain_loader())
    assert {key.partition("/")[2] for key in monitor.lrs} == {"stem", "stem, no decay", "head", "head, no decay"}


def test_the_original_is_not_changed():
    model = plain_mlp(3)
    before = copy.deepcopy(model.state_dict())
    parameter_groups(model, 0.1, layer_decay=0.5, example=torch.zeros(2, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(depth_groups(model)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1}, r"lr=-1; expected a number >= 0"),
        ({"lr": "1e-3"}, r"lr='1e-3'; expected a number >= 0"),
        ({"weight_decay": -0.1}, r"weight_decay=-0.1; expected a number >= 0"),
        ({"layer_decay": 0}, r"layer_decay=0; expected a number > 0. HINT: 1 gives"),
        ({"multipliers": {"head": 0}}, r"multipliers\['head'\]=0; expected a number > 0. HINT: freeze"),
        ({"multipliers": {"headd": 2}}, r"multipliers\['headd'\], which matches nothing.*HINT: they are called conv1"),
        ({"multipliers": {"(": 2}}, r"multipliers\['\('\] \(.*expected a regular expression"),
        ({"multipliers": {"re:nothing": 2}}, r"selector 're:nothing', which matches nothing"),
        ({"multipliers": [2]}, r"multipliers=\[2\]; expected a mapping"),
        ({"no_decay": ["norms"]}, r"no_decay='norms'; expected norm, bias, vector, token, re:PATTERN or type:Class"),
        ({"no_decay": "norm"}, r"no_decay='norm'; expected a list"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        parameter_groups(torchvision_model("resnet18"), **{"lr": 0.1, **options})


def test_no_options_of_the_module_are_one_group():
    for options in (None, {}):
        optimizer = module(class_names=["a"], parameter_groups=options).configure_optimizers()
        assert len(optimizer.param_groups) == 1


def test_wrong_options_of_the_module_are_refused():
    with pytest.raises(InputError, match=r"parameter_groups=True; expected a mapping of options, or None"):
        module(parameter_groups=True)
    with pytest.raises(InputError, match=r"parameter_groups with lr; expected layer_decay, .*the optimizer's"):
        module(class_names=["a"], parameter_groups={"lr": 1}).configure_optimizers()
