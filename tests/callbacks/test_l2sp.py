"""L2-SP inside real Trainers, against a plain loop with its two quadratics by autograd."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl import L2SP, FineTuningModule
from lightning_cl.errors import InputError
from lightning_cl.finetuning import replace_head
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.path_examples import Double, Loop, lightning
from tests.callbacks.replay_examples import fit

SHARED = ("net.0.weight", "net.0.bias")


class Oracle(Loop):
    """In the paper's words: alpha and beta, both with a half."""

    def __init__(self, alpha: float, beta: float, optimizer: str) -> None:
        super().__init__(optimizer)
        self.alpha, self.beta, self.pretrained = alpha, beta, self.values()

    def penalty(self) -> Tensor:
        shared = sum(((p - a) ** 2).sum() for p, a in zip(self.parameters[:2], self.pretrained[:2], strict=True))
        head = sum((p**2).sum() for p in self.parameters[2:])
        return self.alpha / 2 * shared + self.beta / 2 * head


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_a_fit_and_three_of_them_end_with_the_weights_of_a_plain_loop(tasks: int, optimizer: str):
    oracle = Oracle(2.0, 0.5, optimizer)
    oracle.learn(tasks=tasks, epochs=2)
    l2sp = L2SP(2.0, beta=0.5)
    module = lightning(l2sp, optimizer, tasks=tasks)
    for got, expected in zip(module.parameters(), oracle.parameters, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    naive = Loop(optimizer)
    naive.learn(tasks=tasks, epochs=2)
    assert float((naive.module.weights - module.weights).abs().max()) > 1e-3, "the penalty does something"
    for name, value in zip(l2sp.anchor, oracle.pretrained, strict=True):
        assert torch.equal(l2sp.anchor[name], value if name in SHARED else torch.zeros_like(value))


def test_the_first_step_pulls_the_head_already():
    before, after = Gradients(), Gradients()
    module, l2sp = Net(), L2SP(3.0, beta=0.25)
    fit(module, data(0), before, l2sp, after, max_steps=1)
    added = [b - a for a, b in zip(before.seen[0], after.seen[0], strict=True)]
    assert not any(gradient.any() for gradient in added[:2])
    for gradient, parameter in zip(added[2:], after.at[0][2:], strict=True):
        torch.testing.assert_close(gradient, 0.25 * parameter, rtol=1e-4, atol=1e-6)


class Named(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.last = nn.Linear(3, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


@pytest.mark.parametrize(
    ("module", "head", "expected"),
    [
        (Net, None, {"net.2.weight", "net.2.bias"}),
        (Named, None, {"head.weight", "head.bias"}),
        (Net, r"net\.0", {"net.0.weight", "net.0.bias"}),
        (Named, [r"^last\.weight", r"net\.2\.bias"], {"last.weight", "net.2.bias"}),
        (Net, [], set()),
    ],
)
def test_which_parameters_are_the_head(module: Any, head: Any, expected: set[str], caplog: pytest.LogCaptureFixture):
    made, l2sp = module(), L2SP(1.0, beta=0.5, head=head)
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        l2sp.consolidate(None, made)
    assert {name for name, value in l2sp.importance.items() if float(value.max()) == 0.5} == expected
    said = [record.getMessage() for record in caplog.records if "towards zero" in record.getMessage()]
    assert said == [
        f"L2SP: {', '.join(sorted(expected)) or 'none'} towards zero, the others towards their present values"
    ]


def test_consolidation_before_the_first_fit_says_what_is_pretrained():
    pretrained, module, l2sp = Net(), Net(), L2SP(1.0)
    with torch.no_grad():
        pretrained.net[0].weight += 1
    l2sp.consolidate(None, pretrained)
    fit(module, data(0), l2sp)
    assert torch.equal(l2sp.anchor["net.0.weight"], pretrained.net[0].weight)


def test_what_thaws_is_pulled_to_where_it_was():
    class Thaws(Double):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    module, l2sp = Thaws("Adam"), L2SP(2.0, beta=0.5)
    module.net[0].requires_grad_(False)
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    before, after = Gradients2(), Gradients2()
    fit(module, data(0, dtype=torch.float64), before, l2sp, after)
    assert [len(seen) for seen in after.seen] == [2] * 4 + [4] * 4
    for own, both, at in zip(before.seen, after.seen, after.at, strict=True):
        for name in own:
            pull = 2.0 * (at[name] - start[name]) if name in SHARED else 0.5 * at[name]
            torch.testing.assert_close(both[name] - own[name], pull, rtol=1e-6, atol=1e-12)


class Gradients2(Gradients):
    """By name, of what is trainable."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        trainable = {name: p for name, p in pl_module.named_parameters() if p.grad is not None}
        self.seen.append({name: p.grad.clone() for name, p in trainable.items()})  # type: ignore[arg-type]
        self.at.append({name: p.detach().clone() for name, p in trainable.items()})  # type: ignore[arg-type]


def test_rows_and_parameters_that_come_later_are_pulled_to_zero():
    module, l2sp = Named(), L2SP(2.0, beta=0.5)
    fit(module, data(0), l2sp)
    anchor = l2sp.anchor["net.0.weight"].clone()
    module.net[0], module.net[2], module.new = nn.Linear(4, 9), nn.Linear(9, 3), nn.Linear(2, 2)
    fit(module, data(1), l2sp)
    assert torch.equal(l2sp.anchor["net.0.weight"][:8], anchor)
    assert not l2sp.anchor["net.0.weight"][8:].any()
    assert l2sp.importance["net.0.weight"][:, 0].tolist() == [1.0] * 8 + [0.25]
    assert bool((l2sp.importance["new.weight"] == 0.25).all())
    assert not l2sp.anchor["new.weight"].any()


def test_a_growing_head_is_pulled_to_zero_in_all_its_rows():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh())
    backbone.feature_dim = 6
    module, l2sp = FineTuningModule(backbone, input_shape=(4,), class_names=["a", "b", "c"]), L2SP(1.0, beta=0.5)
    fit(module, data(0), l2sp)
    module.learn_classes(["a", "b", "c", "d"])
    fit(module, data(0), l2sp)
    assert l2sp.importance["head.weight"].shape == (4, 6)
    assert bool((l2sp.importance["head.weight"] == 0.5).all())
    assert not l2sp.anchor["head.weight"].any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_importance_has_the_dtype_that_was_asked_for(dtype: Any):
    l2sp = L2SP(1.0, importance_dtype=dtype)
    fit(Net(), data(0), l2sp)
    assert {value.dtype for value in l2sp.importance.values()} == {getattr(torch, dtype)}
    assert {value.dtype for value in l2sp.anchor.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": "auto"}, r"lambda_='auto' with L2SP; expected a number. HINT: try lambda_=0.01"),
        ({"beta": -1}, r"beta=-1; expected a finite number >= 0. HINT: beta=0.01 is the default"),
        ({"head": "("}, r"head='\(' \(.*\); expected a regular expression, or a list of them. HINT: head='fc'"),
        ({"importance_path": "file"}, r"importance_path with L2SP; expected .* HINT: take EWC\(importance_path=...\)"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        L2SP(**{"lambda_": 1.0, **options})


class Convolution(Net):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(1, 3, 4), nn.Flatten())


@pytest.mark.parametrize(
    ("module", "head", "message"),
    [
        (Net, "classifier", r"head='classifier'; expected a name of some parameter. HINT: some are net.0.weight"),
        (
            Convolution,
            None,
            r"Convolution without a head or an nn.Linear; expected a head that can be found. HINT: give",
        ),
    ],
)
def test_a_head_that_is_not_found_is_refused(module: Any, head: Any, message: str):
    with pytest.raises(InputError, match=message):
        L2SP(1.0, head=head).consolidate(None, module())


class Before(Net):
    """The head is defined first; the last Linear layer is the body's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"fc": nn.Linear(4, 2), "body": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})


@pytest.mark.parametrize("head", [None, "linear", "mlp", "cosine"])
def test_a_replaced_head_is_the_head_and_no_pretrained_layer_is(head: Any):
    made, l2sp = Before() if head is None else Net(), L2SP(1.0, beta=0.5)
    if head is not None:
        replace_head(made.net, 3, name="2", head=head)
    l2sp.consolidate(None, made)
    where = "net.fc." if head is None else "net.2."
    expected = {name for name, _ in made.named_parameters() if name.startswith(where)}
    assert {name for name, value in l2sp.importance.items() if float(value.max()) == 0.5} == expected
