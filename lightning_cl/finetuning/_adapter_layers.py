"""Which layers of a module get adapters, and which are its head."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lightning_cl.errors import InputError
from lightning_cl.finetuning._beside_base import beside_base

#: attention that reads its layers' weights without calling them (the latter are torchvision's)
READS_WEIGHTS = ("MultiheadAttention", "ShiftedWindowAttention", "ShiftedWindowAttentionV2")
HEAD_NAMES = ("head", "heads", "classifier", "fc", "score")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: key, value, and projections that hold them, by the names that models give them
_KEY_VALUE = re.compile(
    r"(^|\.|_)(k|v|key|value|keys|values|kv|qkv|[kv]_proj|[kv]_lin|c_attn|query_key_value|to_[kv])$"
)
_ATTENTION = re.compile(r"(^|\.)\w*(attn|attention)\w*(\.|$)", re.IGNORECASE)


def within(name: str, paths: Iterable[str]) -> bool:
    """Whether a name is one of these, or stands below one.

    Example:
        >>> within("head.weight", ["head"]), within("header.weight", ["head"]), within("head", [""])
        (True, False, True)
    """
    return any(path in ("", name) or name.startswith(f"{path}.") for path in paths)


def head_paths(model: nn.Module, head: str | Sequence[str] | None) -> list[str]:
    """Paths of the modules that are the head.

    ``"auto"`` is the head of a :class:`~lightning_cl.FineTuningModule`; all that a transformers model has beside its
    base model (DistilBERT's ``pre_classifier`` too), if that is no language-model head; else the last Linear layer
    below a module called like a head; else the last Linear layer.

    Raises:
        InputError: For a path that is not there, or if there is no Linear layer at all.
    """
    if head is None:
        return []
    modules = dict(model.named_modules())
    if head != "auto":
        paths = [head] if isinstance(head, str) else list(head)
        for path in paths:
            if path not in modules or path == "":
                named = [name for name in modules if name.split(".")[-1] in HEAD_NAMES] or list(modules)[1:6]
                raise InputError(f"head={path!r}", "the path of a module", f"there are {', '.join(named[:6])}")
        return paths
    if hasattr(model, "learn_classes"):
        return ["head", "rule"]
    known = beside_base(modules)
    if known is not None:
        return known
    linear = [name for name, part in modules.items() if isinstance(part, nn.Linear) or hasattr(part, "similarities")]
    shallow = sorted((name.count("."), name) for name in modules if name.split(".")[-1] in HEAD_NAMES)
    for depth, name in shallow:
        below = [path for path in linear if within(path, [name])]
        if depth <= 1 and below:
            return [below[-1]]
    if not linear or linear == [""]:
        raise InputError(
            f"{type(model).__name__} without a Linear layer that could be the head",
            "a head",
            "name it: head='classifier'; head=None trains the adapters alone",
        )
    return [linear[-1]]


def adaptable(model: nn.Module, kind: str, heads: Sequence[str]) -> dict[str, nn.Module]:
    """Layers outside the head that peft can adapt, merge, and leave as they are.

    Not those inside the attention of torch and torchvision: it reads their weights without calling them, so that
    adapters would do nothing; peft's own layer for ``nn.MultiheadAttention`` replaces parameters at every forward. Not
    grouped convolutions with LoRA: they cannot be merged.
    """
    found = {}
    inside = [name for name, part in model.named_modules() if _reads_weights(part)]
    for name, part in model.named_modules():
        kinds: tuple[type, ...] = (nn.Linear, *(CONVOLUTIONS if kind == "lora" else CONVOLUTIONS[1:]))
        is_layer = isinstance(part, kinds) or _is_conv1d(part)
        grouped = kind == "lora" and getattr(part, "groups", 1) > 1
        if not name or not is_layer or grouped or parametrize.is_parametrized(part):
            continue
        if not within(name, heads) and not within(name, inside):
            found[name] = part
    return found


def _reads_weights(part: nn.Module) -> bool:
    return any(base.__name__ in READS_WEIGHTS for base in type(part).__mro__)


def _is_conv1d(part: nn.Module) -> bool:
    """A Linear layer as GPT-2 writes it."""
    return type(part).__name__ == "Conv1D" and type(part).__module__.startswith("transformers.")


def choose(
    model: nn.Module, kind: str, targets: str | Sequence[str], heads: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Names of the layers to adapt, and which of them IA3 scales at their input.

    Raises:
        InputError: For a pattern that is not a regular expression or matches no layer; if there is no layer at all; and
            for a layer that was compiled by itself, which goes on calling what it was.
    """
    layers = adaptable(model, kind, heads)
    if targets == "auto":
        names = _automatic(model, kind, layers)
        if not names:
            raise InputError(
                f"{type(model).__name__} without a Linear or convolution layer outside its head",
                "layers to adapt",
                "build them in __init__; setup() and configure_model() come too late",
            )
    else:
        patterns = [targets] if isinstance(targets, str) else list(targets)
        names = sorted(
            {n for pattern in patterns for n in _matching(pattern, model, kind, layers)}, key=[*layers].index
        )
    compiled = [name for name in names if name.split(".")[-1] == "_orig_mod"]
    if compiled:
        raise InputError(
            f"layer {compiled[0].removesuffix('._orig_mod')!r}, which torch.compile has wrapped by itself",
            "layers that are not compiled, or a compiled module around them",
            "compile after the adapters are in, or compile the whole module",
        )
    return names, [name for name in names if kind == "ia3" and _is_down_projection(model, name, layers[name])]


def _matching(pattern: str, model: nn.Module, kind: str, layers: dict[str, nn.Module]) -> list[str]:
    try:
        found = [name for name in layers if re.search(pattern, name)]
    except (re.error, TypeError) as error:
        raise InputError(
            f"targets={pattern!r} ({error})", "a regular expression, or a list of them", "try targets='query|value'"
        ) from error
    if not found:
        inside = [type(m).__name__ for n, m in model.named_modules() if _reads_weights(m) and re.search(pattern, n)]
        why = f", only {inside[0]}, which reads its weights without calling a layer" if inside else ""
        raise InputError(
            f"targets={pattern!r}, which matches none of the {len(layers)} layers that {kind} can adapt{why}",
            "a regular expression that is found in at least one name",
            f"they are called {', '.join(list(layers)[:5])}, ...",
        )
    return found


def _automatic(model: nn.Module, kind: str, layers: dict[str, nn.Module]) -> list[str]:
    attention = [name for name, part in layers.items() if not isinstance(part, CONVOLUTIONS) and in_attention(name)]
    if not attention:
        return list(layers)
    if kind == "lora":
        return attention
    key_value = [name for name in attention if _KEY_VALUE.search(name)]
    chosen = {*(key_value or attention), *(n for n, part in layers.items() if _is_down_projection(model, n, part))}
    return [name for name in layers if name in chosen]


def in_attention(name: str) -> bool:
    """Whether a path leads through an attention block.

    Example:
        >>> in_attention("blocks.0.attn.qkv"), in_attention("encoder.layer.0.attention.self.query"), in_attention("fc")
        (True, True, False)
    """
    return _ATTENTION.search(name) is not None


def _is_down_projection(model: nn.Module, name: str, part: Any) -> bool:
    """The second layer of a transformer's feed-forward block: outside attention, and it narrows."""
    has_attention = any(in_attention(n) for n, _ in model.named_modules())
    if isinstance(part, CONVOLUTIONS) or in_attention(name) or not has_attention:
        return False
    before, after = part.weight.shape if _is_conv1d(part) else reversed(part.weight.shape)
    return before > after
