"""The command line's overrides before Hydra sees them, and the config that they give. Imports nothing heavy."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning_cl._conf import conf_dir, register_resolvers
from lightning_cl._signatures import OURS, keyword_arguments

SETS_A_KEY = re.compile(r"\w+(\.\w+)+=")  # not a group, and without a + or ~
SELECTS = re.compile(r"(method|experiment)=")  # which callbacks there are


def with_plus(overrides: Sequence[str], config_name: str = "config", config_dir: str | None = None) -> list[str]:
    """The overrides, with a + before those of arguments that a section's constructor has and the config leaves out.

    ``callbacks.er.policy=ring`` is then as good as ``+callbacks.er.policy=ring``, also as the name of a run folder. In
    a sweep over methods of which only some have the section it is a ++: the others get an entry that nobody reads.
    What nobody knows stays as it is, for Hydra to refuse.

    Args:
        overrides: As they were typed, sweeps included.
        config_name, config_dir: Hydra's flags.
    """
    keys = [text for text in overrides if SETS_A_KEY.match(text)]
    if not keys:
        return list(overrides)
    rest = [text for text in overrides if text not in keys or text.partition("=")[0].endswith("._target_")]
    if config_dir:
        rest.append(f"hydra.searchpath=[file://{Path(config_dir).absolute()}]")
    configs = [composed(each, config_name) for each in _of_sweeps(rest)]
    return [_prefix(configs, text.partition("=")[0]) + text if text in keys else text for text in overrides]


def _prefix(configs: list[Any], key: str) -> str:
    found = {_place(config, key) for config in configs}
    if found == {"left out"}:
        return "+"
    return "++" if len(found) > 1 and "unknown" not in found else ""


def _place(section: Any, key: str) -> str:
    """Where a key of a config is: set in it, left out by it, in a callback that it has not, or unknown."""
    name, _, rest = key.partition(".")
    if name == "callbacks" and isinstance(section, dict):
        callback = (section.get(name) or {}).get(rest.partition(".")[0])
        # streams and experiments have settings for methods that are not chosen
        if not (isinstance(callback, dict) and "_target_" in callback) and at(section, key) is None:
            return "without"
    for part in key.split("."):
        if not isinstance(section, dict):
            return "unknown"
        if part not in section:
            return "left out" if part in keyword_arguments(section.get("_target_")) else "unknown"
        section = section[part]
    return "set"


def _of_sweeps(overrides: list[str]) -> list[list[str]]:
    """The overrides with one value in place of several, so often that each value comes once; without those that are
    intervals and the like.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: list[list[str]] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
            if not override.is_sweep_override():
                found.append([text])
            elif override.is_discrete_sweep():
                key, values = text.partition("=")[0], override.sweep_string_iterator()
                # other sweeps do not decide which sections there are
                found.append([f"{key}={value}" for value in values][: None if SELECTS.match(text) else 1])
        except HydraException:  # it says what is wrong with it
            continue
    longest = max((len(values) for values in found), default=1)
    return [[values[min(i, len(values) - 1)] for values in found if values] for i in range(longest)]


def composed(overrides: list[str], config_name: str = "config") -> dict[str, Any]:
    """The config that these overrides give, with interpolations as they are written; without any where they fail."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    register_resolvers()
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            for attempt in (overrides, []):
                try:
                    config: Any = OmegaConf.to_container(compose(config_name, overrides=attempt))
                except Exception:  # another override may be wrong too, or be a sweep's list
                    continue
                return config if isinstance(config, dict) else {}
    finally:
        GlobalHydra.instance().hydra = before
    return {}


def at(config: Any, path: str) -> Any:
    """What is at a path of a config of plain values; None if nothing is."""
    for part in path.split(".") if path else []:
        config = config.get(part) if isinstance(config, dict) else None
    return config


def referred(section: Any) -> set[str]:
    """The keys that a section of a config, with its interpolations as they are written, takes values from."""
    return set(re.findall(r"\$\{([\w.]+)\}", str(section)))


def close_keys(key: str, config: Any) -> str:
    """A hint at what is like ``key``: keys of the config, groups, arguments that it leaves out; empty if nothing is."""
    keys = [*paths(config), *(path.name for path in conf_dir().iterdir() if path.is_dir())]
    for section in keys.copy():
        target = at(config, f"{section}._target_")
        if str(target).startswith(OURS) or section == key.rpartition(".")[0]:
            keys += [f"{section}.{argument}" for argument in keyword_arguments(target)]
    keys = [known for known in dict.fromkeys(keys) if not known.endswith("_target_")]
    name = key.rpartition(".")[2]
    same_name = [known for known in keys if known.rpartition(".")[2] == name]
    close = list(dict.fromkeys([*same_name, *difflib.get_close_matches(key, keys, n=3)]))[:3]
    return f"did you mean {' or '.join(close)}?" if close else ""


def paths(config: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a config, those of inner sections with their path."""
    for key, value in config.items() if isinstance(config, dict) else []:
        yield f"{prefix}{key}"
        yield from paths(value, f"{prefix}{key}.")
