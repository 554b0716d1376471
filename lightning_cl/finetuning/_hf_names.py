"""Saved weights of HF models whose names in a file are not those in memory."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def as_in_memory(model: Any, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Saved tensors under the names that the library has for them in memory, as far as it knows better ones.

    From version 5 transformers renames (and sometimes splits) tensors when it loads a file: a ViT's
    ``encoder.layer.0.attention.attention.query`` is ``layers.0.attention.q_proj`` in memory. Only its own loading knows
    how, so a second model is loaded for a moment.

    Args:
        model: An HF model.
        saved: Tensors as they stand in a file.
    """
    try:
        # the library draws what the file lacks, and reports at length
        with torch.random.fork_rng(devices=[]), _silent():
            other, told = type(model).from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                state_dict=dict(saved),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception:  # whatever it cannot load is reported by its own names
        return dict(saved)
    wrong = {*told["missing_keys"], *(key[0] for key in told["mismatched_keys"])}
    found = {key: value for key, value in other.state_dict().items() if key not in wrong}
    own = other.state_dict()
    rest = {key: saved[key] for key in saved if key in told["unexpected_keys"] or (key in own and key in wrong)}
    return {**found, **rest}


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    from transformers.utils import logging as library

    logger, bar = logging.getLogger("transformers"), library.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            library.enable_progress_bar()
