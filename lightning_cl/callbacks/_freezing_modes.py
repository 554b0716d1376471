"""Modules that stay in eval mode, whoever calls ``.train()``."""

from collections.abc import Container, Iterable

from torch import nn

from lightning_cl.callbacks._patch import InstancePatch


class HeldModules:
    """Modules whose ``train()`` is answered with eval mode until they are released, then in the mode last asked for."""

    def __init__(self) -> None:
        self._patches: list[tuple[nn.Module, InstancePatch]] = []
        self._training: set[nn.Module] = set()  # those that are, or were told to be, in training mode

    def hold(self, parts: Iterable[nn.Module]) -> None:
        """Put modules into eval mode and let their ``train()`` do the same; each one, for it may be called alone."""
        held = {part for part, _ in self._patches}
        for part in parts:
            if part not in held:
                self._hold(part)

    def release(self, kept: Container[nn.Module]) -> None:
        """Modes as they were, but for those to be kept; does nothing the second time."""
        for part, patch in reversed([pair for pair in self._patches if pair[0] not in kept]):
            if not patch.remove():
                patch.function = patch.original  # somebody stands on top and will go on calling this
            part.training = part in self._training
            self._training.discard(part)
        self._patches = [pair for pair in self._patches if pair[0] in kept]

    def _hold(self, part: nn.Module) -> None:
        if part.training:
            self._training.add(part)
        part.training = False
        original = part.train

        def train(mode: bool = True) -> nn.Module:
            if mode:
                self._training.add(part)
            return original(False)

        self._patches.append((part, InstancePatch(part, "train", train)))


def frozen_modules(module: nn.Module, ours: set[int], fixed: set[int], named: set[str]) -> dict[nn.Module, None]:
    """The modules that belong to the frozen part, in an order.

    Args:
        module: The root.
        ours: Ids of the parameters that the schedule freezes.
        fixed: Ids of those that are frozen for another reason.
        named: Names of modules without parameters that are asked for.
    """
    frozen: dict[nn.Module, None] = {}
    for name, part in module.named_modules():
        own = {id(p) for p in part.parameters()}
        if (own & ours and own <= ours | fixed) or (not own and name in named):
            frozen.update(dict.fromkeys(part.modules()))
        else:
            frozen.update(dict.fromkeys(m for child in _between(part, ours, fixed) for m in child.modules()))
    return frozen


def _between(parent: nn.Module, ours: set[int], fixed: set[int]) -> list[nn.Module]:
    """Children without parameters whose nearest neighbours with parameters, on either side, are frozen."""
    children = list(parent.children())
    own = [{id(p) for p in child.parameters()} for child in children]
    # None: no parameters; else whether all of them are frozen, at least one by us
    state = [bool(ids & ours and ids <= ours | fixed) if ids else None for ids in own]
    if True not in state:
        return []
    found = []
    for i, child in enumerate(children):
        before = next((s for s in reversed(state[:i]) if s is not None), True)
        after = next((s for s in state[i + 1 :] if s is not None), True)
        if state[i] is None and before and after:
            found.append(child)
    return found
