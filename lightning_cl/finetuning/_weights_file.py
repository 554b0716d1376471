"""State dicts from files that were written by anybody: nothing in them is run."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.finetuning._head_rows import names_of_config

#: under which a state dict stands in what training scripts save
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
_IN_A_FOLDER = ("model.safetensors", "pytorch_model.bin")


def read_weights(source: Any) -> tuple[dict[str, Tensor], list[str], str]:
    """Tensors by name, class names where the file has them, and what to call it in messages.

    Args:
        source: A state dict; or the path of a ``.safetensors`` file, of a file of ``torch.save``, or of a folder as
            ``save_pretrained`` writes it.

    Raises:
        InputError: If there is no such file, it would run code, or it holds no tensors.
    """
    if isinstance(source, Mapping):
        return *_tensors(source, "the state dict"), "the state dict"
    path = Path(source)
    if path.is_dir():
        inside = [path / name for name in _IN_A_FOLDER if (path / name).is_file()]
        config = path / "config.json"
        if not inside:
            raise InputError(f"weights={str(path)!r}", f"a folder with {' or '.join(_IN_A_FOLDER)}", "give the file")
        names = names_of_config(json.loads(config.read_text())) if config.is_file() else []
        return _read(inside[0])[0], names, f"weights={str(path)!r}"
    if not path.is_file():
        raise InputError(f"weights={str(path)!r}", "an existing file", "give a path, a name of weights, or null")
    return *_read(path), f"weights={str(path)!r}"


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    given = f"weights={str(path)!r}"
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError as error:
                raise InputError(given, "the package safetensors", "pip install safetensors") from error
            saved: Any = load_file(path)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        called = re.search(r"GLOBAL ([\w.]+)", str(error))
        if called:
            raise InputError(
                f"{given} cannot be read without running code from it ({called.group(1)})",
                "a state dict of tensors and plain values",
                "write torch.save(model.state_dict(), FILE) or a .safetensors where the file comes from",
            ) from error
        raise InputError(
            f"{given} cannot be read ({type(error).__name__})",
            "a state dict of tensors",
            "write it with torch.save(model.state_dict(), FILE)",
        ) from error
    return _tensors(saved, given)


def _tensors(saved: Any, given: str) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict inside what was saved, and the class names of a Lightning checkpoint of ours."""
    hparams = saved.get("hyper_parameters") if isinstance(saved, Mapping) else None
    names = hparams.get("class_names") if isinstance(hparams, Mapping) else None
    while isinstance(saved, Mapping):
        found = {str(key): value for key, value in saved.items() if isinstance(value, Tensor)}
        inner = next((saved[key] for key in _WRAPPERS if isinstance(saved.get(key), Mapping)), None)
        if inner is None and found:
            # a compiled model puts this inside its names
            clean = {key.replace("_orig_mod.", ""): value for key, value in found.items()}
            return clean, [str(name) for name in names] if isinstance(names, list) else []
        saved = inner
    raise InputError(
        f"{given} without tensors by name", "a state dict", "write it with torch.save(model.state_dict(), FILE)"
    )
