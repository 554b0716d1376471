"""What the short form trains first: the head that the depth groups have, else the last Linear layer."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import FreezingSchedule, depth_groups
from lightning_cl._compat import seeded
from lightning_cl.callbacks._freezing_plan import by_name
from lightning_cl.errors import InputError
from lightning_cl.finetuning import replace_head
from lightning_cl.finetuning.recipes import select_parameters
from tests.callbacks.freezing_examples import largest_difference, train, weights
from tests.finetuning.models import bert, plain_mlp, timm_model, torchvision_model


def first(module: nn.Module, groups: Any = None) -> list[str]:
    """What is trained from the start."""
    return list(by_name(module, "all_but_head", 1, groups=groups).parts[0].parameters)


@pytest.mark.parametrize(
    ("build", "name", "expected"),
    [
        (torchvision_model, "resnet18", ["fc.weight", "fc.bias"]),
        (torchvision_model, "squeezenet1_0", ["classifier.1.weight", "classifier.1.bias"]),
        (timm_model, "resnetv2_50x1_bit", ["head.fc.weight", "head.fc.bias"]),
        (
            timm_model,
            "deit_tiny_distilled_patch16_224",
            ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"],
        ),
        (lambda _: bert(layers=2), "bert", ["classifier.weight", "classifier.bias"]),
        (lambda _: plain_mlp(3), "mlp", ["7.weight", "7.bias"]),
    ],
    ids=["resnet18", "squeezenet1_0", "resnetv2_50x1_bit", "deit_tiny_distilled", "bert", "mlp"],
)
def test_it_is_the_head_of_the_recipes(build: Any, name: str, expected: list[str]):
    model = build(name)
    assert first(model) == expected == [name for name, _ in select_parameters(model, "head")]


def test_a_new_head_of_a_distilled_vit_is_trained_first():
    timm = pytest.importorskip("timm")
    model = replace_head(timm.create_model("deit_tiny_distilled_patch16_224", depth=1), ["a", "b"])
    assert first(model) == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]


class Tied(nn.Module):
    """A language model's parts, whose output may have a bias of its own."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embed, self.mix, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=bias)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize(("bias", "expected"), [(True, ["embed.weight", "out.bias"]), (False, ["embed.weight"])])
def test_a_tied_weight_is_the_heads(bias: bool, expected: list[str]):
    assert first(Tied(bias)) == expected


def test_without_a_head_among_the_groups_it_is_the_last_linear_layer():
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    blocks = nn.Sequential(Mixes(), Mixes())
    assert [group.name for group in depth_groups(blocks)] == ["stem", "stage1"]
    assert first(blocks) == ["1.two.weight", "1.two.bias"]
    assert first(nn.Sequential(nn.LazyLinear(3), nn.LazyLinear(2))) == ["1.weight", "1.bias"]


def test_groups_of_ones_own_say_what_the_head_is():
    groups = {"bottom": "re:^1$", "top": ["re:^4$", "re:^7$"]}
    assert first(plain_mlp(3), groups) == ["4.weight", "4.bias", "7.weight", "7.bias"]
    with pytest.raises(InputError, match=r"groups=\[\]; expected a list of DepthGroup"):
        first(plain_mlp(3), [])


class NoLinear(LightningModule):
    """Ends in a convolution, as SqueezeNet does."""

    def __init__(self) -> None:
        super().__init__()
        with seeded(0):
            self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.classifier = nn.Sequential(nn.Dropout(0.0), nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.classifier(self.features(batch[0])), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def test_finding_it_draws_nothing_and_a_resume_is_exact(tmp_path: Any):
    state = torch.get_rng_state()
    assert first(NoLinear()) == ["classifier.1.weight", "classifier.1.bias"]
    assert torch.equal(torch.get_rng_state(), state)
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole, start = NoLinear(), NoLinear()
    train(whole, FreezingSchedule(table=False), saver, enable_checkpointing=True)
    early = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["state_dict"]
    moved = {name for name, value in weights(start).items() if not torch.equal(value, early[name])}
    assert moved == {"classifier.1.weight", "classifier.1.bias"}
    for step in (2, 4, 6):
        again = NoLinear()
        train(again, FreezingSchedule(table=False), resume=str(tmp_path / f"step={step}.ckpt"))
        assert largest_difference(weights(whole), weights(again)) == 0.0
    schedule = FreezingSchedule(until_epoch=None, table=False)
    with schedule.as_fitted(whole):
        assert [p.requires_grad for p in whole.parameters()] == [False] * 6 + [True] * 2
