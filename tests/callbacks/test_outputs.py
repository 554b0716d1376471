from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl.callbacks._hub import TrainingStepHub
from lightning_cl.callbacks._outputs import StepOutputs
from lightning_cl.errors import InputError
from tests.callbacks.logit_examples import Tuples, loader, weights
from tests.callbacks.replay_examples import fit


class Watch(Callback):
    """Keeps what it is shown of every step, and of the same batch once more."""

    def __init__(self, **options: Any) -> None:
        self.outputs = StepOutputs("Watch", **options)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.again: list[Any] = []
        self.hub: TrainingStepHub | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.module = pl_module
        self.outputs.attach(pl_module)
        self.hub = TrainingStepHub.attach(pl_module, self.listen, name="Watch", around=self.outputs.recording)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.outputs.detach()
        if self.hub is not None:
            self.hub.detach(self.listen)

    on_exception = teardown

    def listen(self, call: Callable[[Any], Any], batch: Any, batch_idx: int, output: Any) -> Any:
        self.seen.append(self.outputs.current(self.module, batch))
        self.again.append(self.outputs.of(call, self.module, batch))
        with torch.no_grad():
            self.alone = self.outputs.logits_only(call, self.module, batch)
        return output


def data(n: int = 2) -> list[Any]:
    return Tuples.data(0, torch.float32)[:n]


def run(module: Any, **options: Any) -> Watch:
    watch = Watch(**options)
    fit(module, loader(data()), watch, max_epochs=1)
    return watch


def step(function: Callable[..., Any], **members: Any) -> Any:
    """A module with another training step, which counts its forward passes."""

    class Other(Tuples):
        forwards = 0

        def forward(self, x: Tensor) -> Tensor:
            self.forwards += 1
            return super().forward(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return function(self, *batch)

    for name, member in members.items():
        setattr(Other, name, member)
    return Other()


STEPS: dict[str, Callable[..., Any]] = {
    "cross_entropy": lambda m, x, y: F.cross_entropy(m(x), y),
    "by keyword": lambda m, x, y: F.cross_entropy(target=y, input=m(x), label_smoothing=0.1),
    "class": lambda m, x, y: nn.CrossEntropyLoss(weight=torch.ones(4))(m(x), y),
    "log_softmax": lambda m, x, y: F.nll_loss(F.log_softmax(m(x), 1), y),
    "torch.log_softmax": lambda m, x, y: F.nll_loss(input=torch.log_softmax(m(x), dim=-1), target=y),
    "method": lambda m, x, y: nn.NLLLoss()(m(x).log_softmax(dim=1), y),
    "layer": lambda m, x, y: nn.NLLLoss()(nn.LogSoftmax(1)(m(x)), y),
    "a mapping": lambda m, x, y: {"loss": F.cross_entropy(m(x), y), "other": 1},
    "with a metric": lambda m, x, y: _with_metric(m, x, y),
    "more terms": lambda m, x, y: F.cross_entropy(m(x), y) + 0.1 * weights(m).norm(),
}


def _with_metric(module: Any, x: Tensor, y: Tensor) -> Tensor:
    logits = module(x)
    with torch.no_grad():
        module.log("uniform", F.cross_entropy(torch.zeros_like(logits), y))
    return F.cross_entropy(logits, y)


@pytest.mark.parametrize("case", STEPS)
def test_the_logits_of_the_users_own_step_with_their_graph(case: str):
    module = step(STEPS[case])
    watch = run(module)
    assert module.forwards == 2 * 3, "one for the step, one for each of the two passes asked for"
    for (logits, labels), (x, y) in zip(watch.seen, data(), strict=True):
        assert logits.shape == (6, 4)
        assert logits.requires_grad
        assert torch.equal(labels, y)
        assert len(x) == 6
    assert torch.equal(watch.again[-1], watch.seen[-1][0])
    assert torch.equal(watch.alone, watch.again[-1]), "before the softmax, whatever the step calls"
    assert watch.again[-1].requires_grad
    assert not watch.alone.requires_grad
    naive = step(STEPS[case])
    fit(naive, loader(data()), max_epochs=1)
    assert torch.equal(weights(naive), weights(module)), "looking on changes nothing"


def test_log_probabilities_alone_are_logits():
    def probabilities(module: Any, x: Tensor, y: Tensor) -> Tensor:
        z = module(x)
        return F.nll_loss(z - z.logsumexp(1, keepdim=True), y)

    watch = run(step(probabilities))
    torch.testing.assert_close(watch.seen[0][0].exp().sum(1), torch.ones(6))


def test_logits_fn_is_asked_first_and_all_logits_second():
    module = step(lambda m, x, y: F.cross_entropy(m(x), y))
    watch = run(module, logits_fn=lambda m, batch: (m.net(batch[0]) + 7, batch[1]))
    torch.testing.assert_close(watch.seen[0][0], module.__class__().net(data()[0][0]) + 7)
    own = step(
        lambda m, x, y: F.cross_entropy(m.all_logits((x, y))[0][:, :3], y),
        all_logits=lambda m, batch: (m(batch[0]), batch[1]),
    )
    watch = run(own)
    assert watch.seen[0][0].shape == watch.alone.shape == (6, 4)
    assert "all_logits" not in own.__dict__


def test_labels_without_a_column_are_no_error_where_only_logits_are_wanted():
    outputs, module = StepOutputs("x"), Tuples()
    for y in (torch.tensor([9, 9]), torch.tensor([-5, 9])):
        got = outputs.logits_only(lambda batch: module.training_step(batch, 0), module, (torch.ones(2, 3), y))
        assert got.shape == (2, 4)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (
            step(lambda m, x, y: F.cross_entropy(m(x), y) + F.cross_entropy(m(x), y)), {},
            r"2 losses with logits in one training_step of Other for Watch; expected one cross_entropy.*HINT: give log",
        ),
        (
            step(lambda m, x, y: F.binary_cross_entropy_with_logits(m(x)[:, 0], y.float())), {},
            r"a training_step of Other that showed no logits to Watch; expected a call of cross_entropy, or.*HINT",
        ),
        (
            step(lambda m, x, y: F.cross_entropy(m(x), y), all_logits=lambda m, batch: None), {},
            r"a training_step of Other that showed no logits to Watch; expected a call of its own all_logits.*HINT",
        ),
        (
            step(STEPS["class"]), {"logits_fn": lambda m, batch: m(batch[0])},
            r"logits_fn that returned a Tensor; expected \(logits, labels\). HINT: return two tensors",
        ),
        (
            step(STEPS["by keyword"]), {"change": lambda logits, labels: logits},
            r"label_smoothing=0.1 in a loss over a part of the classes; expected 0.*HINT: leave label_smoothing out",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(module: Any, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        run(module, **options)
    assert not {"training_step", "all_logits"} & module.__dict__.keys()


def test_a_step_that_skips_shows_nothing_and_is_no_error():
    outputs, module = StepOutputs("x"), Tuples()
    assert outputs.of(lambda batch: None, module, data()[0]) is None


@pytest.mark.parametrize("case", ["class", "log_softmax", "a mapping"])
def test_changed_logits_are_what_the_users_loss_is_computed_of(case: str):
    module, by_hand = step(STEPS[case]), Tuples()
    watch = Watch(change=lambda logits, labels: logits * 0.5)
    fit(module, loader(data(1)), watch, max_epochs=1)
    (x, y) = data(1)[0]
    loss = F.cross_entropy(by_hand.net(x) * 0.5, y)
    loss.backward()
    with torch.no_grad():
        for p in by_hand.parameters():
            p -= 0.1 * p.grad
    torch.testing.assert_close(weights(module), weights(by_hand))
    torch.testing.assert_close(watch.seen[0][0], Tuples().net(x))


def test_two_that_listen_to_all_logits_do_not_lose_each_other():
    class Own(Tuples):
        def all_logits(self, batch: Any) -> Any:
            return self(batch[0]), batch[1]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(*self.all_logits(batch))

    one, two, module = Watch(), Watch(), Own()
    fit(module, loader(data()), one, two, max_epochs=1)
    assert len(one.seen) == len(two.seen) == 2
    assert torch.equal(one.seen[1][0], two.seen[1][0])
    fit(module, loader(data()), two, max_epochs=1)
    assert (len(one.seen), len(two.seen)) == (2, 4)
