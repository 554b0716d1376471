import logging

import pytest
import torch

from lightning_cl import FineTuningModule
from lightning_cl.functional import diagonal_fisher


def test_every_parameter_of_the_default_model_has_a_closed_form(caplog: pytest.LogCaptureFixture) -> None:
    from lightning_cl.finetuning import MLP

    module = FineTuningModule(MLP((1, 4, 4), (8,)), class_names=["a", "b", "c"])
    data = [(torch.rand(5, 1, 4, 4), torch.arange(5) % 3)]
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        found = diagonal_fisher(module, data, logits_fn=lambda m, batch: m.importance_logits(batch))
    assert set(found) == {name for name, _ in module.named_parameters()}
    assert ", 0 sample by sample" in caplog.records[-1].getMessage()
