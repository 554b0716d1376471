"""What is thawed: by hand-made gradients, and by digits whose inputs or labels have moved."""

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_cl import depth_groups, parameter_groups
from lightning_cl.errors import InputError
from lightning_cl.finetuning import check_phases
from lightning_cl.finetuning._auto_choice import decide
from lightning_cl.finetuning._probe import Probe
from lightning_cl.finetuning.auto_freeze import Choice, auto_phases, choose_groups
from lightning_cl.finetuning.depth_groups import DepthGroup
from lightning_cl.functional.gradient_norms import GroupNorms
from lightning_cl.streams import TaskLoader, TensorData, digits

Batches = list[tuple[Tensor, Tensor]]


class Net(nn.Module):
    """Two convolutions and a head."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()
        )
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.layer1(self.stem(x))))


class Logging(LightningModule):
    """As people write them: logs, and keeps what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(norm=True)
        self.seen: list[float] = []
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        self.seen.append(float(loss.detach()))
        self.calls += 1
        return {"loss": loss}


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    train = digits().train
    return train.batch(torch.arange(len(train)))[:2]


@pytest.fixture(scope="module")
def trained(data: tuple[Tensor, Tensor]) -> Net:
    """Digits from 900 of them."""
    x, y = data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(8):
            for rows in torch.randperm(900).split(50):
                optimizer.zero_grad()
                cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    return net


def batches_of(x: Tensor, y: Tensor, size: int = 64) -> Batches:
    return list(zip(x[900:].split(size), y[900:].split(size), strict=True))


def few(n: int = 4) -> Batches:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 1, 8, 8, generator=rng), torch.randint(0, 10, (8,), generator=rng)) for _ in range(n)]


def test_other_labels_need_the_head_only(trained: Net, data: tuple[Tensor, Tensor]):
    choice = choose_groups(trained, batches_of(data[0], 9 - data[1]))
    assert choice.groups == ("head",)
    assert choice.probed
    assert "no other group is trained" in choice.reason
    assert {row["why"] for row in choice.table[:-1]} == {"the head alone explains the labels"}


def test_noisy_inputs_need_the_features_and_most_of_all_the_first_layer(trained: Net, data: tuple[Tensor, Tensor]):
    noise = 0.5 * torch.randn(data[0].shape, generator=torch.Generator().manual_seed(1))
    choice = choose_groups(trained, batches_of(data[0] + noise, data[1]))
    assert {"stem", "head"} <= set(choice.groups)
    assert choice.rates["stem"] == 1.0 > choice.rates["stage1"]
    assert "so features are trained too" in choice.reason


def test_as_it_is_it_is_the_papers_criterion(trained: Net, data: tuple[Tensor, Tensor]):
    batches = batches_of(0.3 * data[0], data[1])
    choice = choose_groups(trained, batches, head="as_is", threshold=0.6)
    net = copy.deepcopy(trained).eval()
    ratios: dict[str, list[float]] = {"stem": [], "layer1": [], "fc": []}
    for x, y in batches[:8]:
        net.zero_grad()
        cross_entropy(net(x), y).backward()
        for name, found in ratios.items():
            parts = list(net.get_submodule(name).parameters())
            norms = [np.sqrt(sum(float(t.double().square().sum()) for t in side)) for side in (
                [p.grad for p in parts], [p.detach() for p in parts])]  # fmt: skip
            found.append(norms[0] / norms[1])
    expected = {name: float(np.mean(found)) for name, found in ratios.items()}
    assert [row["rgn"] for row in choice.table] == pytest.approx(list(expected.values()), rel=1e-6)
    largest = max(expected.values())
    assert [row["rate"] for row in choice.table] == pytest.approx([v / largest for v in expected.values()], rel=1e-6)
    assert [row["train"] for row in choice.table] == [v >= 0.6 * largest for v in expected.values()]
    assert sum(row["share"] for row in choice.table) == pytest.approx(1)
    assert not choice.probed


@pytest.mark.parametrize("head", ["probe", "as_is"])
def test_nothing_is_changed_and_a_second_call_gives_the_same(head: Any):
    module = Logging().train()
    module.net.drop.eval()
    module.net.stem[0].weight.requires_grad_(False)
    module.net.fc.bias.grad = torch.ones(10)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    storage = {name: p.data_ptr() for name, p in module.named_parameters()}
    flags = [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.modules()]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = choose_groups(module, few(), head=head)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert {name: p.data_ptr() for name, p in module.named_parameters()} == storage
    assert [(part.training, [p.requires_grad for p in part.parameters()]) for part in module.modules()] == flags
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert list(grads) == ["net.fc.bias"]
    assert torch.equal(grads["net.fc.bias"], torch.ones(10))
    assert (module.seen, module.calls) == ([], 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert choose_groups(module, few(), head=head) == first
    assert not list(module.net.fc._forward_hooks)


def test_a_frozen_group_is_compared_too(trained: Net, data: tuple[Tensor, Tensor]):
    net = copy.deepcopy(trained)
    free = choose_groups(net, batches_of(*data), head="as_is")
    net.stem.requires_grad_(False)
    assert choose_groups(net, batches_of(*data), head="as_is") == free


def test_phases_of_a_schedule(trained: Net, data: tuple[Tensor, Tensor]):
    noise = 0.5 * torch.randn(data[0].shape, generator=torch.Generator().manual_seed(1))
    batches = batches_of(data[0] + noise, data[1])
    phases, explanation = auto_phases(trained, batches)
    others = [name for name in choose_groups(trained, batches).groups if name != "head"]
    assert phases == [{"thaw": ["head"]}, {"thaw": others, "epoch": 1}]
    assert check_phases(phases)[1]["epoch"] == 1
    assert auto_phases(trained, batches, head_epochs=0)[0] == [{"thaw": [*others, "head"]}]
    only_head = auto_phases(trained, batches_of(data[0], 9 - data[1]))[0]
    assert only_head == [{"thaw": ["head"]}]
    lines = explanation.splitlines()
    assert lines[0].split() == ["group", "parameters", "RGN", "share", "train", "why"]
    assert [line.split()[0] for line in lines[1:4]] == ["stem", "stage1", "head"]
    assert lines[-1].startswith("The fitted head explains ")


@pytest.mark.parametrize(("loss", "said"), [(1.5, "75%"), (6.0, "none"), (7.62, "none")])
def test_a_head_that_explains_nothing_is_said_to(loss: float, said: str):
    groups = [DepthGroup(name, (), ()) for name in ("stem", "head")]
    norms = {group.name: GroupNorms(1.0, 1.0, 1.0) for group in groups}
    choice = decide(groups, norms, 0.5, Probe({}, loss, 6.0), "")
    assert choice.reason.startswith(f"The fitted head explains {said} of the held out labels' entropy: less than 90%")
    assert choice.groups == ("stem", "head")


def test_a_datamodule_and_a_loader_of_ours_go_on_where_they_were(trained: Net, data: tuple[Tensor, Tensor]):
    loader = TaskLoader(TensorData(*data), 50, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    before = loader.state_dict()
    auto_phases(trained, loader)
    assert loader.state_dict() == before

    class Module:
        def train_dataloader(self) -> TaskLoader:
            return TaskLoader(TensorData(*data), 50, shuffle=True)

    assert auto_phases(trained, Module()) == auto_phases(trained, TaskLoader(TensorData(*data), 50, shuffle=True))


def test_a_head_that_cannot_be_fitted_alone_is_taken_as_it_is():
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    batches = [(torch.randn(5, 4), torch.randn(5, 2)) for _ in range(2)]
    choice = choose_groups(module, batches, lambda m, b: (m(b[0]) - b[1]).square().mean())
    assert not choice.probed
    assert (
        choice.reason == "Gradients with the head as it is, because there are no integer labels beside logits (N, C)."
    )
    assert choose_groups(Net(), few(1)).reason.endswith("two batches are needed, one to fit on and one to judge by.")


def test_a_model_without_gradients_trains_its_head():
    choice = choose_groups(Net(), few(), lambda m, b: 0 * m(b[0]).sum(), head="as_is")
    assert (choice.groups, choice.table[-1]["why"]) == (("head",), "there is no gradient anywhere")
    assert isinstance(choice, Choice)


def test_a_mapping_with_its_own_loss():
    class Out:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    class HF(Net):
        def forward(self, pixel_values: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
            logits = super().forward(pixel_values)
            return Out(cross_entropy(logits, labels))

    choice = choose_groups(HF(), [{"pixel_values": x, "labels": y} for x, y in few()])
    assert choice.probed
    assert set(choice.rates) == {"stem", "stage1", "head"}


class Manual(Logging):
    automatic_optimization = False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_groups(Net(), few(), head="new"), r"head='new'; expected 'probe' or 'as_is'"),
        (lambda: choose_groups(Net(), few(), threshold=0), r"threshold=0; expected a number in \(0, 1\]"),
        (lambda: choose_groups(Net(), few(), max_batches=0), "max_batches=0; expected an integer >= 1"),
        (lambda: choose_groups(Net(), few(), groups=[]), r"groups=\[\]; expected the model's depth groups"),
        (lambda: choose_groups(Net(), []), "no batches; expected one at least"),
        (lambda: choose_groups(Net(), [torch.ones(2)]), "a batch of type Tensor for a Net without training_step"),
        (lambda: choose_groups(Manual(), few()), "Manual with automatic_optimization=False.*HINT: give loss_fn"),
        (lambda: choose_groups(Net(), few(), lambda m, b: torch.ones(())), "a loss without a gradient"),
        (
            lambda: choose_groups(Net(), few(), lambda m, b: m(b[0]).sum() * float("nan"), head="as_is"),
            "gradient norm nan.*expected finite gradients",
        ),
        (lambda: auto_phases(Net(), few(), head_epochs=-1), "head_epochs=-1; expected an integer >= 0"),
    ],
)
def test_what_it_refuses(call: Any, message: str):
    with pytest.raises(InputError, match=message):
        call()


def test_groups_may_be_given(trained: Net, data: tuple[Tensor, Tensor]):
    groups = depth_groups(trained, max_groups=None)
    assert choose_groups(trained, batches_of(*data), groups=groups) == choose_groups(trained, batches_of(*data))


def test_rates_are_multipliers_of_parameter_groups(trained: Net, data: tuple[Tensor, Tensor]):
    choice = choose_groups(trained, batches_of(0.3 * data[0], data[1]))
    made = parameter_groups(trained, 0.1, multipliers=choice.multipliers())
    rates = {id(parameter): group["lr"] for group in made for parameter in group["params"]}
    for name, part in (("stem", trained.stem), ("stage1", trained.layer1), ("head", trained.fc)):
        found = [rates[id(parameter)] for parameter in part.parameters()]
        assert found == pytest.approx([0.1 * choice.rates[name]] * len(found))
    nothing = choose_groups(Net(), few(), lambda m, b: 0 * m(b[0]).sum(), head="as_is")
    assert nothing.multipliers(0.01) == {"stem": 0.01, "stage1": 0.01, "head": 0.01}
