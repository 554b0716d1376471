"""Squared per-sample gradients of one batch: closed forms where they hold, a per-sample loop for the rest."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._fisher_capture import Call, Capture
from lightning_cl.functional._fisher_labels import Cotangents
from lightning_cl.functional._fisher_rules import Rule, rule_of
from lightning_cl.functional.seeding import generator

LogitsFn = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]


class Engine:
    """Adds the squares of batch after batch to ``sums``.

    A parameter takes the closed form only if, on the first batch (of more than one sample), its layer was called once,
    no other use of it is in the graph, samples do not mix at the layer's output, and the rule gives the square of
    autograd's own gradient for one sample. All others, or a layer called differently later on, take the loop.

    Args:
        module: The network, in eval mode.
        parameters: Name to parameter.
        sums: Name to accumulator, added to in place.
        logits_fn: ``(module, batch) -> (logits, targets)``.
        mode: Label mode.
        n_draws: k of mc.
        seed: Of mc's draws.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        logits_fn: LogitsFn,
        mode: str,
        n_draws: int,
        seed: int,
    ) -> None:
        self.module, self.parameters, self.sums = module, parameters, sums
        self.logits_fn, self.mode, self.n_draws = logits_fn, mode, n_draws
        self.draws = generator(seed, "fisher", "labels")
        self.probe = generator(seed, "fisher", "probe")
        self.candidates = _candidates(module, parameters)
        self.checked = 0
        self.looped: dict[str, None] = {}

    def add(self, batch: Any) -> int:
        """Take in a batch; returns its number of samples."""
        with Capture(self.candidates) as capture:
            logits, targets = self.logits_fn(self.module, batch)
        _check_logits(logits)
        n = len(logits)
        if n == 0:
            return 0
        cotangents = Cotangents(logits.detach(), targets, self.mode, self.n_draws, self.draws)
        calls = {
            layer: call
            for layer, call in capture.once().items()
            if call.outputs.requires_grad and _rule(layer).supports(layer, call.inputs, n)
        }
        # a batch of one cannot show that samples mix
        if self.checked < min(n, 2):
            self._check(logits, cotangents, calls)
            self.checked = min(n, 2)
        closed = {layer: call for layer, call in calls.items() if layer in self.candidates}
        done = self._add_closed(logits, cotangents, closed)
        rest = {name: value for name, value in self.parameters.items() if name not in done}
        if rest:
            self.looped.update(dict.fromkeys(rest))
            del logits, calls, closed
            self._add_looped(batch, n, cotangents, rest)
        return n

    def _add_closed(self, logits: Tensor, cotangents: Cotangents, calls: dict[nn.Module, Call]) -> set[str]:
        rules = {}
        for layer, call in calls.items():
            sums = {attribute: self.sums[name] for attribute, name in self.candidates[layer].items()}
            rules[layer] = _rule(layer)(layer, call.inputs, sums)
        outputs = [call.outputs for call in calls.values()]
        for k in range(len(cotangents) if outputs else 0):
            last = k == len(cotangents) - 1
            gradients = torch.autograd.grad(
                logits, outputs, cotangents.vector(k), retain_graph=not last, allow_unused=True
            )
            for rule, gradient in zip(rules.values(), gradients, strict=True):
                if gradient is not None:
                    rule.add(gradient)
        for rule in rules.values():
            rule.finish()
        return {name for layer in rules for name in self.candidates[layer].values()}

    def _add_looped(self, batch: Any, n: int, cotangents: Cotangents, rest: dict[str, Tensor]) -> None:
        from lightning_cl.functional.batches import select

        for i in range(n):
            logits, _ = self.logits_fn(self.module, select(batch, torch.tensor([i])))
            _check_logits(logits, n=1)
            vectors = [cotangents.vector(k, slice(i, i + 1)) for k in range(len(cotangents))]
            vectors = [vector for vector in vectors if vector.any()]
            for k, vector in enumerate(vectors):
                add_squares(self.sums, rest, logits, vector, retain_graph=k < len(vectors) - 1)

    def _check(self, logits: Tensor, cotangents: Cotangents, calls: dict[nn.Module, Call]) -> None:
        """Compare every rule with autograd on the first sample; drop what has no closed form from the candidates."""
        uses = _uses(logits)
        for layer, names in list(self.candidates.items()):
            kept = {a: name for a, name in names.items() if uses[id(self.parameters[name])] == 1}
            self.candidates[layer] = kept if layer in calls else {}
        self.candidates = {layer: names for layer, names in self.candidates.items() if names}
        calls = {layer: call for layer, call in calls.items() if layer in self.candidates}
        if not calls:
            return
        # a random direction: those of the labels may vanish where the model is certain
        vector = torch.zeros_like(logits)
        vector[0] = torch.randn(logits.shape[1], generator=self.probe).to(vector) * (cotangents.probabilities[0] > 0)
        checked = [name for layer in calls for name in self.candidates[layer].values()]
        targets = [*(call.outputs for call in calls.values()), *(self.parameters[name] for name in checked)]
        found = torch.autograd.grad(logits, targets, vector, retain_graph=True, allow_unused=True)
        gradients = dict(zip(checked, found[len(calls) :], strict=True))
        for (layer, call), gradient in zip(calls.items(), found, strict=False):
            if gradient is None:
                continue
            if gradient[1:].any():
                del self.candidates[layer]
                continue
            sums = {a: torch.zeros_like(self.sums[name]) for a, name in self.candidates[layer].items()}
            rule = _rule(layer)(layer, call.inputs[:1], sums)
            rule.add(gradient[:1])
            rule.finish()
            for attribute, name in self.candidates[layer].items():
                half = gradient.dtype in (torch.float16, torch.bfloat16)
                _compare(name, sums[attribute], gradients[name], half)


def add_squares(
    sums: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    output: Tensor,
    vector: Tensor | None = None,
    retain_graph: bool = False,
) -> None:
    """Add the square of the gradient of ``output`` (times ``vector``) with autograd; unused parameters add nothing."""
    gradients = torch.autograd.grad(
        output, list(parameters.values()), vector, retain_graph=retain_graph, allow_unused=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            wide = (gradient.to_dense() if gradient.is_sparse else gradient).to(sums[name].dtype)
            sums[name].addcmul_(wide, wide)


def _rule(layer: nn.Module) -> type[Rule]:
    rule = rule_of(layer)
    assert rule is not None, f"{type(layer).__name__} is no candidate"
    return rule


def _candidates(module: nn.Module, parameters: Mapping[str, Tensor]) -> dict[nn.Module, dict[str, str]]:
    """Layers with a rule to {attribute: name}, for parameters that are held once and asked for once."""
    names = {id(value): name for name, value in parameters.items()}
    asked = Counter(id(value) for value in parameters.values())
    held = Counter(id(value) for layer in module.modules() for value in layer._parameters.values())
    found: dict[nn.Module, dict[str, str]] = {}
    for layer in module.modules():
        rule = rule_of(layer)
        if rule is None:
            continue
        mine = {
            attribute: names[id(value)]
            for attribute in rule.attributes
            if (value := layer._parameters.get(attribute)) is not None and asked[id(value)] == held[id(value)] == 1
        }
        if mine:
            found[layer] = mine
    return found


def _uses(logits: Tensor) -> Counter[int]:
    """``id(parameter)`` to the number of places of the graph of the logits that use it."""
    uses: Counter[int] = Counter()
    stack, seen = [logits.grad_fn], {logits.grad_fn}
    while stack:
        node = stack.pop()
        for parent, _ in node.next_functions if node is not None else ():
            variable = getattr(parent, "variable", None)
            if variable is not None:
                uses[id(variable)] += 1
            elif parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return uses


def _compare(name: str, squares: Tensor, gradient: Tensor | None, half: bool) -> None:
    mine = squares.sqrt()
    oracle = torch.zeros_like(mine) if gradient is None else gradient.abs().to(mine.dtype)
    error, size = float((mine - oracle).norm()), float(oracle.norm())
    if not math.isfinite(size):
        return  # bad weights or data: the result is refused with that reason
    if not error <= (5e-2 if half else 5e-3) * size + 1e-12:
        raise RuntimeError(
            f"closed-form gradient of {name!r} is {error:.3g} away from autograd's of norm {size:.3g}; expected them "
            "to agree. HINT: the layer's output does not depend on its input in the usual way; pass `loss_fn` to "
            "take per-sample gradients by autograd alone, and report the module"
        )


def _check_logits(logits: Tensor, n: int | None = None) -> None:
    if logits.dim() != 2 or (n is not None and len(logits) != n):
        raise ValueError(
            f"logits of shape {tuple(logits.shape)}; expected ({'N' if n is None else n}, C), one row per sample. "
            "HINT: give a logits_fn that returns (logits, targets), or a loss_fn for a module without logits"
        )
