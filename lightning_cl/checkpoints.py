"""Checkpoints of models made from those of others: means and points between."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import load_state, loadable, save_state
from lightning_cl.functional.interpolation import differing_entries, interpolate

HPARAMS = "hyper_parameters"


def read_model(path: Path) -> dict[str, Any]:
    """A checkpoint's model: weights and hyperparameters; nothing in the file is executed.

    Args:
        path: A Lightning checkpoint, ``model.ckpt`` of a run folder, or the run folder.

    Raises:
        InputError: If it cannot be read or holds no weights.
    """
    path = path / "model.ckpt" if path.is_dir() else path
    expected = "a Lightning checkpoint, or the folder of a finished run"
    try:
        content = load_state(path)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {str(path)!r}", expected, "check the path, or let the run finish") from error
    except Exception as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({type(error).__name__})", expected, "save it with plain hyperparameters"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(
            f"{str(path)!r} without a state_dict", expected, "give model.ckpt of a run folder, for example"
        )
    kept = ("state_dict", HPARAMS, "pytorch-lightning_version")
    return {key: content[key] for key in kept if key in content}


def write_model(path: Path, model: dict[str, Any], state_dict: dict[str, Any], **notes: Any) -> None:
    """Write a model with other weights; :func:`read_model` and ``load_from_checkpoint`` read it.

    Args:
        path: The file.
        model: What :func:`read_model` returned.
        state_dict: Its weights.
        **notes: Plain values that say where it comes from.
    """
    save_state(path, {**model, HPARAMS: loadable(model.get(HPARAMS, {})), "state_dict": state_dict, **notes})


def refuse_other_models(models: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    """Refuse models that differ in what they predict or in their architecture.

    Raises:
        InputError: With the first difference.
    """
    first = models[0]
    for model, name in zip(models[1:], names[1:], strict=True):
        classes = [m.get(HPARAMS, {}).get("class_names") for m in (first, model)]
        if classes[0] != classes[1]:
            raise InputError(
                f"classes {classes[1]} in {name!r}, {classes[0]} in {names[0]!r}",
                "the same classes in the same order",
                "average runs of one stream and one class_order_seed, all finished",
            )
        if different := differing_entries(first["state_dict"], [model["state_dict"]]):
            raise InputError(
                f"another architecture in {name!r} than in {names[0]!r} ({different})",
                "models of one architecture",
                "average the runs of a sweep that leaves model=... as it is",
            )


def interpolate_checkpoints(before: str | Path, after: str | Path, alpha: float, out: str | Path) -> None:
    """Write the model between two checkpoints, of which the second was fine-tuned from the first (WiSE-FT).

    Its classes and hyperparameters are the second's. Heads of classes that only the second knows are the second's; see
    :func:`~lightning_cl.functional.interpolate`.

    Args:
        before, after: Lightning checkpoints, or run folders.
        alpha: From 0, the first's weights, to 1, the second's.
        out: The file to write.

    Raises:
        InputError: If a file cannot be read, the models have nothing in common, or their classes another order.
    """
    first, second = read_model(Path(before)), read_model(Path(after))
    names = [m.get(HPARAMS, {}).get("class_names") or [] for m in (first, second)]
    if names[0] and names[1] and names[1][: len(names[0])] != names[0]:
        raise InputError(
            f"classes {names[0]} before, {names[1]} after",
            "the same classes in the same order, or more behind them",
            "the rows of one head are mixed by their places",
        )
    a, b = first["state_dict"], second["state_dict"]
    if not any(name in b and b[name].dim() == a[name].dim() for name in a):
        raise InputError(
            f"nothing in {str(after)!r} is in {str(before)!r}",
            "a model, and one that was fine-tuned from it",
            "give checkpoints of the same module",
        )
    try:
        mixed = interpolate(a, b, alpha)
    except ValueError as error:
        raise InputError(f"alpha={alpha!r}", "a number from 0 to 1", "--alpha 0.5") from error
    write_model(Path(out), second, mixed, interpolation={"alpha": float(alpha)})
