"""What a composed config must be before anything of it is built."""

import typing
from typing import Any

from lightning_cl._types import refuse_kind, refuse_wrong_kinds
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


def _check_section(key: str, section: Any) -> None:
    if not isinstance(section, dict) or "_target_" not in section:
        raise InputError(f"{key}={section!r}", "a section with a _target_", f"{key}=NAME chooses one that exists")
    if key in CALLED_LATER and section.get("_partial_") is not True:
        given = f"{key}._partial_={section.get('_partial_')!r}"
        raise InputError(given, "true, because it is built later, more than once", "leave it as it is")
