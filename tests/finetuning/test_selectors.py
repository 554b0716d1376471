"""Selectors: which parameters the words of a schedule mean."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl import depth_groups
from lightning_cl.errors import InputError
from lightning_cl.finetuning import FineTuningModule, select_parameters
from tests.finetuning.examples import module
from tests.finetuning.models import Tokens, plain_mlp, torchvision_model


def chosen(model: nn.Module, selector: Any, **options: Any) -> list[str]:
    found = select_parameters(model, selector, **options)
    named = dict(model.named_parameters())
    assert all(named[name] is parameter for name, parameter in found)
    return [name for name, _ in found]


def test_groups_all_and_all_but_head():
    model = torchvision_model("resnet18")
    names = [name for name, _ in model.named_parameters()]
    assert chosen(model, "head") == ["fc.weight", "fc.bias"]
    assert chosen(model, "stem") == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert chosen(model, "stage3") == [name for name in names if name.startswith("layer3.")]
    assert chosen(model, "all") == names
    assert chosen(model, "all_but_head") == names[:-2]
    assert chosen(model, ["head", "stem"]) == ["conv1.weight", "bn1.weight", "bn1.bias", "fc.weight", "fc.bias"]
    assert chosen(model, "stage1", groups=depth_groups(model, max_groups=3)) == names[3:-2]


def test_every_group_of_every_number_of_groups_covers_the_model_once():
    model = torchvision_model("efficientnet_b0")
    for most in (3, 5, 8):
        groups = depth_groups(model, max_groups=most)
        found = [name for group in groups for name in chosen(model, group.name, groups=groups)]
        assert sorted(found) == sorted(name for name, _ in model.named_parameters())


def test_regular_expressions_mean_whole_modules():
    model = torchvision_model("resnet18")
    layer4 = [name for name, _ in model.named_parameters() if name.startswith("layer4.")]
    assert chosen(model, r"re:^layer4$") == layer4  # an ancestor matches
    assert chosen(model, r"re:^layer4\.1\.bn2$") == ["layer4.1.bn2.weight", "layer4.1.bn2.bias"]
    with pytest.raises(InputError, match=r"'re:bn2.+weight', which matches nothing.*HINT: there are"):
        select_parameters(model, r"re:bn2\.weight")  # a parameter is no module
    assert chosen(Tokens(), "re:^token$") == ["token"]  # but stands beside them
    assert chosen(Tokens(), "re:^blocks.0") == [n for n, _ in Tokens().named_parameters() if n.startswith("blocks.0")]


def test_types_mean_whole_modules_and_subclasses():
    model = plain_mlp(3)
    norms = ["2.weight", "2.bias", "5.weight", "5.bias"]
    assert chosen(model, "type:BatchNorm1d") == norms
    assert chosen(model, "type:_BatchNorm") == norms
    assert chosen(model, "type:torch.nn.modules.batchnorm.BatchNorm1d") == norms
    resnet = torchvision_model("resnet18")
    assert chosen(resnet, "type:BasicBlock") == [n for n, _ in resnet.named_parameters() if n.startswith("layer")]
    with pytest.raises(InputError, match=r"'type:Module', which matches nothing"):
        select_parameters(model, "type:Module")


def test_twins_are_two_and_a_tied_parameter_is_one():
    twins = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for parameter in twins.parameters():
        nn.init.zeros_(parameter)
    assert chosen(twins, "re:^1$") == ["1.weight", "1.bias"]
    assert len(chosen(twins, "all")) == 6
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    assert chosen(tied, "re:^2$") == ["0.weight", "2.bias"]
    assert chosen(tied, "stem") == ["0.weight", "0.bias"]
    assert chosen(tied, "head") == ["2.bias"]
    shared = nn.Linear(2, 2)
    assert chosen(nn.Sequential(shared, nn.ReLU(), shared), "re:^2$") == ["0.weight", "0.bias"]


def test_a_head_that_grows():
    model: FineTuningModule = module(class_names=["a"])
    before = dict(select_parameters(model, "head"))
    model.learn_classes(["a", "b"])
    after = dict(select_parameters(model, "head"))
    assert before.keys() == after.keys() == {"head.weight", "head.bias"}
    assert after["head.weight"] is model.head.weight
    assert after["head.weight"] is not before["head.weight"]


def test_a_compiled_model():
    assert chosen(torch.compile(Tokens()), "head") == [  # type: ignore[arg-type]
        "_orig_mod.temperature",
        "_orig_mod.head.weight",
        "_orig_mod.head.bias",
    ]


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("haed", r"selector 'haed'; expected one of stem, stage1, .*HINT: did you mean 'head'\?"),
        ("stage9", r"selector 'stage9'; expected one of stem, .*all_but_head, re:PATTERN, type:Class"),
        ("layer4", r"HINT: re:layer4 would match names of modules"),
        ("re:layr4", r"'re:layr4', which matches nothing; .*HINT: there are layer4"),
        ("re:(", r"selector 're:\(' \(missing \).*HINT: try"),
        ("type:BatchNorm3d", r"'type:BatchNorm3d', which matches nothing.*HINT: there are BatchNorm2d"),
        ("re:", r"selector 're:'; expected one of"),
        ([], r"thaw=\[\]; expected a selector, or a list of them. HINT"),
        (None, r"thaw=None; expected a selector"),
        ([3], r"thaw=\[3\]; expected a selector"),
        ({"head": 1}, r"expected a selector"),
    ],
)
def test_what_matches_nothing_is_refused(selector: Any, message: str):
    with pytest.raises(InputError, match=message):
        select_parameters(torchvision_model("resnet18"), selector)
