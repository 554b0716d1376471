"""Weights into a model, also where the classifier has another size."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._find_head import find_heads, is_hf
from lightning_cl.finetuning._hf_names import as_in_memory
from lightning_cl.finetuning._load_head import KEEP, SavedHead, take_classes
from lightning_cl.finetuning._weights_file import read_weights
from lightning_cl.finetuning._weights_names import Rename, aligned, renamed, without
from lightning_cl.finetuning.weights_report import WeightsReport

log = logging.getLogger(__name__)


@torch.no_grad()
def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    head: Literal["keep_matching", "keep_first", "new", "as_saved", "error"] = "keep_matching",
    rename: Rename | None = None,
    prefix: str | None = None,
    saved_classes: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    name: str | None = None,
    strict: bool = True,
) -> WeightsReport:
    """Load a state dict and say of every tensor what became of it.

    Files are ``.safetensors``, or of ``torch.save``: a state dict, what a training script wrapped around one
    (``state_dict``, ``model``), a Lightning checkpoint; or a folder of ``save_pretrained``. They are read with
    ``weights_only=True``: a file that would run code is refused. Prefixes (``model.``, ``module.``, ``backbone.``,
    ``_orig_mod.``) are found by which names fit.

    Everything but the classifier has to fit (``strict``). A classifier of the same size, whose class names do not say
    otherwise, is loaded as it is. Class names are those of the head (ours), of an HF config, of a checkpoint of
    :class:`~lightning_cl.finetuning.FineTuningModule`, or given; where they are known on both sides, rows go by name.
    Nothing is changed if an error is raised.

    Args:
        model: The model, filled in place.
        source: A path or a state dict.
        head: For a classifier of another size or other classes: ``"keep_matching"``: rows of the same class name are
            loaded, the others stay as the model has them. ``"keep_first"``: rows go by number. ``"new"``: the model's
            classifier stays as it is, whatever the file has. ``"as_saved"``: the model gets the classes of the file.
            ``"error"``: it is refused.
        rename: ``{regex: replacement}`` on the saved names, or a function of a name (None leaves a tensor out), before
            prefixes are looked at.
        prefix: The prefix to take, where a file holds several networks (``"student."``).
        saved_classes: Class names of the saved rows.
        classes: Class names of the model's rows.
        name: Name of the model's classifier, where it does not tell.
        strict: Whether a tensor that the file lacks, or has in another shape, is an error. ``num_batches_tracked`` may
            always be missing.

    Returns:
        The report. Its first line is logged, as a warning where the classifier was not loaded as it is.

    Raises:
        InputError: If the file cannot be read, does not fit, or, under ``head="error"``, has another classifier.

    Example:
        >>> old, new = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 2))
        >>> load_weights(new, old.state_dict(), saved_classes=["a", "b", "c"], classes=["c", "d"]).heads
        {'0': "1 of 2 rows from the file's 3, by class name"}
    """
    if head not in KEEP:
        raise InputError(f"head={head!r}", f"one of {', '.join(KEEP)}", "leave it out for 'keep_matching'")
    target: Any = getattr(model, "_orig_mod", model)
    tensors, file_classes, given = read_weights(source)
    tensors, heads = renamed(tensors, rename), _heads(target, name)
    saved = aligned(tensors, _tensors(target), prefix)
    report = _plan(target, saved, heads, given)
    if report.missing and is_hf(target):
        saved = aligned(as_in_memory(target, without(tensors, prefix)), _tensors(target))
        report = _plan(target, saved, heads, given)
    fits = list(report.loaded)
    _refuse_misfit(report, strict)
    parts = [SavedHead(target, where, saved, (classes, saved_classes), file_classes) for where in heads]
    for part in parts if head == "error" else []:
        part.refuse_other()
    if head == "as_saved" and heads:
        take_classes(target, heads[0], saved, list(saved_classes or file_classes), name)
        parts = [SavedHead(target, where, saved, (None, saved_classes), file_classes) for where in heads]
    own = _tensors(target)
    for key in fits:
        own[key].copy_(saved[key])
    for part in parts:
        part.load(head, report)
    expected = report.exact or (head == "new" and not (report.missing or report.mismatched))
    log.log(logging.INFO if expected else logging.WARNING, report.summary())
    return report


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _heads(model: nn.Module, name: str | None) -> list[str]:
    """The classifiers of a model; none where it does not tell, because then all tensors have to fit."""
    try:
        return find_heads(model, name)
    except InputError:
        if name is not None:
            raise
        return []


def _plan(model: nn.Module, saved: Mapping[str, Tensor], heads: list[str], given: str) -> WeightsReport:
    """What can be loaded outside the classifiers, and what cannot."""
    report, inside = WeightsReport(given), tuple(f"{where}." for where in heads)
    own = _tensors(model)
    for key, value in own.items():
        if key.startswith(inside):
            continue
        if key in saved and saved[key].shape == value.shape:
            report.loaded.append(key)
        elif key in saved:
            report.mismatched[key] = tuple(saved[key].shape), tuple(value.shape)
        elif not key.endswith("num_batches_tracked"):
            report.missing.append(key)
    report.skipped = [key for key in saved if key not in own]
    return report


def _refuse_misfit(report: WeightsReport, strict: bool) -> None:
    wrong = [*report.mismatched, *report.missing]
    if wrong and (strict or not report.loaded):
        rather = f" (the file has {', '.join(repr(key) for key in report.skipped[:3])}, ...)" if report.skipped else ""
        raise InputError(
            f"{report.source} without {len(wrong)} entries of the model, such as {wrong[0]!r} of its shape{rather}",
            "weights of the same model (its head may differ)",
            "check model and small_images, map names with rename={regex: replacement}, or allow it with strict=False",
        )
