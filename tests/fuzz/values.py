"""Which keys there are, read from the configs and constructors themselves, and wrong values for them."""

import math
import types
import typing
from typing import Any

from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_cl._conf import conf_dir
from lightning_cl._signatures import keyword_arguments
from tests.fuzz.harness import config_of

METHODS = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
MISSING = "???"


def keys_of(method: str) -> list[str]:
    """Every key of a method's composed config, and every argument of the constructors of ours that it names."""
    config = config_of(method)
    found = list(_paths(config))
    for path in [path for path in found if path.endswith("_target_")]:
        target = OmegaConf.select(config, path)
        if str(target).startswith("lightning_cl."):
            parent = path.removesuffix("_target_")
            found += [f"{parent}{name}" for name in keyword_arguments(target)]
    return list(dict.fromkeys(found))


def own_keys_of(method: str) -> list[str]:
    """Those that the other methods do not have."""
    return [key for key in keys_of(method) if key.startswith(("callbacks.", "model.head_")) or key == "callbacks"]


def _paths(section: Any, prefix: str = "") -> Any:
    for key in section:
        path = f"{prefix}{key}"
        yield path
        value = section._get_node(key) if isinstance(section, DictConfig) else section[key]
        if isinstance(value, DictConfig) and not value._is_none() and not value._is_interpolation():
            yield from _paths(value, f"{path}.")


def leaf(key: str) -> str:
    """The name that a message has to hold."""
    return key.rpartition(".")[2]


def wrong_values(method: str, key: str) -> st.SearchStrategy[Any]:
    """Values for a key: any kind, most of the kind that it has, and the words that it knows."""
    config = config_of(method)
    present = OmegaConf.select(config, key, default=None)
    kinds = _annotation(config, key)
    is_number = isinstance(present, int | float) or bool({int, float} & set(kinds))
    known = [word for kind in kinds if typing.get_origin(kind) is typing.Literal for word in typing.get_args(kind)]
    likely = [numbers] * 3 if is_number else [words]
    if isinstance(present, ListConfig):
        likely = [st.lists(numbers, max_size=3)] * 3
    return st.one_of(*likely, *([st.sampled_from(known)] if known else []), scalars, structures)


def _annotation(config: Any, key: str) -> tuple[Any, ...]:
    parent, _, name = key.rpartition(".")
    target = OmegaConf.select(config, f"{parent}._target_") if parent else "lightning_cl.sequence.settings.Settings"
    hint = keyword_arguments(target).get(name)
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


numbers = st.one_of(
    st.sampled_from([0, -1, 1, 2, 2**31, 2**63, 10**30, -(10**30)]),
    st.sampled_from([0.0, -0.0, -1.0, 0.5, 1.0, 1.5, 1e-300, 1e300, math.nan, math.inf, -math.inf]),
    st.integers(-1000, 1000),
    st.floats(allow_nan=True, allow_infinity=True),
)
words = st.one_of(
    st.sampled_from(["", " ", "abc", "none", "0", "1e3", "true", "../x", "/", "\x00", "é", "a" * 3000]),
    st.text(st.characters(codec="utf-8", exclude_characters="$", exclude_categories=["Cs"]), max_size=8),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.just(MISSING))
structures = st.one_of(
    st.lists(scalars, max_size=3),
    st.dictionaries(st.sampled_from(["a", "lr", "_target_", "x y"]), scalars, max_size=2),
    st.just([[1, 2], [3]]),
    st.just({"_target_": "nowhere.Nothing"}),
    st.just({"_target_": "torch.nn.Linear"}),
    st.just({"_target_": "lightning_cl.EWC"}),
)
