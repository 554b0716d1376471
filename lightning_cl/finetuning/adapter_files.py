"""Files that hold what was trained, and enough to build it again on a fresh base."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from lightning_cl.errors import InputError, shortened
from lightning_cl.files import atomic_write, load_state, save_state
from lightning_cl.finetuning import _adapter_record as record
from lightning_cl.finetuning._adapter_build import build
from lightning_cl.finetuning.adapters import adapter_state

KEYS = {"kind", "layers", "narrowing", "heads", "also_train", "options", "seed"}


def save_adapters(model: nn.Module, path: str | Path) -> None:
    """Write adapters, head and ``also_train`` to one file, atomically.

    Beside the tensors it holds, as plain values, the config, the class names and rule of a
    :class:`~lightning_cl.FineTuningModule`, and up to 64 values by which the base is known again. ``*.safetensors`` is
    written in that format, any other name by ``torch.save``, to be read with ``weights_only=True``.

    Args:
        model: A module with adapters, or one that holds such a module; names in the file are relative to that.
        path: The file.
    """
    root = record.adapted(model)
    held: Any = record.record_of(root)
    about: dict[str, Any] = {"version": 1, "config": held["config"], "base": record.base_values(root)}
    if hasattr(root, "learn_classes"):
        hparams: Any = root.hparams
        about["head"] = {key: hparams[key] for key in ("class_names", "tasks", "rule")}
    state = {name: value.cpu().contiguous() for name, value in adapter_state(root).items()}
    if Path(path).suffix != ".safetensors":
        save_state(path, {**about, "state": state})
        return
    from safetensors.torch import save

    # it refuses tensors that share memory
    data = save({name: value.clone() for name, value in state.items()}, {"lightning_cl": json.dumps(about)})
    atomic_write(path, lambda file: file.write(data))


def load_adapters(model: Any, path: str | Path, *, strip: str = "", check_base: bool = True) -> Any:
    """Build adapters and head from a file on a fresh base, in place; the outputs are those that were saved.

    Args:
        model: The base as it was before :func:`~lightning_cl.finetuning.add_adapters`, with a head of the same size (a
            :class:`~lightning_cl.FineTuningModule` grows its own); or a module with the same adapters already.
        path: A file of :func:`save_adapters`, or a Lightning checkpoint of a fit with
            :class:`~lightning_cl.callbacks.adapters.Adapters`.
        strip: What the names in the file begin with and those of ``model`` do not: ``"model."`` for the network alone
            of a LightningModule that holds it as ``self.model``.
        check_base: Whether another base than that of the training is refused.

    Returns:
        The same module.

    Raises:
        InputError: For a file that is not of these kinds, another base, other adapters, or tensors that do not fit.
    """
    held = _without(strip, _read(path), path)
    if hasattr(model, "learn_classes") and held.get("head"):
        head = held["head"]
        if head["rule"] != model.hparams["rule"]:
            model.set_rule(None)
            model.set_rule(head["rule"])
        model.learn_classes(head["class_names"], head["tasks"])
    adopt(model, held["config"])
    if check_base:
        record.check_base(model, held["base"])
    _load(model, held["state"], path)
    return model


def adopt(model: Any, config: dict[str, Any] | None) -> None:
    """Have the adapters that a checkpoint's config names: built if there are none.

    Raises:
        InputError: If the module has others, the checkpoint has none, or its config is of another version.
    """
    if config is not None and (config.get("version") != 1 or not config.keys() >= KEYS):
        raise InputError(
            f"adapters of version {config.get('version')!r} in a checkpoint",
            "version 1, complete",
            "update lightning_cl",
        )
    present = record.record_of(model)
    own = present["config"] if present else None
    if config == own:
        return
    if own is not None or config is None:
        raise InputError(
            f"a checkpoint with {_said(config)} for {type(model).__name__} with {_said(own)}",
            "the same adapters",
            "load into a module without adapters, or give the same arguments",
        )
    build(model, config)


def _said(config: dict[str, Any] | None) -> str:
    if config is None:
        return "no adapters"
    lora = f", rank {config['rank']}, alpha {config['alpha']}" if config["kind"] == "lora" else ""
    return f"{config['kind']} on {len(config['layers'])} layers{lora}"


def _load(model: nn.Module, state: dict[str, Any], path: str | Path) -> None:
    own = model.state_dict()
    wrong = [
        f"{name} {tuple(value.shape)} for {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and own[name].shape != value.shape
    ]
    if wrong:
        raise InputError(
            f"tensors of {str(path)!r} of other shapes: {', '.join(wrong[:3])}",
            "the same shapes",
            "build the base with a head of as many classes",
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"{str(path)!r}, which does not fit {type(model).__name__} ({shortened(error)})",
            "the same base and adapters",
            "build the same model first; strip='model.' takes a prefix from the names",
        ) from error


def _read(path: str | Path) -> dict[str, Any]:
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {})["lightning_cl"])
                return {**about, "state": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
        held = load_state(path)
        return held if "config" in held else _of_checkpoint(held)
    except OSError as error:
        raise InputError(f"no file {str(path)!r}", "a file of save_adapters", "see the path") from error
    except Exception as error:
        raise InputError(
            f"{str(path)!r}, which holds no adapters ({type(error).__name__}: {shortened(error, 100)})",
            "a file of save_adapters, or a checkpoint of a fit with Adapters",
            "save_adapters(model, path) writes one",
        ) from error


def _of_checkpoint(checkpoint: dict[str, Any]) -> dict[str, Any]:
    hparams = checkpoint.get("hyper_parameters", {})
    configs = [state["config"] for key, state in checkpoint.get("callbacks", {}).items() if key.startswith("Adapters.")]
    config = (configs or [hparams.get("adapters")])[0]
    if config is None:
        raise KeyError("adapters")
    head = {key: hparams.get(key) for key in ("class_names", "tasks", "rule")} if "adapters" in hparams else None
    return {"config": config, "base": checkpoint.get(record.BASE_KEY), "head": head, "state": checkpoint["state_dict"]}


def _without(prefix: str, held: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """The same with shorter names."""
    config, names = dict(held["config"]), list(held["state"])
    lists = ("heads", "layers", "narrowing")
    names += [name for key in lists for name in config.get(key, [])]
    strange = [name for name in names if not name.startswith(prefix)]
    if strange:
        raise InputError(
            f"strip={prefix!r} for {strange[0]!r} in {str(path)!r}", "what all names begin with", "leave it out"
        )
    config.update({key: [name.removeprefix(prefix) for name in config[key]] for key in lists if key in config})
    state = {name.removeprefix(prefix): value for name, value in held["state"].items()}
    return {**held, "config": config, "state": state}
