"""What the words of a list of candidates mean: overrides of the app's config."""

import contextlib
import difflib
import inspect
import re
import shlex
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import OmegaConf, open_dict

from lightning_cl._conf import conf_dir
from lightning_cl.errors import InputError

SOURCES = {"torchvision": "torchvision", "timm": "timm", "hf": "hf_image"}
RANDOM = ":random"


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen.

    Args:
        name: As it was given.
        model: Overrides of the config that build it.
        inputs: Those that make the stream serve what its pretrained weights expect; of a baseline with random weights
            they are those of its pretrained twin.
        own_weights: Whether ``model`` names pretrained weights; False of a baseline, and of a model that has none.
    """

    name: str
    model: tuple[str, ...]
    inputs: tuple[str, ...]
    own_weights: bool = True


def parse_candidate(text: str, *, of_texts: bool = False) -> Candidate:
    """The candidate that a word means, with overrides of its own behind it, if any.

    * ``torchvision:NAME``, ``timm:NAME``: weights by name (``DEFAULT``); ``...@WEIGHTS``: others, or a local file.
    * ``hf:FOLDER`` or ``hf:OWNER/NAME``: an image model, or a text encoder for a stream of texts.
    * the name of a config under ``conf/model``: ``mlp``, ``resnet18_small``.
    * any of these with ``:random`` behind it: the same network, untrained.

    Args:
        text: ``"timm:resnet18"``, or ``"mlp model.backbone.hidden=[100]"``.
        of_texts: Whether the stream is one of texts.

    Raises:
        InputError: For anything else.

    Example:
        >>> parse_candidate("torchvision:resnet18").model
        ('model=torchvision', 'model.backbone.model=resnet18', 'model.backbone.weights=DEFAULT')
        >>> parse_candidate("torchvision:resnet18:random").model
        ('model=torchvision', 'model.backbone.model=resnet18', '++model.backbone.weights=null')
    """
    words = shlex.split(text)
    if not words or any("=" not in word for word in words[1:]):
        raise InputError(f"candidate {text!r}", "a name, perhaps with overrides behind it", "try torchvision:resnet18")
    word, extra = words[0], tuple(words[1:])
    random = word.endswith(RANDOM)
    source, colon, rest = word.removesuffix(RANDOM).partition(":")
    if not colon:
        return _of_config(text, source, random, extra)
    if source not in SOURCES or not rest:
        known = ", ".join(f"{name}:..." for name in SOURCES)
        raise InputError(f"candidate {word!r}", f"{known}, or a config under conf/model", "try torchvision:resnet18")
    if source == "hf" and of_texts:
        return _candidate(text, "hf_text", (f"model.backbone.name_or_path={_quoted(rest)}", *extra), random)
    name, _, weights = rest.partition("@")
    wanted = _quoted(weights) if weights else "DEFAULT"
    overrides = (f"model.backbone.model={_quoted(name)}", f"model.backbone.weights={wanted}", *extra)
    return _candidate(text, SOURCES[source], overrides, random)


def _of_config(text: str, name: str, random: bool, extra: tuple[str, ...]) -> Candidate:
    root = conf_dir() / "model"
    known = sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"torchvision:{name} or timm:{name} may be meant"
        raise InputError(f"candidate {name!r}", f"{', '.join(known)}, torchvision:..., timm:..., hf:...", hint)
    return _candidate(text, name, extra, random)


def _candidate(text: str, config: str, overrides: tuple[str, ...], random: bool) -> Candidate:
    """The candidate, or the same network untrained: whatever names weights is left out, and none are asked for."""
    pretrained = (f"model={config}", *overrides)
    backbone = _backbone(config, overrides)
    switch = _weights_switch(backbone)
    named = backbone.get("weights", True if switch == "false" else None) not in (None, False)
    if switch == "false":  # the weights of a name
        named = named and backbone.get("name_or_path") is not None
    if not random:
        return Candidate(text, pretrained, pretrained, named)
    if switch is None and not str(backbone.get("_target_")).startswith("lightning_cl."):
        raise InputError(
            f"candidate {text!r}",
            "a model with an argument weights",
            "name its untrained twin as a candidate of its own",
        )
    untrained = tuple(word for word in pretrained if _key(word) != "model.backbone.weights")
    return Candidate(text, untrained + (f"++model.backbone.weights={switch}",) * named, pretrained, False)


def _backbone(config: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The backbone's section, as far as it is written down: nothing is composed."""
    layers: list[Any] = []
    name = config
    while name:
        layers.append(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
        name = next(iter(layers[-1].get("defaults") or ()), "")
    merged: Any = OmegaConf.merge(*(layer.get("backbone") or {} for layer in reversed(layers)))
    with open_dict(merged):
        for word in overrides:
            if _key(word).startswith("model.backbone."):
                with contextlib.suppress(HydraException):  # told when it is composed
                    value = OverridesParser.create().parse_override(word).value()
                    OmegaConf.update(merged, _key(word).removeprefix("model.backbone."), value)
    plain: Any = OmegaConf.to_container(merged, resolve=False)
    return dict(plain)


def _weights_switch(backbone: dict[str, Any]) -> str | None:
    """What ``weights`` is for a network without pretrained ones; None if it has no such argument."""
    try:
        parameter = inspect.signature(get_class(str(backbone.get("_target_")))).parameters.get("weights")
    except Exception:  # the config's own errors are told when it is built
        return None
    return None if parameter is None else "false" if isinstance(parameter.default, bool) else "null"


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _quoted(value: str) -> str:
    """A value that Hydra reads as it is."""
    escaped = value.replace("'", "\\'")
    return value if re.fullmatch(r"[\w./-]+", value) else f"'{escaped}'"
