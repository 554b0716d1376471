"""What is written down while a forward pass is watched."""

from collections.abc import Mapping

from torch import Tensor

from lightning_cl.functional._operations import Operation, Target


class Recording:
    """The operations on some parameters, in the order in which they were met.

    Args:
        parameters: Name to parameter.
        n_samples: Samples of the batch, or None to rewrite nothing.
    """

    def __init__(self, parameters: Mapping[str, Tensor], n_samples: int | None = None) -> None:
        super().__init__()
        self.targets = {id(value): Target(name) for name, value in parameters.items()}
        self.n_samples = n_samples
        self.operations: list[Operation] = []
        self.rewritten = False

    def found(self, **roles: Tensor | None) -> dict[str, Target]:
        """The roles that are played by parameters."""
        return {role: self.targets[id(value)] for role, value in roles.items() if id(value) in self.targets}

    def shared(self, output: Tensor) -> Tensor:
        """One copy per sample of what has been computed once for all of them."""
        n = self.n_samples
        if n is None or n == 1 or output.dim() < 2 or output.shape[0] != 1 or output.shape[1] == n:
            return output
        self.rewritten = True
        return output.expand(n, *output.shape[1:])

    def keep(self, operation: Operation) -> None:
        """Record an operation that autograd will differentiate."""
        self.operations.append(operation)
