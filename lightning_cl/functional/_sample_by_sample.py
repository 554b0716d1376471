"""Powers of per-sample gradients of whatever has no closed form: one sample at a time, or vmapped on an accelerator."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils import _pytree as pytree

from lightning_cl.functional._cotangents import Cotangents
from lightning_cl.functional._products import add_powers

_log = logging.getLogger(__name__)
FALLBACKS = ("auto", "loop", "vmap")


class SampleBySample:
    """The way of all parameters without a closed form; ``looped`` and ``vmapped`` collect their names.

    A loop needs a forward pass per sample and a backward pass per sample and cotangent. ``vmap`` does a chunk of
    samples at once; measured on a CPU it is slower than the loop, so ``auto`` takes it on accelerators only, and goes
    back to the loop where a module cannot be vmapped (data-dependent control flow, in-place changes).

    Args:
        module, sums, outputs_fn, power: See :class:`Engine`.
        budget: Numbers that the gradients of a chunk may hold.
        fallback: ``auto``, ``loop`` or ``vmap``.
    """

    def __init__(
        self,
        module: nn.Module,
        sums: Mapping[str, Tensor],
        outputs_fn: Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]],
        power: int,
        budget: int,
        fallback: str,
    ) -> None:
        self.module, self.sums, self.outputs_fn = module, sums, outputs_fn
        self.power, self.budget, self.fallback = power, budget, fallback
        self.looped: dict[str, None] = {}
        self.vmapped: dict[str, None] = {}

    def add(self, batch: Any, n: int, cotangents: Cotangents, parameters: Mapping[str, Tensor]) -> None:
        """Add the powers of these parameters' gradients for one batch."""
        if self.fallback == "vmap" or (self.fallback == "auto" and self._on_accelerator(parameters)):
            try:
                self._add_vmapped(batch, n, cotangents, parameters)
                self.vmapped.update(dict.fromkeys(parameters))
                return
            except Exception as error:  # anybody's module may do what vmap cannot
                if self.fallback == "vmap":
                    raise
                _log.info("vmap is not possible (%s: %s); taking a loop", type(error).__name__, error)
                self.fallback = "loop"
        self._add_looped(batch, n, cotangents, parameters)
        self.looped.update(dict.fromkeys(parameters))

    def _on_accelerator(self, parameters: Mapping[str, Tensor]) -> bool:
        return next(iter(parameters.values())).device.type not in ("cpu", "meta")

    def _add_looped(self, batch: Any, n: int, cotangents: Cotangents, parameters: Mapping[str, Tensor]) -> None:
        from lightning_cl.functional.batches import select

        for i in range(n):
            outputs, _ = self.outputs_fn(self.module, select(batch, torch.tensor([i])))
            if len(outputs) != 1:
                raise ValueError(
                    f"outputs of shape {tuple(outputs.shape)} for a batch of one; expected (1, C), one row per sample. "
                    "HINT: give a logits_fn that returns (logits, targets), or a loss_fn for a module without logits"
                )
            vectors = [cotangents.vector(k, slice(i, i + 1)) for k in range(len(cotangents))]
            vectors = [vector for vector in vectors if vector.any()]
            for k, vector in enumerate(vectors):
                add_gradients(self.sums, parameters, outputs, vector, self.power, retain_graph=k < len(vectors) - 1)

    def _add_vmapped(self, batch: Any, n: int, cotangents: Cotangents, parameters: Mapping[str, Tensor]) -> None:
        wrapper = _Wrapper(self.module, self.outputs_fn)
        values = {f"module.{name}": value.detach() for name, value in _named(self.module, parameters)}
        leaves, structure = pytree.tree_flatten(batch)
        split = [isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == n for leaf in leaves]
        moving = [leaf for leaf, moves in zip(leaves, split, strict=True) if moves]

        def gradients(vector: Tensor, *sample: Tensor) -> dict[str, Tensor]:
            own = iter(sample)
            parts = [next(own).unsqueeze(0) if moves else leaf for leaf, moves in zip(leaves, split, strict=True)]
            one = pytree.tree_unflatten(parts, structure)
            pull: Any = vjp(lambda named: functional_call(wrapper, named, (one,)), values)[1]
            return pull(vector.unsqueeze(0))[0]

        if not self.vmapped:
            self._check(gradients, batch, cotangents, moving, parameters)
        size = max(1, self.budget // sum(value.numel() for value in values.values()))
        totals: dict[str, Tensor] = {name: torch.zeros_like(self.sums[name]) for name in parameters}
        for k in range(len(cotangents)):
            vector = cotangents.vector(k)
            for start in range(0, n, size):
                rows = slice(start, start + size)
                found = vmap(gradients)(vector[rows], *(leaf[rows] for leaf in moving))
                for name in parameters:
                    # a copy: two parameters (an LSTM's biases) may be given one and the same gradient
                    own = found[f"module.{name}"].to(totals[name].dtype, copy=True)
                    add_powers(totals[name], own, self.power)
        for name, total in totals.items():  # all or nothing: a loop may have to do it again
            self.sums[name].add_(total)

    def _check(
        self,
        gradients: Callable[..., dict[str, Tensor]],
        batch: Any,
        cotangents: Cotangents,
        moving: list[Tensor],
        parameters: Mapping[str, Tensor],
    ) -> None:
        """Refuse a vmapped gradient that is not autograd's."""
        from lightning_cl.functional.batches import select

        rows = slice(0, 2)
        vector = torch.linspace(-1, 1, cotangents.support[0].numel()).view(cotangents.support[:1].shape)
        vectors = vector.to(cotangents.vector(0, rows)) * cotangents.support[rows]
        found = vmap(gradients)(vectors, *(leaf[rows] for leaf in moving))
        for i, vector in enumerate(vectors):
            outputs, _ = self.outputs_fn(self.module, select(batch, torch.tensor([i])))
            oracle = torch.autograd.grad(outputs, list(parameters.values()), vector.unsqueeze(0), allow_unused=True)
            for name, right in zip(parameters, oracle, strict=True):
                mine = found[f"module.{name}"][i]
                wrong = mine if right is None else mine - right
                if float(wrong.norm()) > 5e-3 * float(mine.norm()) + 1e-6:
                    raise RuntimeError(f"the vmapped gradient of {name!r} is not that of autograd")


class _Wrapper(nn.Module):
    """``outputs_fn`` as a forward."""

    def __init__(self, module: nn.Module, outputs_fn: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.outputs_fn = module, outputs_fn

    def forward(self, batch: Any) -> Tensor:
        outputs: Tensor = self.outputs_fn(self.module, batch)[0]
        return outputs


def _named(module: nn.Module, parameters: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    own = dict(module.named_parameters(remove_duplicate=False))
    unknown = [name for name, value in parameters.items() if own.get(name) is not value]
    if unknown:
        raise ValueError(f"parameters under other names than the module's: {unknown}; expected the module's own names")
    return list(parameters.items())


def add_gradients(
    sums: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    output: Tensor,
    vector: Tensor | None = None,
    power: int = 2,
    retain_graph: bool = False,
) -> None:
    """Add the power of the gradient of ``output`` (times ``vector``) with autograd; unused parameters add nothing."""
    gradients = torch.autograd.grad(
        output, list(parameters.values()), vector, retain_graph=retain_graph, allow_unused=True
    )
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            wide = (gradient.to_dense() if gradient.is_sparse else gradient).to(sums[name].dtype)
            add_powers(sums[name], wide.unsqueeze(0), power)
