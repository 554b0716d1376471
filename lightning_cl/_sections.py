"""What a composed config must be before anything of it is built, and what is written down of it."""

import contextlib
import re
import typing
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_cl._conf import conf_dir
from lightning_cl._overrides import close_keys
from lightning_cl._types import refuse_kind, refuse_wrong_kinds, short
from lightning_cl.errors import InputError

# whether there may be none
SECTIONS = {"stream": False, "model": False, "trainer": False, "optimizer": False, "scheduler": True}
CALLED_LATER = ("trainer", "optimizer", "scheduler")
MOST_PROCESSES = 1024  # a wrong number would fill the machine with processes before anybody sees it
OTHERS: dict[str, Any] = {
    "data_dir": str,
    "download": bool,
    "class_order_seed": int | None,
    "validation_fraction": float,
    "accelerator": str,
    "progress_bar": bool | typing.Literal["auto"],
    "reference_methods": list[str] | None,
    "callbacks": dict | None,
    "loggers": dict | None,
}


def check_config(config: dict[str, Any], settings: typing.Iterable[str]) -> None:
    """Refuse a config with values that are missing or of a wrong kind, naming the first.

    Args:
        config: Plain, resolved values.
        settings: The keys that are arguments of :class:`~lightning_cl.sequence.settings.Settings`.

    Raises:
        InputError: For such a value.
    """
    from lightning_cl.sequence.settings import Settings

    for key, optional in SECTIONS.items():
        section = config.get(key)
        if section != "???" and not (section in (None, {}) and optional):
            _check_section(key, section)
    refuse_wrong_kinds(config)
    kinds = typing.get_type_hints(Settings)
    for key, kind in [*OTHERS.items(), *((key, kinds[key]) for key in settings)]:
        if key in config:
            refuse_kind(key, config[key], kind)
    for key, section in (config.get("callbacks") or {}).items():
        if section is not None and not isinstance(section, dict):
            expected = "a section with a _target_, or null"
            raise InputError(f"callbacks.{key}={section!r}", expected, "method=NAME adds it")
    devices = config["trainer"].get("devices")
    if isinstance(devices, int) and devices > MOST_PROCESSES:
        raise InputError(
            f"trainer.devices={devices!r}", f"at most {MOST_PROCESSES} processes a node", "set trainer.devices=1"
        )


def refuse_unknown_keys(config: Any, hydra: Any = None) -> None:
    """Refuse keys at the top of a config that nothing reads, which are mistakes such as ``+fill=step``.

    A key of one's own is welcome where an interpolation names it, in the config (``+my_lr=0.1 optimizer.lr=${my_lr}``)
    or in Hydra's own part (``hydra.run.dir=${my_dir}``). Notes that nothing refers to belong into a comment.

    Args:
        config: The config, with its interpolations as they are written.
        hydra: Hydra's own part, likewise.

    Raises:
        InputError: For the first such key, with the closest that there are.
    """
    known = {*OmegaConf.load(conf_dir() / "config.yaml"), *SECTIONS, "parameter_groups", "loggers"} - {"defaults"}
    strange = [key for key in config if key not in known]
    if not strange:
        return
    written = " ".join(OmegaConf.to_yaml(part) for part in (config, hydra) if part is not None)
    plain: Any = OmegaConf.to_container(config)
    named = " ".join(re.findall(r"\$\{([^{}$]*)", written))
    for key in strange:
        if not re.search(rf"(?<!\w)(?<!\w\.){re.escape(str(key))}(?!\w)", named):
            there = {name: value for name, value in plain.items() if name not in strange}
            hint = close_keys(str(key), there) or f"write ${{{key}}} where it is used"
            given = f"{key}={short(plain[key])} (no such key)"
            raise InputError(given, "a key of the config, or one that another refers to", hint)


def _check_section(key: str, section: Any) -> None:
    if not isinstance(section, dict) or "_target_" not in section:
        raise InputError(f"{key}={section!r}", "a section with a _target_", f"{key}=NAME chooses one that exists")
    if key in CALLED_LATER and section.get("_partial_") is not True:
        given = f"{key}._partial_={section.get('_partial_')!r}"
        raise InputError(given, "true, because it is built later, more than once", "leave it as it is")


def recorded_config(cfg: DictConfig, name: str) -> dict[str, Any]:
    """The plain values that go into the results of a run of the method ``name``, and identify it."""
    from lightning_cl.finetuning.schedule_text import phases_from_yaml

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    for key, section in list((config.get("callbacks") or {}).items()):
        if isinstance(section, dict) and "_target_" not in section:
            del config["callbacks"][key]  # settings of a method that is not chosen
        elif isinstance(section, dict) and isinstance(section.get("phases"), str):
            # a schedule is a file to be edited: what it says makes the run, not its name
            with contextlib.suppress(OSError, ValueError):  # told by the callback
                section["phases"] = phases_from_yaml(Path(section["phases"]).read_text())
    return {key: value for key, value in config.items() if key not in ("loggers",)} | {"method": name}
