"""Finds the layers of a network that have Kronecker factors, and gathers them batch by batch."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._capture import Capture
from lightning_cl.functional._importance_engine import MakeCotangents, OutputsFn
from lightning_cl.functional._kronecker_layer import MatrixLayer
from lightning_cl.functional._kronecker_sums import KroneckerSums
from lightning_cl.functional._operations import Operation
from lightning_cl.functional._operations_conv import ConvOperation
from lightning_cl.functional._operations_linear import LinearOperation
from lightning_cl.functional.seeding import generator

# Below this an output stands for an inactive class (see `masking`), through which no gradient goes.
_INACTIVE = -6.0e4


class KroneckerPass:
    """Adds up the second moments of batch after batch.

    A layer is a product whose weight is used once in the forward pass, and on the first batch that use explains all of
    autograd's gradient and lies within one sample. Everything else is in :attr:`rest`.

    Args:
        module: The network, in eval mode.
        parameters: Name to parameter.
        allowed: Names of the weights that may be taken, or None for all.
        outputs_fn, make_cotangents: See :class:`~lightning_cl.functional._importance_engine.Engine`.
        max_bytes: For the patches of convolutions.
        seed: Of the directions of the check.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, Tensor],
        allowed: Collection[str] | None,
        outputs_fn: OutputsFn,
        make_cotangents: MakeCotangents,
        max_bytes: int,
        seed: int,
    ) -> None:
        self.module, self.parameters, self.allowed = module, parameters, allowed
        self.outputs_fn, self.make_cotangents = outputs_fn, make_cotangents
        self.budget = max(1, max_bytes // 4)
        self.probe = generator(seed, "fisher", "probe")
        self.checked = 0
        #: Name of the weight to its sums; known after the first batch.
        self.layers: dict[str, KroneckerSums] = {}

    @property
    def rest(self) -> dict[str, Tensor]:
        """Parameters in no layer."""
        taken = {name for sums in self.layers.values() for name in sums.layer.names}
        return {name: value for name, value in self.parameters.items() if name not in taken}

    def add(self, batch: Any) -> int:
        """Take in a batch; returns its number of samples."""
        with Capture(self.parameters) as capture:
            outputs, targets = self.outputs_fn(self.module, batch)
        n, operations = len(outputs), capture.operations
        if n == 0:
            return 0
        # a batch of one cannot show that samples mix
        if self.checked < min(n, 2):
            self._find(outputs, operations)
        used = self._used(operations)
        for sums, operation in used:
            sums.add_inputs(operation)
        cotangents = self.make_cotangents(outputs.detach(), targets)
        for k in range(len(cotangents) if used else 0):
            edges: list[Any] = [operation.edge for _, operation in used]
            last = k == len(cotangents) - 1
            vector = cotangents.vector(k)
            found = torch.autograd.grad(outputs, edges, vector, retain_graph=not last, allow_unused=True)
            for (sums, operation), gradient in zip(used, found, strict=True):
                if gradient is not None:
                    sums.add_gradients(operation, gradient)
        return n

    def _used(self, operations: list[Operation]) -> list[tuple[KroneckerSums, Operation]]:
        """The layers of this batch; one that it does not use adds nothing."""
        layers, used = products(operations), []
        weights = {target.name for operation in operations for target in operation.targets.values()}
        for name, sums in self.layers.items():
            layer, operation = layers.get(name, (None, None))
            if operation is not None and layer == sums.layer:
                used.append((sums, operation))
            elif name in weights:
                raise ValueError(
                    f"weight {name!r} that is used in another way than in the first batch; expected one product with "
                    "it. HINT: leave it out of `layers`; its diagonal Fisher does not mind"
                )
        return used

    def _find(self, outputs: Tensor, operations: list[Operation]) -> None:
        """Decide which layers have factors."""
        n = len(outputs)
        candidates = {
            name: (KroneckerSums(layer, self.parameters, self.budget), operation)
            for name, (layer, operation) in products(operations).items()
            if self.allowed is None or name in self.allowed
        }
        edges: list[Any] = [operation.edge for _, operation in candidates.values()]
        names = [name for sums, _ in candidates.values() for name in sums.layer.names]
        # random directions: those of the labels may vanish where the model is certain
        noise = torch.randn(outputs.shape, generator=self.probe, dtype=torch.float64)
        everything = torch.where(outputs.detach() > _INACTIVE, noise.to(outputs), 0)
        first = torch.zeros_like(everything)
        first[0] = everything[0]
        places = [*edges, *(self.parameters[name] for name in names)]
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
        alone = torch.autograd.grad(outputs, edges, first, **options) if edges else ()
        found = torch.autograd.grad(outputs, places, everything, **options) if edges else ()
        gradients = {
            name: torch.zeros_like(self.parameters[name]) if gradient is None else gradient
            for name, gradient in zip(names, found[len(edges) :], strict=True)
        }
        layers = {
            name: sums
            for (name, (sums, operation)), one, all_ in zip(candidates.items(), alone, found, strict=False)
            if (one is None or any(_only_first(one, axis, n) for axis in operation.axes(n)))
            and sums.agrees(operation, all_, gradients)
        }
        if self.checked and layers.keys() != self.layers.keys():
            raise ValueError(
                f"layers {sorted(layers.keys() ^ self.layers.keys())} in which samples mix, after a batch of one; "
                "expected batches that show it at once. HINT: begin with a batch of two samples or more"
            )
        if not self.checked:
            self.layers = layers
        self.checked = min(n, 2)


def products(operations: list[Operation]) -> dict[str, tuple[MatrixLayer, Operation]]:
    """Name of the weight to its layer and the operation, for products with a whole weight that is used once."""
    uses = Counter(target.name for operation in operations for target in operation.targets.values())
    found: dict[str, tuple[MatrixLayer, Operation]] = {}
    for operation in operations:
        weight, bias = operation.targets.get("weight"), operation.targets.get("bias")
        if weight is None or weight.start is not None or uses[weight.name] > 1:
            continue
        if isinstance(operation, LinearOperation):
            transposed = operation.transposed
        elif isinstance(operation, ConvOperation) and operation.groups == 1 and not operation.transposed:
            transposed = False
        else:
            continue
        own = bias.name if bias is not None and bias.start is None and uses[bias.name] == 1 else None
        found[weight.name] = (MatrixLayer(weight.name, own, transposed), operation)
    return found


def _only_first(gradient: Tensor, axis: int, n: int) -> bool:
    """Whether it is zero beyond the first n-th of this axis."""
    moved = gradient.movedim(axis, 0)
    return not bool(moved[moved.shape[0] // n :].any())
