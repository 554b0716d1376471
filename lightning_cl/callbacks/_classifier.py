"""What methods ask of a module whose features, head and rule for prediction they use."""

from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import split_batch


def require_classifier(module: Any, method: str, rule: str | None = None, *, one_head: bool = False) -> None:
    """See that a module has what a method uses, before training.

    Args:
        module: The module.
        method: The method's name, for messages.
        rule: The rule for prediction that is set.
        one_head: Whether all classes have to compete in one layer.

    Raises:
        InputError: If it has not.
    """
    names = ["backbone", "head", *(["set_rule"] if rule else [])]
    missing = [name for name in names if getattr(module, name, None) is None]
    if missing:
        raise InputError(
            f"{method} on {type(module).__name__}, which has no {', '.join(missing)}",
            "a module with logits = head(backbone(x))" + (" and set_rule(name)" if rule else ""),
            "train a lightning_cl.FineTuningModule around your network: FineTuningModule(backbone=...)",
        )
    if one_head and (getattr(module, "reads", "seen") == "task" or not hasattr(module.head, "weight")):
        raise InputError(
            f"{method} with a head that is read one task at a time",
            "classes of all tasks that compete in one layer: head='growing' or 'fixed'",
            "without that competition there is nothing to correct; take er, derpp or lwf",
        )
    if rule is not None:
        module.set_rule(rule)


def seen_rows(module: Any) -> list[int]:
    """Rows of the head whose classes have come so far, the present task's included."""
    seen = getattr(module, "seen_classes", None)
    return list(range(module.head.out_features)) if seen is None else list(seen)


def new_rows(module: Any, old: list[int], method: str) -> list[int]:
    """Rows that are not among the old ones.

    Raises:
        InputError: If there is none.
    """
    new = [row for row in seen_rows(module) if row not in set(old)]
    return new or no_new_classes(method)


def has_one_class(module: Any) -> bool:
    """Whether one class alone is in the training loss of the latest task, so that its softmax has no gradient."""
    if not all(hasattr(module, name) for name in ("active_classes", "seen_classes", "class_names", "tasks")):
        return False
    latest = module.tasks[-1] if module.tasks else module.class_names
    competing = {"all": module.class_names, "task": latest}.get(module.active_classes, module.seen_classes)
    return len(competing) == 1


def no_new_classes(method: str) -> NoReturn:
    """Refuse a task whose classes are all known."""
    raise InputError(
        f"a task without new classes for {method}",
        "new classes in every task (class_incremental, task_incremental)",
        "name each task's classes (a DataModule of lightning_cl.streams, FineTuningModule(tasks=...)); "
        "where the same classes come again take er, derpp, lwf or ewc",
    )


def inputs_of(batch: Any, method: str) -> Any:
    """The inputs of a batch, as the backbone takes them.

    Raises:
        InputError: If a batch is no mapping, and no tuple or list that starts with a tensor.
    """
    pair = isinstance(batch, tuple | list) and len(batch) > 0 and isinstance(batch[0], Tensor)
    if not pair and not isinstance(batch, Mapping):
        raise InputError(
            f"{method} on a batch of type {type(batch).__name__}", "(x, y), (x, y, task) or a mapping", "collate so"
        )
    return split_batch(batch).inputs


@torch.no_grad()
def features_and_logits(trainer: Any, module: Any, batch: Any, method: str, *, stored: bool = False) -> tuple[Any, Any]:
    """Features (N, d) and logits (N, C) of a batch in eval mode, fp32, on the module's device.

    ``stored`` samples have passed ``on_before_batch_transfer`` when they were put into a memory.
    """
    like = next(module.parameters())
    if not stored:
        batch = _compat.move_batch(trainer, module, batch)
    else:
        from lightning.fabric.utilities import move_data_to_device

        batch = move_data_to_device(batch, like.device)
        if trainer is not None:
            after = _compat.hook_owner(trainer, module, "on_after_batch_transfer").on_after_batch_transfer
            batch = _compat.unpatched(after)(batch, 0)
    x = inputs_of(batch, method)
    with _compat.evaluating(module):
        floating = isinstance(x, Tensor) and x.is_floating_point()
        features = module.backbone(x.to(like.dtype) if floating else x)
        return features.float(), module.head(features).float()
