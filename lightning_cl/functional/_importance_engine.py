"""Sums of powers of per-sample gradients over batches: closed forms where they hold, sample by sample for the rest."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._capture import Capture
from lightning_cl.functional._cotangents import Cotangents
from lightning_cl.functional._operations import Operation, Plan, Target
from lightning_cl.functional._products import add_powers, chunks
from lightning_cl.functional._sample_by_sample import SampleBySample
from lightning_cl.functional.seeding import generator

OutputsFn = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]
MakeCotangents = Callable[[Tensor, Tensor | None], Cotangents]
Uses = list[tuple[int, str]]
# Samples of the check: odd, so that they are seldom as many as there are tokens.
_CHECKED = 3
# Below this an output stands for an inactive class, see `masking`.
INACTIVE = -6.0e4


class Engine:
    """Adds ``sum_n sum_k |J_n^T v_kn|^power`` of batch after batch to ``sums``.

    A parameter takes the closed form only if, on the first batch (of more than one sample), every use of it in the
    graph was recorded, samples do not mix where it is used, and the recorded operations give autograd's own gradient,
    squared for one sample and summed for all. All others, and those used differently in a later batch, go sample by
    sample.

    Args:
        module: The network, in eval mode.
        parameters: Name to parameter.
        sums: Name to accumulator, added to in place.
        outputs_fn: ``(module, batch) -> (outputs (N, ..., C), targets)``.
        make_cotangents: ``(outputs, targets) -> Cotangents``.
        power: 2, or 1 for absolute values.
        max_bytes: For numbers held beside the accumulators and what a forward and a backward pass hold.
        fallback: ``auto``, ``loop`` or ``vmap``, see :class:`SampleBySample`.
        seed: Of the directions of the check.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        outputs_fn: OutputsFn,
        make_cotangents: MakeCotangents,
        *,
        power: int = 2,
        max_bytes: int = 2**24,
        fallback: str = "auto",
        seed: int = 0,
    ) -> None:
        self.module, self.parameters, self.sums, self.outputs_fn = module, parameters, sums, outputs_fn
        self.make_cotangents, self.power, self.budget = make_cotangents, power, max(1, max_bytes // 4)
        self.probe = generator(seed, "fisher", "probe")
        self.share = True
        self.checked = 0
        #: Parameter (or part of one) to its uses: number of the operation, and role.
        self.uses: dict[Target, Uses] = {}
        self.signatures: dict[int, tuple[object, ...]] = {}
        self.axes: dict[int, int] = {}
        self.slow = SampleBySample(module, sums, outputs_fn, power, self.budget, fallback)

    def add(self, batch: Any) -> int:
        """Take in a batch; returns its number of samples."""
        capture, outputs, targets = self._forward(batch)
        n = len(outputs)
        if n == 0:
            return 0
        # a batch of one cannot show that samples mix
        if self.checked < min(n, 2):
            self._check_on(batch, n)
            if not self.share:
                capture, outputs, targets = self._forward(batch)
        cotangents = self.make_cotangents(outputs.detach(), targets)
        uses = self._same_uses(capture.operations, n)
        plan = Plan(n, self.power, len(cotangents), self.budget)
        vectors = (cotangents.vector(k) for k in range(len(cotangents)))
        self._add_closed(outputs, vectors, capture.operations, uses, plan, self.sums, retain_graph=False)
        closed = {target.name for target in uses}
        rest = {name: value for name, value in self.parameters.items() if name not in closed}
        if rest:
            del capture, outputs
            self.slow.add(batch, n, cotangents, rest)
        return n

    def _check_on(self, batch: Any, n: int) -> None:
        """Check on the first samples of a batch: a few show as much as all of them."""
        from lightning_cl.functional.batches import select

        few = min(n, _CHECKED)
        capture, outputs, _ = self._forward(select(batch, torch.arange(few)) if few < n else batch)
        self._check(outputs, capture.operations)
        self.checked = min(n, 2)

    def _forward(self, batch: Any) -> tuple[Capture, Tensor, Tensor | None]:
        """Outputs with every operation recorded; results shared by all samples are split if that changes nothing."""
        if self.share:
            from lightning_cl.functional.batches import batch_size

            try:
                with Capture(self.parameters, batch_size(batch)) as capture:
                    outputs, targets = self.outputs_fn(self.module, batch)
                if not capture.rewritten or self.checked > 1 or self._is_unchanged(outputs, batch):
                    return capture, outputs, targets
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError):
                pass  # a module that looks at shapes; what is wrong without us shows in the next lines
            self.share = False
        with Capture(self.parameters) as capture:
            outputs, targets = self.outputs_fn(self.module, batch)
        return capture, outputs, targets

    def _is_unchanged(self, outputs: Tensor, batch: Any) -> bool:
        with torch.no_grad():
            plain = self.outputs_fn(self.module, batch)[0]
        half = plain.dtype in (torch.float16, torch.bfloat16)
        same = plain.shape == outputs.shape
        return same and torch.allclose(plain, outputs, *((1e-2, 1e-2) if half else (1e-4, 1e-5)), equal_nan=True)

    def _same_uses(self, operations: list[Operation], n: int) -> dict[Target, Uses]:
        """The parameters whose operations are those of the checked batch."""
        same = {
            i
            for i, op in enumerate(operations)
            if i in self.axes and self.signatures[i] == op.signature and self.axes[i] in op.axes(n)
        }
        recorded = Counter(target.name for op in operations for target in op.targets.values())
        expected = Counter(target.name for target, uses in self.uses.items() for _ in uses)
        return {
            target: uses
            for target, uses in self.uses.items()
            if recorded[target.name] == expected[target.name] and all(i in same for i, _ in uses)
        }

    def _add_closed(
        self,
        outputs: Tensor,
        vectors: Iterable[Tensor],
        operations: list[Operation],
        uses: Mapping[Target, Uses],
        plan: Plan,
        sums: Mapping[str, Tensor],
        *,
        retain_graph: bool,
    ) -> None:
        numbers = sorted({i for pairs in uses.values() for i, _ in pairs})
        used = {i: operations[i] for i in numbers}
        if not used:
            return
        for i, operation in used.items():
            operation.place(plan, self.axes[i])
        for k, vector in enumerate(vectors):
            gradients = torch.autograd.grad(
                outputs,
                [op.edge for op in used.values()],
                vector,
                retain_graph=retain_graph or k < plan.n_vectors - 1,
                allow_unused=True,
            )
            for operation, gradient in zip(used.values(), gradients, strict=True):
                zero = outputs.new_zeros(()).expand(operation.shape)
                operation.receive(zero if gradient is None else gradient)
            for target, pairs in uses.items():
                total = target.of(sums[target.name])
                if len(pairs) == 1:
                    used[pairs[0][0]].add(pairs[0][1], total)
                    continue
                for rows in chunks(plan.n, total.numel(), plan.budget):
                    add_powers(total, sum_over_uses(used, pairs, rows), plan.power)
        for target, pairs in uses.items():
            if len(pairs) == 1:
                used[pairs[0][0]].finish(pairs[0][1], target.of(sums[target.name]))

    def _check(self, outputs: Tensor, operations: list[Operation]) -> None:
        """Find out what has a closed form, and compare it with autograd, for one sample and for all of them."""
        n = len(outputs)
        # random directions: those of the labels may vanish where the model is certain; none through inactive outputs
        noise = torch.randn(outputs.shape, generator=self.probe, dtype=torch.float64)
        everything = torch.where(outputs.detach() > INACTIVE, noise.to(outputs), 0)
        first = torch.zeros_like(everything)
        first[0] = everything[0]
        edges: list[Any] = [op.edge for op in operations]
        names = list(self.parameters)
        found = torch.autograd.grad(
            outputs, [*edges, *self.parameters.values()], first, retain_graph=True, allow_unused=True
        )
        self.axes = {}
        for i, (operation, gradient) in enumerate(zip(operations, found, strict=False)):
            axes = [a for a in operation.axes(n) if gradient is None or _only_first(gradient, a, n)]
            if axes:
                self.axes[i] = axes[0]
        self.signatures = {i: op.signature for i, op in enumerate(operations)}
        self.uses = _groups(operations, self.axes, _edges_into(outputs, self.parameters))
        if not self.uses:
            return
        one = dict(zip(names, found[len(edges) :], strict=True))
        scratch = {target.name: torch.zeros_like(self.sums[target.name]) for target in self.uses}
        plan = Plan(n, self.power, 1, self.budget)
        half = outputs.dtype in (torch.float16, torch.bfloat16)
        self._add_closed(outputs, [first], operations, self.uses, plan, scratch, retain_graph=True)
        for target in self.uses:
            mine = target.of(scratch[target.name])
            mine = mine if self.power == 1 else mine.clamp_min(0).sqrt()
            oracle = one[target.name]
            noise_floor = _rounding(operations, self.uses[target])
            _compare(target.name, mine, None if oracle is None else target.of(oracle).abs(), half, noise_floor)
        self._check_sum(outputs, everything, operations, half)

    def _check_sum(self, outputs: Tensor, vector: Tensor, operations: list[Operation], half: bool) -> None:
        """The sum of all per-sample gradients is autograd's gradient."""
        used = {i: operations[i] for i in sorted({i for pairs in self.uses.values() for i, _ in pairs})}
        wanted = sorted({target.name for target in self.uses})
        places: list[Any] = [*(op.edge for op in used.values()), *(self.parameters[name] for name in wanted)]
        found = torch.autograd.grad(outputs, places, vector, retain_graph=True, allow_unused=True)
        for operation, gradient in zip(used.values(), found, strict=False):
            operation.receive(outputs.new_zeros(()).expand(operation.shape) if gradient is None else gradient)
        oracles = dict(zip(wanted, found[len(used) :], strict=True))
        for target, pairs in self.uses.items():
            total = torch.zeros_like(target.of(self.sums[target.name]))
            for i, role in pairs:
                used[i].add_sum(role, total)
            oracle = oracles[target.name]
            noise_floor = _rounding(operations, pairs)
            _compare(target.name, total, None if oracle is None else target.of(oracle), half, noise_floor)


def sum_over_uses(operations: Mapping[int, Operation], uses: Uses, rows: slice) -> Tensor:
    """Per-sample gradients of a parameter that is used in several places."""
    (number, role), *others = uses
    total = operations[number].per_sample(role, rows)
    for number, role in others:
        total = total + operations[number].per_sample(role, rows)
    return total


def _only_first(gradient: Tensor, axis: int, n: int) -> bool:
    """Whether the gradient of the first sample's output is zero beyond the first n-th of this axis."""
    moved = gradient.movedim(axis, 0)
    return not moved[moved.shape[0] // n :].any()


def _groups(operations: list[Operation], axes: Mapping[int, int], edges: Mapping[str, int]) -> dict[Target, Uses]:
    """Parameters all of whose uses are recorded and separable; parts of one only if they do not overlap."""
    found: dict[str, dict[Target, Uses]] = {}
    fit: dict[str, bool] = {}
    for i, operation in enumerate(operations):
        for role, target in operation.targets.items():
            found.setdefault(target.name, {}).setdefault(target, []).append((i, role))
            fit[target.name] = fit.get(target.name, True) and i in axes
    kept: dict[Target, Uses] = {}
    for name, parts in found.items():
        whole = Target(name) in parts
        count = len({i for uses in parts.values() for i, _ in uses}) if whole else 1
        if fit[name] and edges[name] <= max(count, len(parts)) and not (whole and len(parts) > 1):
            kept |= parts
    return kept


def _edges_into(outputs: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Name to the number of places of the graph of the outputs that use the parameter."""
    uses: Counter[int] = Counter()
    stack, seen = [outputs.grad_fn], {outputs.grad_fn}
    while stack:
        node = stack.pop()
        for parent, _ in node.next_functions if node is not None else ():
            variable = getattr(parent, "variable", None)
            if variable is not None:
                uses[id(variable)] += 1
            elif parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return {name: uses[id(value)] for name, value in parameters.items()}


def _rounding(operations: list[Operation], uses: Uses) -> float:
    """What rounding may leave of a sum that is zero: the bias of attention's keys, or one in front of a norm."""
    return sum(1e-6 * float(operations[i].gradient.abs().sum()) for i, role in uses if role == "bias")


def _compare(name: str, mine: Tensor, oracle: Tensor | None, half: bool, noise_floor: float) -> None:
    oracle = torch.zeros_like(mine) if oracle is None else oracle.to(mine.dtype)
    error, size = float((mine - oracle).norm()), float(oracle.norm())
    if not math.isfinite(size):
        return  # bad weights or data: the result is refused with that reason
    if not error <= (5e-2 if half else 5e-3) * size + noise_floor * (1e4 if half else 1) + 1e-12:
        raise RuntimeError(
            f"closed-form gradient of {name!r} is {error:.3g} away from autograd's of norm {size:.3g}; expected them "
            "to agree. HINT: the layer's output does not depend on its input in the usual way; pass `loss_fn` to "
            "take per-sample gradients by autograd alone, and report the module"
        )
