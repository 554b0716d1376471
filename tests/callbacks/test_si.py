"""SI inside real Trainers, against a plain loop that computes its penalty by autograd."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_cl import SI
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.path_examples import OPTIMIZERS, Double, Loop, lightning
from tests.callbacks.replay_examples import fit

XI = 0.05


class Oracle(Loop):
    """SI as its paper says it, in Zenke's convention: c, not lambda."""

    def __init__(self, c: float, kind: str, optimizer: str, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self.c, self.kind = c, kind
        self.w, self.omega, self.start, self.anchor = self.zeros(), self.zeros(), self.values(), self.values()

    def penalty(self) -> Tensor:
        terms = zip(self.parameters, self.omega, self.anchor, strict=True)
        return self.c * sum((omega * (p - a) ** 2).sum() for p, omega, a in terms)

    def step(self, before: list[Tensor], own: list[Tensor], total: list[Tensor]) -> None:
        for i, p in enumerate(self.parameters):
            self.w[i] -= (total if self.kind == "total" else own)[i] * (p.detach() - before[i])

    def end(self, loader: Any) -> None:
        for i, p in enumerate(self.parameters):
            self.omega[i] += (self.w[i] / ((p.detach() - self.start[i]) ** 2 + XI)).relu()
        self.w, self.start, self.anchor = self.zeros(), self.values(), self.values()


@pytest.mark.parametrize("kind", ["total", "task"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("case", [{}, {"clip": 1.0, "accumulate": 2}])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(case: dict[str, Any], optimizer: str, kind: Any):
    oracle = Oracle(10.0, kind, optimizer, **case)
    oracle.learn(tasks=3, epochs=2)
    si = SI(20.0, xi=XI, path_gradient=kind)
    options = {"gradient_clip_val": case["clip"], "accumulate_grad_batches": case["accumulate"]} if case else {}
    module = lightning(si, optimizer, **options)
    for got, expected in zip(module.parameters(), oracle.parameters, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    for got, expected in zip(si.importance.values(), oracle.omega, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    naive = Loop(optimizer, **case)
    naive.learn(tasks=3, epochs=2)
    assert float((naive.module.weights - module.weights).abs().max()) > 1e-3, "the penalty does something"


class Proximal(Oracle):
    """The penalty is a step of its own behind SGD's; its gradient counts in W all the same."""

    def step(self, before: list[Tensor], own: list[Tensor], total: list[Tensor]) -> None:
        with torch.no_grad():
            for p, omega, anchor in zip(self.parameters, self.omega, self.anchor, strict=True):
                s = 0.05 * 2 * self.c * omega
                p.copy_((p + s * anchor) / (1 + s))
        super().step(before, own, total)

    def _step(self, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
        loss = sum(nn.functional.cross_entropy(self.module.net(x), y) for x, y in batches)
        own = list(torch.autograd.grad(loss, self.parameters, retain_graph=True))
        total = list(torch.autograd.grad(loss + self.penalty(), self.parameters))
        for parameter, gradient in zip(self.parameters, own, strict=True):
            parameter.grad = gradient.clone()
        before = self.values()
        optimizer.step()
        self.step(before, own, total)


@pytest.mark.parametrize("kind", ["total", "task"])
def test_the_proximal_step_is_part_of_the_movement(kind: Any):
    oracle = Proximal(100.0, kind, "SGD")
    oracle.learn(tasks=3, epochs=2)
    si = SI(200.0, xi=XI, path_gradient=kind, apply="proximal")
    module = lightning(si, "SGD")
    torch.testing.assert_close(module.weights, oracle.module.weights, rtol=0, atol=1e-9)
    for got, expected in zip(si.importance.values(), oracle.omega, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("kind", ["total", "task"])
def test_the_proximal_form_holds_at_any_strength(kind: Any, optimizer: str):
    si, module = SI(1e13, path_gradient=kind, apply="proximal"), Net(optimizer=optimizer)
    fit(module, data(0), si)
    first = module.weights
    for task in (1, 2):
        fit(module, data(task), si)
    assert float((module.weights - first).abs().max()) < 1e-3
    assert all(bool(value.isfinite().all()) for value in si.importance.values())


def test_manual_optimization_is_the_same():
    automatic, manual = SI(20.0), SI(20.0)
    expected = lightning(automatic, "Adam")
    got = lightning(manual, module=Double("Adam", manual=True))
    assert torch.equal(got.weights, expected.weights)
    assert all(torch.equal(manual.importance[name], automatic.importance[name]) for name in manual.importance)


class Steps(SI):
    """Keeps what a step was made of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(5.0, **options)
        self.steps: list[tuple[Tensor, Tensor]] = []

    def _after_penalty(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        super()._after_penalty(module, optimizer, named)
        self.before = {name: (p.grad.clone(), p.detach().clone()) for name, p in named.items()}

    def _after_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        super()._after_step(module, optimizer, named)
        self.steps.append((self.before, {name: p.detach().clone() for name, p in named.items()}))

    def path(self, name: str) -> Tensor:
        """The path integral so far, in a loop of its own."""
        return sum(-before[name][0].double() * (after[name] - before[name][1]).double() for before, after in self.steps)


def test_bf16_mixed_sums_up_in_fp32():
    si = Steps(consolidate="manual")
    fit(Net(), data(0), si, precision="bf16-mixed")
    assert len(si.steps) == 8
    for name, value in si._path.integral.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), si.path(name), rtol=1e-5, atol=1e-8)


def test_a_step_that_the_gradient_scaler_skips_counts_for_nothing():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    si, module = Steps(consolidate="manual"), Net()
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(module, data(0), si, plugins=[plugin], max_epochs=8)
    assert 0 < len(si.steps) < 32
    for name, value in si._path.integral.items():
        assert bool(value.isfinite().all())
        torch.testing.assert_close(value.double(), si.path(name), rtol=1e-5, atol=1e-8)
    si.consolidate(None, module)


def test_a_parameter_that_thaws_counts_from_there():
    class Thaws(Double):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    module, si = Thaws("Adam"), Steps(consolidate="manual")
    start = [p.detach().clone() for p in module.parameters()]
    fit(module, data(0, dtype=torch.float64), si)
    assert [len(after) for _, after in si.steps] == [2] * 4 + [4] * 4
    for (name, p), begun in zip(module.named_parameters(), start, strict=True):
        steps = [s for s in si.steps if name in s[1]]
        w = sum(-before[name][0] * (after[name] - before[name][1]) for before, after in steps)
        si.importance[name] = (w / ((p.detach() - begun) ** 2 + 0.1)).relu()
    expected, si.importance = si.importance, {}
    si.consolidate(None, module)
    for name, value in expected.items():
        torch.testing.assert_close(si.importance[name], value)


def test_rows_that_a_head_gains_start_where_they_are():
    module, si = Double("Adam"), SI(20.0)
    lightning(si, module=module, tasks=1)
    old = si.importance["net.2.weight"].clone()
    head = nn.Linear(8, 5).double()
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = module.net[2].weight, module.net[2].bias
    module.net[2] = head
    fit(module, data(1, dtype=torch.float64), si)
    assert si.importance["net.2.weight"].shape == si.anchor["net.2.weight"].shape == (5, 8)
    assert bool((si.importance["net.2.weight"][:3] >= old).all()), "importances add up"
    assert torch.equal(si.anchor["net.2.weight"], module.net[2].weight)
    # in the same task too, where the path of the old rows goes on
    si.consolidate_when = "manual"
    fit(module, data(2, dtype=torch.float64), si)
    path = si._path.integral["net.2.weight"].clone()
    module.net[2] = nn.Linear(8, 7).double()
    si._path.take(dict(module.named_parameters()), module.configure_optimizers())
    assert torch.equal(si._path.integral["net.2.weight"][:5], path)
    assert not si._path.integral["net.2.weight"][5:].any()
    assert torch.equal(si._path.start["net.2.weight"][5:], module.net[2].weight[5:])


class Rival(Double):
    """Two optimizers, one of them on the loss with its sign turned and ``maximize``."""

    def __init__(self) -> None:
        super().__init__(manual=True)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        for optimizer, sign in zip(self.optimizers(), (1, -1), strict=True):
            optimizer.zero_grad()
            self.manual_backward(sign * loss, retain_graph=True)
            optimizer.step()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        low, high = ([*self.net[i].parameters()] for i in (0, 2))
        return torch.optim.SGD(low, lr=0.05), torch.optim.Adam(high, lr=0.02, maximize=True)


def test_two_optimizers_one_of_which_maximizes():
    si, module = SI(20.0, xi=XI), Rival()
    lightning(si, module=module, tasks=2)
    oracle = Loop()
    low, high = oracle.parameters[:2], oracle.parameters[2:]
    w, omega, anchor, start = oracle.zeros(), oracle.zeros(), oracle.values(), oracle.values()
    for task in range(2):
        optimizers = [torch.optim.SGD(low, lr=0.05), torch.optim.Adam(high, lr=0.02)]
        for x, y in [*data(task, dtype=torch.float64)] * 2:
            for optimizer, own in zip(optimizers, ([0, 1], [2, 3]), strict=True):
                terms = zip(oracle.parameters, omega, anchor, strict=True)
                penalty = 10 * sum((o * (p - a) ** 2).sum() for p, o, a in terms)
                loss = nn.functional.cross_entropy(oracle.module.net(x), y) + penalty
                gradients = torch.autograd.grad(loss, oracle.parameters)
                before = oracle.values()
                for i in own:
                    oracle.parameters[i].grad = gradients[i]
                optimizer.step()
                for i in own:
                    w[i] -= gradients[i] * (oracle.parameters[i].detach() - before[i])
        for i, p in enumerate(oracle.parameters):
            omega[i] = omega[i] + (w[i] / ((p.detach() - start[i]) ** 2 + XI)).relu()
        w, start, anchor = oracle.zeros(), oracle.values(), oracle.values()
    torch.testing.assert_close(module.weights, oracle.module.weights, rtol=0, atol=1e-9)
    for got, expected in zip(si.importance.values(), omega, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_a_manual_task_lasts_over_fits_and_an_automatic_one_does_not():
    manual, automatic = Steps(consolidate="manual"), Steps()
    for si in (manual, automatic):
        module = Double("Adam")
        fit(module, data(0, dtype=torch.float64), si, max_epochs=1)
        fit(module, data(0, dtype=torch.float64), si, max_epochs=1)
    assert automatic.n_tasks == 2
    assert automatic._path.integral == {}
    name = "net.0.weight"
    torch.testing.assert_close(manual._path.integral[name], manual.path(name))
    manual.consolidate(None, module)
    with pytest.raises(InputError, match=r"SI without a step of training since .* HINT: take EWC or MAS"):
        manual.consolidate(None, module)


def test_what_a_stopped_fit_gathered_is_no_part_of_the_next_task():
    class Stops(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.trainer.should_stop = batch_idx == 2
            return super().training_step(batch, batch_idx)

    si, module = Steps(), Stops()
    fit(module, data(0), si)
    assert si.n_tasks == 0
    assert len(si.steps) == 3
    si.steps.clear()
    module = Net()
    before = [p.detach().clone() for p in module.parameters()]
    fit(module, data(0), si)
    for (name, p), start in zip(module.named_parameters(), before, strict=True):
        expected = (si.path(name) / ((p.detach() - start) ** 2 + 0.1)).relu()
        torch.testing.assert_close(si.importance[name].double(), expected.double(), rtol=1e-4, atol=1e-7)


def test_needs_no_data_at_consolidation():
    class Pairs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], batch_idx)

    si = SI(1.0)
    fit(Pairs(), {"a": data(0), "b": data(1)}, si)
    assert si.n_tasks == 1


def test_two_tensors_per_parameter_between_tasks():
    si, sizes = SI(1.0), []
    module = Net()
    for task in range(3):
        fit(module, data(task), si, max_epochs=1)
        state = si.state_dict()
        tensors = [*state["importance"].values(), *state["anchor"].values(), *state["path"]["integral"].values()]
        sizes.append((len(tensors), sum(t.numel() * t.element_size() for t in tensors), si.nbytes))
    n = sum(p.numel() for p in module.parameters())
    assert sizes == [(8, 2 * 4 * n, 2 * 4 * n)] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"xi": 0.0}, r"xi=0.0; expected a finite number > 0. HINT: xi=0.1 is the default"),
        ({"xi": "small"}, r"xi='small'; expected a finite number > 0"),
        ({"path_gradient": "own"}, r"path_gradient='own'; expected 'total' or 'task'. HINT: leave it out for 'total'"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        SI(1.0, **options)
