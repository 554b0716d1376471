"""A new classifier on a model that has one."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._find_head import find_heads, is_hf, is_timm, rows_of
from lightning_cl.finetuning._head_rows import KeepRows, copy_rows, given_names, names_of, row_pairs
from lightning_cl.finetuning.cosine_head import CosineHead
from lightning_cl.finetuning.head import ClassifierHead
from lightning_cl.finetuning.mlp_head import MLPHead

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)
HEADS: dict[str, Any] = {"linear": ClassifierHead, "mlp": MLPHead, "cosine": CosineHead}


def replace_head(
    model: Model,
    classes: int | Sequence[str],
    *,
    head: Literal["linear", "mlp", "cosine"] = "linear",
    name: str | None = None,
    keep_rows: KeepRows = "matching",
    old_classes: Sequence[str] | None = None,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Put a new classifier on a torchvision, timm or HF classification model, or on any module with a Linear layer.

    The classifier is found by the model's library; auxiliary ones (GoogLeNet, Inception, distilled transformers) get
    linear heads of the same classes. What the model says about itself follows: ``num_classes`` of timm and torchvision,
    ``num_labels``, ``id2label`` and ``label2id`` of an HF config, so that ``save_pretrained`` and ``from_pretrained``
    agree. New rows are functions of (seed, class name): nothing global is drawn. A linear head is a ``Linear`` with
    ``class_names``; a 1x1 convolution (SqueezeNet) stays one. The new head takes device and dtype of the old.

    Call it before the optimizer is built.

    Args:
        model: The model, changed in place. For a :class:`~lightning_cl.finetuning.FineTuningModule`, which grows by
            itself, use its ``learn_classes``.
        classes: Class names, or how many (then they are called "0", "1", ...).
        head: ``"linear"``; ``"mlp"``, a :class:`~lightning_cl.finetuning.MLPHead`; ``"cosine"``, a
            :class:`~lightning_cl.finetuning.CosineHead`.
        name: Name of the classifier layer, for a module that does not tell: ``"decoder.out"``.
        keep_rows: Which old rows stay: those of the same class name (``"matching"``; where the old rows have no names,
            none), those of the same number (``"first"``), or none.
        old_classes: Names of the old rows; by default those the head or the HF config knows.
        seed: Seed of the new rows.
        options: Of the head: ``hidden`` and ``dropout`` (mlp), ``proxies``, ``eta`` (cosine).

    Returns:
        The model.

    Raises:
        InputError: If it is not clear which layer is the classifier (the message names the Linear layers), for wrong
            classes, head or options, or another number of ``old_classes`` than rows.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3))
        >>> replace_head(replace_head(net, ["cat", "dog"]), ["cat", "dog", "owl"])[0].class_names
        ['cat', 'dog', 'owl']
    """
    names = given_names(classes)
    if hasattr(model, "learn_classes"):
        raise InputError(f"a {type(model).__name__}", "a model whose head does not grow", "call learn_classes(names)")
    if head not in HEADS:
        raise InputError(f"head={head!r}", f"one of {', '.join(HEADS)}", "leave it out for 'linear'")
    target: Any = getattr(model, "_orig_mod", model)
    if is_timm(target) and isinstance(target.get_classifier(), nn.Identity):
        target.reset_classifier(1)  # built without a classifier: now there is one to replace
    main, *others = find_heads(target, name)
    before = rows_of(target.get_submodule(main))
    kept = _replace(target, main, names, head, keep_rows, old_classes, seed, options)
    for other in others:
        _replace(target, other, names, "linear", keep_rows, old_classes, seed, {})
    _tell(target, main, names, before)
    log.info("new %s head %s: %d classes, %d rows kept", head, main, len(names), kept)
    return model


def _replace(
    model: Any,
    where: str,
    names: list[str],
    kind: str,
    keep: str,
    old_classes: Sequence[str] | None,
    seed: int,
    options: dict[str, Any],
) -> int:
    """Replace one layer; returns how many rows it kept."""
    old = model.get_submodule(where)
    rows = rows_of(old)
    known = names_of(model, old) if old_classes is None else [str(name) for name in old_classes]
    if known and len(known) != rows:
        if old_classes is not None:
            raise InputError(f"{len(known)} old_classes", f"{rows}, one for each row of {where}", "name every row")
        known = []
    pairs = row_pairs(names, known, (len(names), rows), keep)
    new = _made(old, where, names, kind, seed, options).to(next(old.parameters()))
    kept = copy_rows(new, old.state_dict(), pairs)
    model.set_submodule(where, new.train(old.training))
    return kept


def _made(old: Any, where: str, names: list[str], kind: str, seed: int, options: dict[str, Any]) -> nn.Module:
    if isinstance(old, nn.Conv2d):
        if kind != "linear" or options:
            given = f"head={kind!r} with {options!r} for {where}"
            raise InputError(f"{given}, a convolution", "head='linear' without options", "leave head out")
        return _convolution(old, names, seed)
    try:
        if kind == "linear":
            return ClassifierHead(old.in_features, names, seed, bias=getattr(old, "bias", None) is not None, **options)
        return HEADS[kind](old.in_features, names, seed, **options)
    except TypeError as error:
        known = {"linear": "none", "mlp": "hidden, dropout", "cosine": "proxies, eta, imprint"}[kind]
        raise InputError(f"options {sorted(options)} of a {kind} head", known, "leave the others out") from error


def _convolution(old: nn.Conv2d, names: list[str], seed: int) -> nn.Module:
    """A 1x1 convolution whose rows are class names."""
    rows = ClassifierHead(old.in_channels, names, seed)
    new = nn.utils.skip_init(nn.Conv2d, old.in_channels, len(names), 1, bias=old.bias is not None)
    with torch.no_grad():
        new.weight.copy_(rows.weight[:, :, None, None])
        if new.bias is not None:
            new.bias.copy_(rows.bias)
    new.class_names = names
    return new


def _tell(model: Any, where: str, names: list[str], before: int) -> None:
    """Every module on the way to the classifier learns how many classes there are, an HF config their names."""
    path = where.split(".")
    for depth in range(len(path)):
        part = model.get_submodule(".".join(path[:depth]))
        for attribute in ("num_classes", "num_labels"):
            if vars(part).get(attribute) == before:
                setattr(part, attribute, len(names))
        if is_hf(part):
            config: Any = part.config
            config.id2label = dict(enumerate(names))
            config.label2id = {name: i for i, name in enumerate(names)}
            # found from the number of labels at the next training step
            config.problem_type = None
