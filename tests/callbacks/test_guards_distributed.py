"""Two processes: interpolated weights, averaged weights and the anchor of L2-SP are the same in both."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes
from tests.resume.helpers import differences

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import EMA, L2SP, InputError, WiSEFT
from tests.callbacks.ewc_examples import data
from tests.callbacks.test_wise_ft import Validated

def fit(callback):
    model = Validated(lr=0.3)
    with torch.no_grad():
        model.net[0].bias += int(torch.distributed.is_initialized() and torch.distributed.get_rank())
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback] if callback else [],
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(model, data(0))
    return trainer, {"start": start, "weights": model.state_dict(), "state": callback.state_dict() if callback else {}}

if __name__ == "__main__":
    found = {}
    for name, callback in (
        ("naive", None), ("wise_ft", WiSEFT(0.4)), ("reestimated", WiSEFT(0.4, batch_norm="reestimate")),
        ("ema", EMA(0.7)), ("l2sp", L2SP(0.5)),
    ):
        trainer, found[name] = fit(callback)
    try:
        fit(WiSEFT())
    except InputError as error:
        found["refused"] = str(error)
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_both_ranks_agree(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    for name in ("naive", "wise_ft", "reestimated", "ema", "l2sp"):
        trained = {key: value for key, value in one[name]["weights"].items() if "running" not in key}
        assert differences(trained, {key: two[name]["weights"][key] for key in trained}) == [], name
        if name != "naive":
            assert differences(one[name]["state"], two[name]["state"]) == [], name
            assert not torch.equal(trained["net.0.weight"], one["naive"]["weights"]["net.0.weight"])
    # what the ranks began with is rank 0's weights, which DDP gives to all
    assert torch.equal(two["l2sp"]["state"]["anchor"]["net.0.bias"], one["l2sp"]["start"]["net.0.bias"])
    assert differences(one["reestimated"]["weights"], two["reestimated"]["weights"]) == []
    assert "with WiSEFT in a Trainer of 2 process(es); expected a number, or run_sequence" in one["refused"]
