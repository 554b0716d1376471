"""Penalties of other codes, each in a plain loop as its source has it, against EWC with ``our_settings``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_cl import EWC
from lightning_cl.functional.conventions import CONVENTIONS, our_settings
from lightning_cl.functional.penalty import quadratic_penalty
from tests.callbacks.ewc_examples import Net, data

LAMBDA = 3.0
Task = tuple[list[Tensor], list[tuple[Tensor, Tensor]]]  # parameters at its end, batches


def squares(module: Net, loss: Tensor) -> list[Tensor]:
    return [g**2 for g in torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)]


def mean(terms: list[list[Tensor]], count: int) -> list[Tensor]:
    return [torch.stack(parts).sum(0) / count for parts in zip(*terms, strict=True)]


def samples(batches: Any) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]


def every_label(module: Net, batches: Any) -> list[Tensor]:
    """van de Ven: batch size 1, each label weighted by its probability."""
    terms = []
    for x, _ in samples(batches):
        probabilities = module(x).softmax(1)[0].detach()
        for label, p in enumerate(probabilities):
            terms.append([p * s for s in squares(module, cross_entropy(module(x), torch.tensor([label])))])
    return mean(terms, len(samples(batches)))


def best_label(module: Net, batches: Any) -> list[Tensor]:
    """GT-RIPL: batch size 1 (``n_fisher_sample``), the argmax label."""
    single = samples(batches)
    return mean([squares(module, cross_entropy(module(x), module(x).argmax(1))) for x, _ in single], len(single))


def weighted_label(module: Net, batches: Any) -> list[Tensor]:
    """mammoth: the true label, its square times its probability."""
    single, terms = samples(batches), []
    for x, y in single:
        loss = cross_entropy(module(x), y)
        terms.append([torch.exp(-loss).detach() * s for s in squares(module, loss)])
    return mean(terms, len(single))


def batch_means(module: Net, batches: Any) -> list[Tensor]:
    """FACIL (true labels), PyCIL, LibContinual, Avalanche: the square of each batch's mean gradient."""
    return mean([squares(module, cross_entropy(module(x), y)) for x, y in batches], len(batches))


def add(a: list[Tensor], b: list[Tensor], wa: float = 1.0, wb: float = 1.0) -> list[Tensor]:
    return [wa * x + wb * y for x, y in zip(a, b, strict=True)]


def weigh(fisher: list[Tensor], anchor: list[Tensor], at: list[Tensor]) -> Tensor:
    return sum(((f * (p - a) ** 2).sum() for f, a, p in zip(fisher, anchor, at, strict=True)), torch.zeros(()))


def separate(fishers: list[list[Tensor]], anchors: list[list[Tensor]], at: list[Tensor], half: float) -> Tensor:
    return half * sum((weigh(f, a, at) for f, a in zip(fishers, anchors, strict=True)), torch.zeros(()))


def running(gamma: float, used: float, half: float) -> Callable[..., Tensor]:
    """One sum that decays when a task is added; ``used`` weighs it again in the loss."""

    def penalty(fishers: list[list[Tensor]], anchors: list[list[Tensor]], at: list[Tensor]) -> Tensor:
        total = fishers[0]
        for fisher in fishers[1:]:
            total = add(total, fisher, gamma)
        return half * used * weigh(total, anchors[-1], at)

    return penalty


def averaged(weight_of: Callable[[int], float]) -> Callable[..., Tensor]:
    """alpha of the old and 1 - alpha of the new, from zeros."""

    def penalty(fishers: list[list[Tensor]], anchors: list[list[Tensor]], at: list[Tensor]) -> Tensor:
        total = [torch.zeros_like(f) for f in fishers[0]]
        for task, fisher in enumerate(fishers):
            total = add(total, fisher, weight_of(task), 1 - weight_of(task))
        return 0.5 * weigh(total, anchors[-1], at)

    return penalty


CODES: dict[str, tuple[Callable[..., list[Tensor]], Callable[..., Tensor], float | None]] = {
    "van_de_ven": (every_label, lambda f, a, at: separate(f, a, at, 0.5), None),
    "van_de_ven_online": (every_label, running(0.7, 0.7, 0.5), 0.7),
    "gt_ripl": (best_label, lambda f, a, at: separate(f, a, at, 1.0), None),
    "gt_ripl_online": (best_label, running(1.0, 1.0, 1.0), None),
    "mammoth": (weighted_label, running(0.7, 1.0, 1.0), 0.7),
    "facil": (batch_means, averaged(lambda task: 0.5), None),
    # known classes over all classes, with as many in every task
    "pycil": (batch_means, averaged(lambda task: task / (task + 1)), None),
    # 1 - new classes over all classes
    "libcontinual": (batch_means, averaged(lambda task: 1 - 1 / (task + 1)), None),
    "avalanche": (batch_means, lambda f, a, at: separate(f, a, at, 1.0), None),
    "avalanche_online": (batch_means, running(0.7, 1.0, 1.0), 0.7),
}


def test_every_convention_has_its_loop():
    assert set(CODES) == set(CONVENTIONS)


def test_the_page_has_a_row_for_every_convention_with_its_penalty():
    page = (Path(__file__).parents[2] / "docs" / "importance.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    found = {name: cells[2] for cells in rows for name in CONVENTIONS if f"`{name}`" in cells[-1]}
    assert found == {name: "lambda/2" if c.factor == 1 else "lambda" for name, c in CONVENTIONS.items()}


@pytest.mark.parametrize("code", CODES)
def test_penalties_are_equal_after_each_of_three_tasks(code: str):
    fisher_of, theirs_of, gamma = CODES[code]
    module = Net().double()
    ewc = EWC(**our_settings(code, LAMBDA, gamma))
    generator = torch.Generator().manual_seed(1)
    fishers: list[list[Tensor]] = []
    anchors: list[list[Tensor]] = []
    for task in range(3):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype), alpha=0.5)
        loader = data(task, dtype=torch.float64)
        fishers.append(fisher_of(module, list(loader)))
        anchors.append([p.detach().clone() for p in module.parameters()])
        ewc.consolidate(None, module, loader)
        at = [(p.detach() + torch.randn(p.shape, generator=generator, dtype=p.dtype)).requires_grad_()
              for p in module.parameters()]  # fmt: skip
        theirs = LAMBDA * theirs_of(fishers, anchors, at)
        named = dict(zip(ewc.importance, at, strict=True))
        ours = quadratic_penalty(named, ewc.importance, ewc.anchor, ewc.lambda_)
        gradients = (torch.autograd.grad(value, at) for value in (ours, theirs))
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
        if ewc.variant != "offline" or task == 0:
            torch.testing.assert_close(ours, theirs.to(ours.dtype), rtol=1e-6, atol=0)
    assert float(theirs) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hat", 1.0), r"code='hat'; expected one of van_de_ven, .*HINT: see docs/importance.md"),
        (("gt_ripl", 1.0, 0.5), r"gamma=0.5 with 'gt_ripl'; expected None. HINT: this code has no such setting"),
        (("pycil", 1.0, 0.5), r"gamma=0.5 with 'pycil'; expected None"),
    ],
)
def test_what_there_is_not_is_refused(arguments: tuple[Any, ...], message: str):
    with pytest.raises(ValueError, match=message):
        our_settings(*arguments)
