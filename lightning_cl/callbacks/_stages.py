"""The parts of a backbone that stand one behind the other."""

from collections.abc import Sequence

from torch import nn

from lightning_cl.errors import InputError


def depth_stages(backbone: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The stages of a backbone by name.

    Without names: from the backbone inwards, the first module with several children that have parameters; of these
    children those that have children themselves (a ResNet's groups of blocks), or all if none has (Linear layers).

    Raises:
        InputError: If there is no such name, or no parameters at all.

    Example:
        >>> list(depth_stages(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
        ['1', '3']
    """
    if names is not None:
        known = dict(backbone.named_modules())
        unknown = [name for name in names if name not in known or not name]
        if unknown:
            examples = ", ".join(depth_stages(backbone))
            raise InputError(f"stages {unknown}", "names of modules inside the backbone", f"for example {examples}")
        return {name: known[name] for name in names}
    prefix, part = "", backbone
    while True:
        children = {
            f"{prefix}{name}": child for name, child in part.named_children() if any(True for _ in child.parameters())
        }
        if len(children) != 1:
            break
        (name, part), *_ = children.items()
        prefix = f"{name}."
    nested = {name: child for name, child in children.items() if any(True for _ in child.children())}
    # one layer alone, or a module that holds its parameters itself
    found = nested or children or ({prefix[:-1]: part} if prefix else {})
    if not found:
        raise InputError(
            f"a backbone {type(backbone).__name__} without submodules that have parameters",
            "stages to compare",
            "give stages=[...] by name, or lambda_c=0",
        )
    return found
