"""Where the configs are, and the few resolvers they use. Imports nothing heavy."""

import hashlib
import re
from pathlib import Path
from typing import Any

DEFAULT_METHOD = "er"  # of conf/config.yaml


def conf_dir() -> Path:
    """The folder of the Hydra groups: inside the package in a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "conf"
    return inside if inside.is_dir() else here.parent / "conf"


def register_resolvers() -> None:
    """Make ``lightning_cl.*`` known to OmegaConf; safe to call twice."""
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("lightning_cl.folder", folder, replace=True)
    OmegaConf.register_new_resolver("lightning_cl.head", head_for, replace=True)
    OmegaConf.register_new_resolver("lightning_cl.epochs", epochs_for, replace=True)
    OmegaConf.register_new_resolver("lightning_cl.inputs", inputs_for, replace=True)


def method_name(overrides: Any, choices: Any = None) -> str:
    """The method chosen on the command line, ``ewc+er`` for ``method=[ewc,er]``.

    Hydra does not record the choice of a group that is a list, so it is read from the overrides.

    Example:
        >>> method_name(["seed=1", "method=[ewc, er]"])
        'ewc+er'
        >>> method_name([])
        'er'
    """
    chosen = [str(text).partition("=")[2] for text in overrides if str(text).startswith("method=")]
    choice = chosen[-1] if chosen else (choices or {}).get("method") or DEFAULT_METHOD
    return "+".join(name.strip().strip("'\"") for name in choice.strip("[]").split(",") if name.strip()) or "naive"


def run_method(hydra: Any) -> str:
    """The method of the run that Hydra is configured for, as it is composed: an experiment may choose it too.

    Args:
        hydra: Hydra's own part of the config.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    if not GlobalHydra.instance().is_initialized():
        return method_name(hydra.overrides.task, hydra.runtime.choices)
    found = (
        GlobalHydra.instance()
        .config_loader()
        .compute_defaults_list(
            config_name=hydra.job.config_name,
            overrides=[*hydra.overrides.hydra, *hydra.overrides.task],
            run_mode=RunMode.RUN,
        )
    )
    paths = [(item.config_path or "", item.parent or "") for item in found.defaults]
    # a method of one's own may be made of others
    names = [
        path
        for path, parent in paths
        if path.startswith("method/") and (parent == path or not parent.startswith("method/"))
    ]
    return "+".join(dict.fromkeys(name.removeprefix("method/") for name in names)) or "naive"


def folder(*, _root_: Any) -> str:
    """``<stream>/<method>/<overrides>/seed=<n>``: a function of the run; the same command finds its own folder.

    Overrides stand there without their +, so that a job of a sweep has the folder that it has alone.
    """
    hydra = _root_.hydra
    choices = hydra.runtime.choices
    left_out = set(hydra.job.config.override_dirname.exclude_keys)
    plain = [text.lstrip("+") for text in hydra.overrides.task]
    overrides = ",".join(sorted(text for text in plain if text.partition("=")[0] not in left_out)) or "default"
    # one path component of safe characters; a long or changed one is told apart by a hash of the original
    safe = re.sub(r"[^\w.,=+\-\[\]]+", "-", overrides)
    if safe != overrides or len(safe) > 80:
        safe = f"{safe[:80]}-{hashlib.blake2b(overrides.encode(), digest_size=4).hexdigest()}"
    return f"{choices.stream}/{run_method(hydra)}/{safe}/seed={_root_.seed}"


def head_for(scenario: str) -> str:
    """The head that a scenario asks for: one for each task if the task is known, else one that grows."""
    return "multi" if scenario == "task_incremental" else "growing"


def epochs_for(scenario: str | None) -> int:
    """Epochs of a task where nothing is said: one in the scenarios that are learnt in one pass."""
    return 1 if scenario in ("online", "blurry", "gradual") else 10


def inputs_for(what: str, *, _root_: Any) -> Any:
    """``size``, ``interpolation`` or ``normalize``: how the weights of the config's backbone expect images."""
    from omegaconf import OmegaConf

    backbone: Any = OmegaConf.select(_root_, "model.backbone")
    target = str((backbone or {}).get("_target_", "")).rpartition(".")[2]
    if target not in ("TorchvisionBackbone", "TimmBackbone", "HFImageBackbone"):
        return {"size": 224, "interpolation": "bilinear", "normalize": None}[what]  # without a heavy import
    from lightning_cl.finetuning import pretrained_inputs

    found = getattr(pretrained_inputs(OmegaConf.to_container(backbone, resolve=True)), what)
    return OmegaConf.create(found) if isinstance(found, list) else found
