"""Named and generated freezing schedules, and their YAML."""

from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from torch import nn

from lightning_cl import depth_groups
from lightning_cl.errors import InputError
from lightning_cl.finetuning.phases import check_phases
from lightning_cl.finetuning.recipes import (
    RECIPES,
    generated_schedule,
    phases_from_yaml,
    recipe_phases,
    schedule_yaml,
    select_parameters,
)
from tests.finetuning.models import Tokens, bert, plain_mlp, torchvision_model

RESNET = torchvision_model("resnet18")
GROUPS = depth_groups(RESNET)


def test_linear_probe_and_full():
    assert recipe_phases("linear_probe", GROUPS) == [{"thaw": "head"}]
    assert recipe_phases("full", GROUPS) == [{"thaw": "all"}]


def test_lp_ft():
    assert recipe_phases("lp_ft", GROUPS) == [{"thaw": "head"}, {"thaw": "all", "epoch": 1}]
    assert recipe_phases("lp_ft", GROUPS, epoch=5, lr=0.1) == [
        {"thaw": "head"},
        {"thaw": "all", "epoch": 5, "lr": pytest.approx(0.01)},
    ]
    assert recipe_phases("lp_ft", GROUPS, step=7, lr=1, lr_factor=0.5)[1] == {"thaw": "all", "step": 7, "lr": 0.5}
    assert recipe_phases("lp_ft", GROUPS, fraction=0.5)[1] == {"thaw": "all", "fraction": 0.5}
    plateau = recipe_phases("lp_ft", GROUPS, plateau={"monitor": "val_loss", "patience": 2})[1]["plateau"]
    assert plateau == {"monitor": "val_loss", "mode": "min", "patience": 2, "min_delta": 0.0}


def test_gradual_unfreezing_goes_top_down():
    phases = recipe_phases("gradual_unfreeze", GROUPS)
    assert [phase["thaw"] for phase in phases] == ["head", "stage4", "stage3", "stage2", "stage1", "stem"]
    assert [phase.get("epoch") for phase in phases] == [None, 1, 2, 3, 4, 5]
    assert [p.get("step") for p in recipe_phases("gradual_unfreeze", GROUPS, every=50, unit="step")][1:3] == [50, 100]
    fractions = [p.get("fraction") for p in recipe_phases("gradual_unfreeze", GROUPS, every=0.1, unit="fraction")]
    assert fractions == [None, 0.1, 0.2, 0.3, 0.4, 0.5]
    rates = [phase["lr"] for phase in recipe_phases("gradual_unfreeze", GROUPS, lr=1.0)]
    assert rates == pytest.approx([2.6**-i for i in range(6)], rel=1e-3)
    assert recipe_phases("gradual_unfreeze", GROUPS, lr=1.0, lr_decay=1)[5]["lr"] == 1.0


def test_last_k_and_surgical_first():
    assert recipe_phases("last_k", GROUPS) == [{"thaw": ["stage4", "head"]}]
    assert recipe_phases("last_k", GROUPS, k=1) == [{"thaw": ["head"]}]
    assert recipe_phases("last_k", GROUPS, k=6) == [{"thaw": [group.name for group in GROUPS]}]
    assert recipe_phases("surgical_first", GROUPS) == [{"thaw": ["stem", "stage1", "head"]}]
    assert recipe_phases("surgical_first", GROUPS, head=False) == [{"thaw": ["stem", "stage1"]}]
    assert recipe_phases("surgical_first", GROUPS, k=2) == [{"thaw": ["stem", "stage1", "stage2", "head"]}]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("model", [plain_mlp(1), plain_mlp(2), nn.Sequential(*Tokens().blocks), nn.Linear(3, 2)])
def test_every_recipe_for_models_that_lack_a_stem_or_a_head(name: str, model: nn.Module):
    options = {"k": 1} if name == "last_k" else {}
    phases = recipe_phases(name, depth_groups(model), **options)
    for phase in phases:
        assert select_parameters(model, phase["thaw"])


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "vit_b_16", "convnext_tiny", "efficientnet_b0", "bert"])
def test_generated_schedules_are_short_and_complete(model: str):
    network = bert() if model == "bert" else torchvision_model(model)
    phases = generated_schedule(network)
    assert len(phases) <= 8
    thawed = [name for phase in phases for name, _ in select_parameters(network, phase["thaw"])]
    assert sorted(thawed) == sorted(name for name, _ in network.named_parameters())
    groups = depth_groups(network)
    assert phases_from_yaml(schedule_yaml(phases, groups)) == phases
    assert len(generated_schedule(network, max_groups=4)) <= 4
    assert generated_schedule(network, recipe="linear_probe") == [{"thaw": "head"}]


def test_the_yaml_says_what_the_groups_hold():
    text = schedule_yaml(generated_schedule(RESNET), GROUPS)
    assert "#   stage4  8,393,728       15  layer4\n" in text
    assert "#   stem        9,536        3  conv1, bn1\n" in text
    tokens = Tokens()
    assert "embed, token" in schedule_yaml([{"thaw": "all"}], depth_groups(tokens))
    mobile = depth_groups(torchvision_model("mobilenet_v2"), max_groups=3)
    assert "  features.1, features.2, features.3, features.4, ..., features.16, " in schedule_yaml(
        [{"thaw": "all"}], mobile
    )


@pytest.mark.parametrize(
    "phases",
    [
        [{"thaw": "re:^layer[34]: #x"}, {"thaw": ["type:BatchNorm2d", "re:'\"\\."], "step": 0, "lr": 1e-5}],
        [{"thaw": "head", "epoch": 0}, {"thaw": "all", "fraction": 1.0, "lr": 3e-4}],
        [{"thaw": "head"}, {"thaw": "all", "plateau": {"monitor": "val/loss", "mode": "max", "patience": 9}}],
    ],
)
def test_the_yaml_reads_back(phases: list[dict[str, Any]]):
    text = schedule_yaml(phases, GROUPS)
    assert phases_from_yaml(text) == check_phases(phases)
    assert yaml.safe_load(text)["phases"] == check_phases(phases)  # in any reader
    assert OmegaConf.to_container(OmegaConf.create(text)) == {"phases": check_phases(phases)}


def test_edited_yaml():
    assert phases_from_yaml("- thaw: head\n- {thaw: all, epoch: 3, lr: 1e-3}\n") == [
        {"thaw": "head"},
        {"thaw": "all", "epoch": 3, "lr": 0.001},
    ]
    with pytest.raises(InputError, match=r"a schedule that cannot be read.*HINT: lightning-cl schedule prints one"):
        phases_from_yaml("- thaw: [head")
    with pytest.raises(InputError, match=r"a schedule with \['phase'\]; expected YAML with a list under 'phases'"):
        phases_from_yaml("phase: []")
    with pytest.raises(InputError, match=r"a schedule that cannot be read.*expected YAML with a list"):
        phases_from_yaml("3")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lpft", {}, r"recipe 'lpft'; expected one of linear_probe, lp_ft, .*HINT: lightning-cl schedule"),
        ("full", {"every": 1}, r"recipe 'full' with every; expected no options"),
        ("lp_ft", {"after": 1}, r"'lp_ft' with after; expected epoch, step, fraction, plateau, lr, lr_factor"),
        ("lp_ft", {"epoch": 1, "step": 3}, r"phase 1 with epoch and step; expected one of epoch"),
        ("lp_ft", {"lr": 0}, r"lr=0 of recipe 'lp_ft'; expected a number > 0"),
        ("lp_ft", {"lr": 1, "lr_factor": "x"}, r"lr_factor='x' of recipe"),
        ("gradual_unfreeze", {"unit": "batch"}, r"unit='batch'; expected 'epoch', 'step' or 'fraction'"),
        ("gradual_unfreeze", {"every": 0}, r"every=0 of recipe"),
        ("gradual_unfreeze", {"every": 1.5}, r"phase 1: epoch=1.5; expected an integer >= 0"),
        ("gradual_unfreeze", {"every": 0.5, "unit": "fraction"}, r"every=0.5 of the training for 6 groups; .*<= 0.2"),
        ("last_k", {"k": 7}, r"k=7; expected an integer from 1 to 6 for this model"),
        ("last_k", {"k": 0}, r"k=0; expected"),
        ("surgical_first", {"k": 5}, r"k=5; expected an integer from 1 to 4"),
    ],
)
def test_wrong_recipes_are_refused(name: str, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        recipe_phases(name, GROUPS, **options)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], r"phases=\[\]; expected a list of phases. HINT"),
        ("head", r"phases='head'; expected a list"),
        (["head"], r"phase 0: 'head'; expected a mapping with 'thaw'"),
        ([{"freeze": "head"}], r"phase 0: .*expected a mapping with 'thaw'"),
        ([{"thaw": "head", "when": 1}], r"phase 0 with when; expected thaw, lr and one of epoch"),
        ([{"thaw": ""}], r"phase 0: thaw=''; expected a selector"),
        ([{"thaw": []}], r"phase 0: thaw=\[\]; expected"),
        ([{"thaw": "head"}, {"thaw": "all"}], r"phase 1 with no trigger; expected one of.*HINT: try epoch: 1"),
        ([{"thaw": "all", "epoch": -1}], r"phase 0: epoch=-1; expected an integer >= 0"),
        ([{"thaw": "all", "step": True}], r"phase 0: step=True; expected"),
        ([{"thaw": "all", "fraction": 1.5}], r"fraction=1.5; expected a number in \[0, 1\]"),
        ([{"thaw": "all", "lr": -1}], r"lr=-1; expected a number > 0, or none"),
        ([{"thaw": "all", "plateau": "val_loss"}], r"plateau='val_loss'; expected a mapping of monitor"),
        ([{"thaw": "all", "plateau": {"monitor": "a", "x": 1}}], r"expected a mapping of monitor"),
        ([{"thaw": "all", "plateau": {"monitor": "a", "mode": "up"}}], r"expected mode 'min' or 'max'"),
        ([{"thaw": "all", "plateau": {"monitor": "a", "patience": 0}}], r"expected a patience >= 1"),
        ([{"thaw": "all", "plateau": {"monitor": "a", "min_delta": -1}}], r"expected a min_delta >= 0"),
    ],
)
def test_wrong_phases_are_refused(phases: Any, message: str):
    with pytest.raises(InputError, match=message):
        check_phases(phases)
