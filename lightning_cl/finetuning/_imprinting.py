"""Where the features of new classes lie, before a fit has moved anything."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import chosen_inputs, split_batch


def features_of(module: Any, rows: list[int]) -> dict[int, Tensor]:
    """The backbone's features (n, d) of the training samples of each of these classes, in eval mode, on the CPU.

    Raises:
        InputError: If the DataModule does not give its training data as they are.
    """
    loader_of = getattr(getattr(module._trainer, "datamodule", None), "importance_dataloader", None)
    if loader_of is None:
        raise InputError(
            "imprint=True with data that have no importance_dataloader()",
            "a DataModule that gives the training data unshuffled and not augmented",
            "use TaskDataModule, define importance_dataloader(), or leave imprint out",
        )
    found: dict[int, list[Tensor]] = {row: [] for row in rows}
    with _compat.evaluating(module), torch.no_grad():
        for batch in loader_of():
            x, y, _ = split_batch(_compat.move_batch(None, module, batch))
            y = y.cpu()
            chosen = torch.isin(y, torch.tensor(rows))
            if chosen.any():
                features = module.backbone(chosen_inputs(x, chosen)).cpu()
                for row in y[chosen].unique().tolist():
                    found[row].append(features[y[chosen] == row])
    return {row: torch.cat(parts) for row, parts in found.items() if parts}
