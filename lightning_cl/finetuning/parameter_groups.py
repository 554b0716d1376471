"""Parameter groups for an optimizer: which learning rate and weight decay each parameter has."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._no_decay import NO_DECAY, without_decay
from lightning_cl.finetuning.depth_groups import DepthGroup, depth_groups
from lightning_cl.finetuning.phases import is_number
from lightning_cl.finetuning.selectors import select_parameters


def parameter_groups(
    module: nn.Module,
    lr: float,
    *,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    multipliers: Mapping[str, float] | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    trainable_only: bool = False,
    example: Any = None,
) -> list[dict[str, Any]]:
    r"""Groups for an optimizer, from input to output: ``torch.optim.AdamW(parameter_groups(self, 1e-3))``.

    A parameter of the i-th of n layers has the learning rate (BEiT, Bao et al. 2021, arXiv:2106.08254; ULMFiT's
    discriminative fine-tuning, Howard & Ruder 2018, arXiv:1801.06146)

    .. math:: lr \cdot \text{layer\_decay}^{\,n-1-i} \cdot \prod \text{multipliers that match}

    A layer is a block (a BasicBlock, an encoder layer), the stem, or the head: the depth groups of
    :func:`~lightning_cl.depth_groups` with ``max_groups=None``; timm's scales are the same for its ViTs, ResNets,
    EfficientNets, ConvNeXts and Swins. Every parameter is in one group, once, by identity. Each group has a readable
    ``name``, its ``lr`` and ``weight_decay``, and nothing else, so that the optimizer's other settings are its own.
    LR schedulers scale each group's own rate; OneCycleLR takes ``max_lr=[group["lr"] for group in groups]``.

    Args:
        module: The model, or the LightningModule it is in.
        lr: Learning rate of the head, and of everything if ``layer_decay`` is 1.
        weight_decay: Of all parameters but those of ``no_decay``, which have 0.
        layer_decay: Ratio of neighbouring layers' rates, > 0; 0.65 to 0.9 is usual for transformers.
        multipliers: Factors > 0 of the learning rate, for what a selector matches: a depth group's name (``"head"``,
            ``"all_but_head"``), ``"re:PATTERN"`` or ``"type:Class"`` of modules, else a regular expression that is
            searched for in the names of parameters.
        no_decay: What has no weight decay: ``"norm"``, parameters of normalisation layers; ``"bias"``, parameters
            called so (an LSTM's ``bias_ih_l0`` too); ``"vector"``, those with at most one dimension; ``"token"``,
            those beside modules whose first dimension is 1 (class tokens, position embeddings), and what the model's
            ``no_weight_decay()`` names; or ``"re:PATTERN"`` and ``"type:Class"``, for example ``"type:Embedding"``.
        trainable_only: Leave out parameters that require no gradient now. Optimizers skip them as they are, and can
            train them when they are thawed.
        example: For the order of layers; see :func:`~lightning_cl.depth_groups`.

    Returns:
        Mappings of ``params``, ``lr``, ``weight_decay`` and ``name``.

    Raises:
        InputError: For numbers outside these, an unknown word in ``no_decay``, or a selector that matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> for group in parameter_groups(model, 0.1, weight_decay=0.01, layer_decay=0.5):
        ...     print(group["name"], group["lr"], group["weight_decay"], len(group["params"]))
        stem 0.05 0.01 1
        stem, no decay 0.05 0.0 3
        head 0.1 0.01 1
        head, no decay 0.1 0.0 1
    """
    if not is_number(lr) or lr < 0:
        raise InputError(f"lr={lr!r}", "a number >= 0", "try lr=1e-3")
    if not is_number(weight_decay) or weight_decay < 0:
        raise InputError(f"weight_decay={weight_decay!r}", "a number >= 0", "leave it out for none")
    scaled = scaled_groups(
        module,
        layer_decay=layer_decay,
        multipliers=multipliers,
        no_decay=no_decay,
        trainable_only=trainable_only,
        example=example,
    )
    return [
        {
            "params": group["params"],
            "lr": lr * group["scale"],
            "weight_decay": weight_decay if group["decays"] else 0.0,
            "name": group["name"],
        }
        for group in scaled
    ]


def grouped_optimizer(factory: Callable[..., Any], module: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """An optimizer with :func:`parameter_groups`, whose learning rate and weight decay are those of ``factory``.

    Args:
        factory: ``params -> Optimizer``.
        module: The model.
        options: ``layer_decay``, ``multipliers``, ``no_decay``, ``trainable_only``, ``example``.

    Raises:
        InputError: As :func:`parameter_groups`; for other options; for an optimizer without ``lr``.
    """
    known = ("layer_decay", "multipliers", "no_decay", "trainable_only", "example")
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise InputError(
            f"parameter_groups with {', '.join(unknown)}", ", ".join(known), "lr and weight_decay are the optimizer's"
        )
    groups = scaled_groups(module, **options)
    # an optimizer without weight decay may not know the word
    settings = [{} if group["decays"] else {"weight_decay": 0.0} for group in groups]
    named = [
        {"params": group["params"], "name": group["name"], **setting}
        for group, setting in zip(groups, settings, strict=True)
    ]
    optimizer = factory(named)
    if "lr" not in optimizer.defaults:
        raise InputError(f"parameter_groups with {type(optimizer).__name__}", "an optimizer with lr", "leave them out")
    for group, scaled in zip(optimizer.param_groups, groups, strict=True):
        group["lr"] = optimizer.defaults["lr"] * scaled["scale"]
    return optimizer


def scaled_groups(
    module: nn.Module,
    *,
    layer_decay: float = 1.0,
    multipliers: Mapping[str, float] | None = None,
    no_decay: Sequence[str] = NO_DECAY,
    trainable_only: bool = False,
    example: Any = None,
) -> list[dict[str, Any]]:
    """Groups of ``params`` with a ``name``, the ``scale`` of their learning rate, and whether weight ``decays``."""
    if not is_number(layer_decay) or not layer_decay > 0:
        raise InputError(f"layer_decay={layer_decay!r}", "a number > 0", "1 gives all layers the same rate")
    layers = depth_groups(module, max_groups=None, example=example)
    factors = _factors(module, multipliers or {}, example)
    spared = without_decay(module, no_decay)
    named = dict(module.named_parameters())
    found: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for i, layer in enumerate(layers):
        for parameter in (named[name] for name in layer.parameters):
            if trainable_only and not parameter.requires_grad:
                continue
            factor, decays = factors.get(id(parameter), 1.0), id(parameter) not in spared
            where = "all" if layer_decay == 1 else _called(layer)
            label = where + (f", x{factor:g}" if factor != 1 else "") + ("" if decays else ", no decay")
            scale = factor * layer_decay ** (len(layers) - 1 - i)
            group = {"params": [], "name": label, "scale": scale, "decays": decays}
            found.setdefault((0 if layer_decay == 1 else i, factor, not decays), group)["params"].append(parameter)
    return [found[key] for key in sorted(found)]


def _called(layer: DepthGroup) -> str:
    """A block's own name, because stages are numbered otherwise where blocks are merged."""
    if layer.name in ("stem", "head"):
        return layer.name
    return " + ".join(layer.modules or layer.parameters)


def _factors(module: nn.Module, multipliers: Mapping[str, float], example: Any) -> dict[int, float]:
    """The product of the multipliers of each parameter, by identity."""
    if not isinstance(multipliers, Mapping):
        raise InputError(f"multipliers={multipliers!r}", "a mapping from selector to factor", "try {head: 10}")
    groups = depth_groups(module, example=example) if multipliers else []
    words = {"all", "all_but_head", *(group.name for group in groups)}
    factors: dict[int, float] = {}
    for selector, factor in multipliers.items():
        if not is_number(factor) or not factor > 0:
            raise InputError(f"multipliers[{selector!r}]={factor!r}", "a number > 0", "freeze what shall not move")
        by_word = selector in words or selector.startswith(("re:", "type:"))
        matched = select_parameters(module, selector, groups) if by_word else _by_parameter_name(module, selector)
        for _, parameter in matched:
            factors[id(parameter)] = factors.get(id(parameter), 1.0) * factor
    return factors


def _by_parameter_name(module: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    named = list(module.named_parameters())
    try:
        matched = [(name, p) for name, p in named if re.search(pattern, name)]
    except (re.error, TypeError) as error:
        raise InputError(f"multipliers[{pattern!r}] ({error})", "a regular expression", "try '^backbone'") from error
    if not matched:
        names = ", ".join(name for name, _ in named[:4])
        raise InputError(
            f"multipliers[{pattern!r}], which matches nothing",
            "a depth group, re:PATTERN, type:Class, or what is found in a parameter's name",
            f"they are called {names}, ...",
        )
    return matched
