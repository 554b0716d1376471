"""Parameter-efficient fine-tuning: LoRA and IA3 by the library ``peft``, on any module."""

import copy
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_cl.finetuning import _adapter_record as record
from lightning_cl.finetuning._adapter_build import build, refuse_adapted, request
from lightning_cl.finetuning._adapter_layers import choose, head_paths, within


def add_adapters(
    model: Any,
    kind: Literal["lora", "ia3"] = "lora",
    *,
    targets: str | Sequence[str] = "auto",
    rank: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    head: str | Sequence[str] | None = "auto",
    also_train: str | Sequence[str] = (),
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    r"""Put adapters into a module, in place: they and the head train, everything else is frozen.

    LoRA (Hu et al. 2021, arXiv:2106.09685) adds :math:`\frac{\alpha}{r} B A x` to a layer's output, with B = 0 at the
    start; IA3 (Liu et al. 2022, arXiv:2205.05638) multiplies keys, values and the feed-forward block's hidden features
    by learned vectors, ones at the start. Both leave the outputs as they are until they are trained. The layers are
    peft's. The module keeps its class, its ``forward`` and its outputs; names below an adapted layer change
    (``fc.weight`` is ``fc.base_layer.weight``).

    Frozen BatchNorm normalises with its running statistics and leaves them alone, whoever calls ``train()``; dropout
    of the base stays as the module has it, as is usual with LoRA.

    Args:
        model: Any module: of transformers, timm or torchvision, a LightningModule, your own. Its layers have to exist.
        kind: ``"lora"`` or ``"ia3"``.
        targets: ``"auto"``: the Linear layers of attention (IA3: keys and values, and the layer that narrows in the
            feed-forward block), and where there is no attention that peft can adapt, every Linear and convolution
            layer outside the head. Else regular expressions that are searched for in the names of layers.
        rank, alpha, dropout: Of LoRA.
        head: ``"auto"`` (see :func:`~lightning_cl.finetuning._adapter_layers.head_paths`), paths of modules, or None:
            the adapters alone train. What you have frozen in the head stays frozen.
        also_train: Regular expressions searched for in names of parameters that train too, for example ``"norm|bn"``;
            BatchNorm whose parameters train updates its statistics.
        options: More arguments of peft's ``LoraConfig`` or ``IA3Config``, for example ``{"use_rslora": True}``; plain
            values.
        seed: Of LoRA's A; no global random number is drawn.

    Returns:
        The same module.

    Raises:
        InputError: Without peft; for values outside these; patterns and paths that match nothing; a module that has
            adapters. Unsupported: layers inside the attention of torch and torchvision, which reads their weights
            without calling them (of torchvision's ViT and Swin the feed-forward layers are adapted), and grouped
            convolutions with LoRA.
    """
    config = request(kind, targets, rank, alpha, dropout, head, also_train, options, seed)
    refuse_adapted(model)
    heads = [path for path in head_paths(model, head) if path == "rule" or not _is_tied(model, path)]
    layers, narrowing = choose(model, kind, targets, heads)
    return build(model, {**config, "heads": heads, "layers": layers, "narrowing": narrowing})


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What was trained, by its name in the state dict: adapters, head, ``also_train``, and their buffers."""
    return record.split(record.adapted(model))


def merge_adapters(model: Any) -> Any:
    """Write the adapters into the base weights, in place: a plain module again, with the same outputs.

    What required a gradient before :func:`add_adapters` does again. Outputs differ by rounding (1e-5). An optimizer
    that was built before holds parameters that are gone.

    Raises:
        InputError: If the model has no adapters.
    """
    root = record.adapted(model)
    held: Any = record.record_of(root)
    for name in held["config"]["layers"]:
        parent, _, last = name.rpartition(".")
        setattr(root.get_submodule(parent), last, _merged(root.get_submodule(name)))
    record.forget(root)
    vars(root).pop("peft_config", None)
    if "adapters" in getattr(root, "hparams", {}):
        root.hparams["adapters"] = None  # type: ignore[index, operator, assignment]
    for name, parameter in root.named_parameters():
        parameter.requires_grad_(name not in held["were_frozen"])
    return model


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """State dict of the plain module, the adapters merged, on the CPU; the model itself keeps its adapters.

    Raises:
        InputError: If the model has no adapters.
    """
    root = record.adapted(model)
    layers = record.record_of(root)["config"]["layers"]  # type: ignore[index]
    state = {name: value for name, value in root.state_dict().items() if not within(name, layers)}
    for path in layers:
        plain = _merged(copy.deepcopy(root.get_submodule(path)))
        state.update({f"{path}.{name}": value for name, value in plain.state_dict().items()})
    return {name: value.detach().cpu() for name, value in state.items()}


def _merged(layer: Any) -> nn.Module:
    # safe_merge refuses weights that are not finite
    layer.merge(safe_merge=True)
    return layer.get_base_layer()


def _is_tied(model: nn.Module, path: str) -> bool:
    """Whether a head's parameters stand in the base too, as an embedding's do."""
    own = {id(p) for p in model.get_submodule(path).parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return bool(own & {id(p) for name, p in named if not within(name, [path])})
