"""What callbacks give to a memory's policy, and memories of references."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl.callbacks._sample_facts import SampleFacts
from lightning_cl.callbacks.replay import Replay
from lightning_cl.errors import InputError
from lightning_cl.functional.herding import herding_order
from lightning_cl.memory.policies import POLICIES
from tests.callbacks.replay_examples import Classifier, Numbered, as_dict, fit, loader


def herd(features: Tensor, m: int) -> Tensor:
    return herding_order(nn.functional.normalize(features.double(), dim=1), m)


def stored(replay: Replay) -> Tensor:
    return replay.memory.at(slice(0, len(replay.memory)))["0"][:, 0].long()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_by_its_name(policy: str):
    weights = {}
    for name in (policy, None):
        module, callbacks = Classifier(), [Replay(8, policy=policy)] if name else []
        torch.manual_seed(1)
        for task in range(2):
            fit(module, loader(task), *callbacks, max_epochs=1)
        weights[name] = module.weights
        if name:
            assert len(callbacks[0].memory) == 8
    assert not torch.equal(weights[policy], weights[None])


def test_tasks_are_counted():
    replay, module = Replay(9, policy="task_balanced"), Classifier()
    for task in range(3):
        fit(module, loader(task), replay, max_epochs=1)
    assert (stored(replay) // 100).bincount().tolist() == [3, 3, 3]


def test_herding_sees_the_features_of_the_whole_task():
    replay, module = Replay(6, policy="herding"), Classifier()
    fit(module, loader(0), replay, max_epochs=1)
    data = Numbered(0)
    module.eval()
    with torch.no_grad():
        features = module.net[:3](data.x[:, 1:])
    classes = [(data.y == c).nonzero().flatten() for c in (0, 1)]
    expected = torch.cat([members[herd(features[members], 3)] for members in classes])
    assert sorted(stored(replay).tolist()) == sorted(expected.tolist())


def test_features_of_a_backbone_or_of_a_function():
    class WithBackbone(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(4, 5)

    module = WithBackbone()
    batch = next(iter(loader(0)))
    found = SampleFacts(frozenset({"features"}))(module, batch)["features"]
    torch.testing.assert_close(found, module.backbone(batch[0]))
    found = SampleFacts(frozenset({"features"}), lambda module, batch: batch[0][:, None])(module, batch)["features"]
    assert torch.equal(found, batch[0])


def test_losses_are_those_of_each_sample():
    module, batch = Classifier(), next(iter(loader(0)))
    module.train()
    found = SampleFacts(frozenset({"losses"}))(module, batch)["losses"]
    assert module.training
    assert module.seen == [], "nothing of the module is changed"
    module.eval()
    x, y = batch
    expected = nn.functional.cross_entropy(module.net(x[:, 1:]), y, reduction="none")
    torch.testing.assert_close(found, expected)

    class Plain(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x[:, 1:])

    plain = Plain().eval()
    torch.testing.assert_close(SampleFacts(frozenset({"losses"}))(plain, batch)["losses"], expected)
    given = SampleFacts(frozenset({"losses"}), losses_fn=lambda module, batch: batch[0][:, 0])(module, batch)
    assert torch.equal(given["losses"], x[:, 0])


def test_facts_that_are_not_to_be_had():
    class NoLinear(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten())

    class Skips(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    batch = next(iter(loader(0)))
    with pytest.raises(InputError, match=r"NoLinear without a backbone, and.*HINT: give features_fn"):
        SampleFacts(frozenset({"features"}))(NoLinear(), batch)
    with pytest.raises(InputError, match=r"Skips.training_step that returned no loss.*HINT: give losses_fn"):
        SampleFacts(frozenset({"losses"}))(Skips(), batch)
    with pytest.raises(InputError, match=r"losses of shape \(2,\) for 6 samples; expected one row.*HINT"):
        SampleFacts(frozenset({"losses"}), losses_fn=lambda module, batch: torch.zeros(2))(Skips(), batch)
    with pytest.raises(InputError, match=r"fill='step' with policy='herding'; expected fill='consolidate'. HINT"):
        Replay(5, policy="herding", fill="step")
    with pytest.raises(InputError, match=r"fill='step' with stores='references'; expected.*HINT"):
        Replay(5, stores="references", fill="step")


@pytest.mark.parametrize("policy", ["task_balanced", "loss_aware"])
def test_step_fill_knows_what_the_policy_wants(policy: str):
    replay, module = Replay(100, policy=policy, fill="step"), Classifier()
    for task in range(2):
        fit(module, loader(task), replay, max_epochs=1)
    assert replay.memory.n_seen == 48


def test_references_train_exactly_as_samples_do():
    weights = []
    for stores in ("samples", "references"):
        replay, module = Replay(10, stores=stores, seed=2), Classifier()
        torch.manual_seed(1)
        for task in range(3):
            fit(module, DataLoader(Numbered(task), batch_size=6, shuffle=True), replay, max_epochs=1)
        weights.append(module.weights)
        assert replay.replayed == 2 * 24
    assert torch.equal(*weights)


def test_references_to_data_that_are_gone_or_served_otherwise():
    replay, module = Replay(10, stores="references"), Classifier()
    fit(module, loader(0), replay, max_epochs=1)
    state = replay.state_dict()
    again = Replay(10, stores="references")
    again.load_state_dict(state)
    with pytest.raises(InputError, match=r"refers to data of task 0, which are not there.*HINT: call"):
        fit(module, loader(1), again, max_epochs=1)
    again.memory.bind(0, Numbered(0))
    fit(module, loader(1), again, max_epochs=1)

    class Reversed(Numbered):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            return self.x[index] + torch.rand(()), self.y[index]

    with pytest.raises(InputError, match=r"a loader of Reversed that does not serve its data in order.*HINT: define"):
        fit(module, DataLoader(Reversed(0), batch_size=6), Replay(10, stores="references"), max_epochs=1)


def test_deleting_through_the_callback():
    def numbered(x: Tensor, y: Tensor) -> Any:
        return {**as_dict(x, y), "sample_id": x[:, 0].long()}

    replay, module = Replay(100), Classifier(as_dict)
    fit(module, loader(0, numbered), replay, max_epochs=1)
    assert replay.memory.delete([3, 7]) == 2
    fit(module, loader(0, numbered), replay, max_epochs=1)
    assert not {3, 7} & set(replay.memory.ids.tolist())


@pytest.mark.parametrize("key", ["label_fn", "id_fn", "features_fn", "losses_fn"])
def test_what_is_no_function_is_refused(key: str):
    with pytest.raises(InputError, match=rf"^{key}=3; expected a function, or None. HINT: leave it out"):
        Replay(8, **{key: 3})


def test_what_filling_would_refuse_is_refused_before_the_training():
    trained: list[int] = []

    class Bare(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            trained.append(batch_idx)
            return super().training_step(batch, batch_idx)

    class Augmented(Numbered):
        def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
            x, y = super().__getitem__(index)
            return x + torch.rand(()), y

    losses = Replay(8, policy="loss_aware", losses_fn=lambda module, batch: torch.zeros(1))
    with pytest.raises(InputError, match=r"losses of shape \(1,\) for 6 samples; .*HINT: give losses_fn"):
        fit(Bare(), loader(0), losses)
    with pytest.raises(InputError, match="a loader of Augmented that does not serve its data in order"):
        fit(Bare(), DataLoader(Augmented(0), batch_size=6), Replay(8, stores="references"))
    assert not trained
