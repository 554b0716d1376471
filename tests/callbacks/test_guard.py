import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_cl import run_sequence
from lightning_cl.callbacks._guard import FiniteLoss
from lightning_cl.errors import InputError
from tests.callbacks.freezing_examples import Net, train
from tests.finetuning.examples import FEW_EPOCHS, module, stream


class Goes(Net):
    """Its loss is ``value`` from the third step on."""

    def __init__(self, value: float, form: str) -> None:
        super().__init__()
        self.value, self.form, self.step = value, form, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.step += 1
        loss = super().training_step(batch, batch_idx) * (self.value if self.step >= 3 else 1.0)
        return loss if self.form == "tensor" else {"loss": loss, "other": "text"}


@pytest.mark.parametrize("form", ["tensor", "dict"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_stops_at_the_step(value: float, form: str) -> None:
    module = Goes(value, form)
    with pytest.raises(InputError, match=rf"loss={value}.* at step 3; expected a finite loss\. HINT: lower"):
        train(module, FiniteLoss())
    assert module.step == 3


def test_a_finite_loss_and_no_loss_at_all_pass() -> None:
    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    for model in (Net(), Manual()):
        assert isinstance(model, LightningModule)
        assert train(model, FiniteLoss(), epochs=1).current_epoch == 1


def test_finished_tasks_stay_on_disk(tmp_path: Path) -> None:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y) * (math.nan if logits.shape[1] == 6 else 1.0)

    with pytest.raises(InputError, match="expected a finite loss"):
        run_sequence(module(loss=loss), stream(), run_dir=tmp_path, trainer=FEW_EPOCHS, progress_bar=False)
    saved = torch.load(tmp_path / "checkpoints" / "task0002-stage0.model.ckpt", weights_only=True)
    assert saved["state_dict"]["head.weight"].shape == (4, 16)
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())
