"""What the words of a list of candidates mean: overrides of the app's config."""

import difflib
import re
import shlex
from dataclasses import dataclass

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
        own_weights: Whether ``model`` names weights; False of a baseline, and of a model that has none.
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
        ('model=torchvision', 'model.backbone.model=resnet18', 'model.backbone.weights=null')
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
        model = ("model=hf_text", f"model.backbone.name_or_path={_quoted(rest)}")
        return Candidate(
            text, (*model, *["++model.backbone.weights=false"] * random, *extra), (*model, *extra), not random
        )
    name, _, weights = rest.partition("@")
    model = (f"model={SOURCES[source]}", f"model.backbone.model={_quoted(name)}")
    trained = (*model, f"model.backbone.weights={_quoted(weights) if weights else 'DEFAULT'}", *extra)
    untrained = (*model, "model.backbone.weights=null", *extra)
    return Candidate(text, untrained if random else trained, trained, not random)


def _of_config(text: str, name: str, random: bool, extra: tuple[str, ...]) -> Candidate:
    root = conf_dir() / "model"
    known = sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"torchvision:{name} or timm:{name} may be meant"
        raise InputError(f"candidate {name!r}", f"{', '.join(known)}, torchvision:..., timm:..., hf:...", hint)
    given = (f"model={name}", *extra)
    untrained = (
        ["++model.backbone.weights=null"] if random and "weights:" in (root / f"{name}.yaml").read_text() else []
    )
    return Candidate(text, (*given, *untrained), given, not random)


def _quoted(value: str) -> str:
    """A value that Hydra reads as it is."""
    escaped = value.replace("'", "\\'")
    return value if re.fullmatch(r"[\w./-]+", value) else f"'{escaped}'"
