"""What a transformers model has beside its base model."""

from torch import nn


def beside_base(modules: dict[str, nn.Module]) -> list[str] | None:
    """What stands beside the base model of the first transformers model that has a head; None if none has.

    Nothing for a language model, whose head is not one of ours.

    Args:
        modules: Name to module of the whole.
    """
    for path, part in modules.items():
        base = getattr(part, "base_model_prefix", None)
        if not isinstance(base, str) or not base or not isinstance(getattr(part, base, None), nn.Module):
            continue
        words = getattr(getattr(part, "config", None), "vocab_size", None)
        children = [(name, child) for name, child in part.named_children() if name != base]
        beside = [(name, child) for name, child in children if next(child.parameters(), None) is not None]
        sizes = {m.out_features for _, child in beside for m in child.modules() if isinstance(m, nn.Linear)}
        if words is not None and words in sizes:
            return []
        if beside:
            return [f"{path}.{name}" if path else name for name, _ in beside]
    return None
