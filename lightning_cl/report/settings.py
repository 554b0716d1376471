"""What differs between the configurations of several runs."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# where a run is done and watched; its numbers do not depend on these
_ELSEWHERE = {
    *("accelerator", "data_dir", "devices", "download", "eval_batch_size", "experiment", "hydra", "logger"),
    *("num_workers", "output_dir", "references", "reference_methods", "report", "resume", "root", "run_dir", "verbose"),
    *("default_root_dir", "dirpath", "folder", "run_folder", "save_dir"),
}
# of these, what says which data a stream is of
_DATA = {"root", "folder", "dirpath"}
TARGET = "_target_"
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
# keys of the group `stream` that say how data are fed and not which tasks there are
_FEEDING = {"augment", "batch_size", "drop_last", "validation_fraction", "validation"}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay values; seeds and keys that change no result are left out.

    Example:
        >>> flat({"seed": 1, "model": {"lr": 0.1, "class_order_seed": 3}, "data_dir": "x"})
        {'model.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in (config or {}).items() if isinstance(config, Mapping) else ():
        name = str(key)
        is_data = name in _DATA and prefix.startswith("stream.")
        if (name in _ELSEWHERE and not is_data) or _is_seed(name):
            continue
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def seeds(config: Any, prefix: str = "") -> dict[str, Any]:
    """The seeds of a config and its sections, by dotted key.

    Example:
        >>> seeds({"seed": 1, "model": {"lr": 0.1, "seed": 3}})
        {'seed': 1, 'model.seed': 3}
    """
    found: dict[str, Any] = {}
    for key, value in config.items() if isinstance(config, Mapping) else ():
        name = str(key)
        found |= {prefix + name: value} if _is_seed(name) else seeds(value, f"{prefix}{name}.")
    return found


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")


def defines_tasks(key: str) -> bool:
    """Whether a dotted key belongs to what the stream's tasks are.

    Example:
        >>> defines_tasks("stream.n_tasks"), defines_tasks("stream.batch_size"), defines_tasks("model.lr")
        (True, False, False)
    """
    group, _, rest = key.partition(".")
    return key == "limit_tasks" or (group == "stream" and rest.rpartition(".")[2] not in _FEEDING)


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys that do not have the same value (or absence) in all of the flat ``configs``, sorted.

    Of keys with the same last part and the same values, as interpolation makes them, only the shortest is given.

    Example:
        >>> differing([{"a": 1, "b": 2, "c.b": 2}, {"a": 1, "b": 3, "c.b": 3}])
        ['b']
    """
    found: dict[tuple[str, ...], str] = {}
    for key in sorted({key for config in configs for key in config}, key=lambda key: (key.count("."), key)):
        values = [comparable(config.get(key, ...)) for config in configs]
        if len(set(values)) > 1:
            found.setdefault((key.rpartition(".")[2], *values), key)
    return sorted(found.values())


def comparable(value: Any) -> str:
    """Text that is the same for equal values: of numbers, too, that were typed with and without a point.

    Example:
        >>> comparable(100) == comparable(1e2), comparable(1) == comparable(True), comparable("1") == comparable(1)
        (True, False, False)
    """
    return repr(float(value) if type(value) is int and abs(value) < 2**53 else value)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """For each dotted key the fewest last parts that tell it from the others; a ``_target_`` has its section's name.

    Example:
        >>> short_names(["model.lr", "callbacks.ewc.lambda", "callbacks.si.lambda"])
        {'model.lr': 'lr', 'callbacks.ewc.lambda': 'ewc.lambda', 'callbacks.si.lambda': 'si.lambda'}
        >>> short_names(["optimizer._target_", "optimizer.lr"])
        {'optimizer._target_': 'optimizer', 'optimizer.lr': 'lr'}
    """
    shown = {key: key.removesuffix(f".{TARGET}") for key in keys}
    names = {}
    for key, text in shown.items():
        parts = text.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if sum(other == name or other.endswith(f".{name}") for other in shown.values()) == 1:
                break
        names[key] = name
    return names


def shown_values(values: Sequence[Any]) -> list[str]:
    """One setting's values in several configs as text; classes without their module where that tells them apart.

    Example:
        >>> shown_values(["torch.optim.Adam", "torch.optim.SGD", ...]), shown_values(["a.Adam", "b.Adam"])
        (['Adam', 'SGD', 'unset'], ['a.Adam', 'b.Adam'])
    """
    texts = [value_text(value) for value in values]
    dotted = all(value is ... or (isinstance(value, str) and DOTTED.fullmatch(value)) for value in values)
    short = [text.rpartition(".")[2] for text in texts] if dotted else texts
    return short if len(set(short)) == len(set(texts)) else texts


def value_text(value: Any) -> str:
    """A setting's value as it is written in a config.

    Example:
        >>> value_text(None), value_text(True), value_text(1e-3), value_text(1e6), value_text(2e3), value_text(...)
        ('null', 'true', '0.001', '1e6', '2000', 'unset')
    """
    if value is ...:
        return "unset"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, float) or not math.isfinite(value) or float(f"{value:.12g}") != value:
        return str(value)
    plain = f"{value:.12g}"
    mantissa, _, exponent = f"{value:.11e}".partition("e")
    short = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    # a thousand is read as it is, a million is not
    return short if "e" in plain or len(short) + 2 < len(plain) else plain
