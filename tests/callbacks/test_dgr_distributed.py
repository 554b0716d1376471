"""Two processes: the generator, the previous model and the weights are the same in both."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes
from tests.resume.helpers import differences

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from tests.callbacks.dgr_examples import Net, data, dgr

if __name__ == "__main__":
    callback, module = dgr(), Net()
    for task in range(2):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        module.batches.clear()
        trainer.fit(module, data(task))
    found = {"weights": module.weights, "state": callback.state_dict(), "replayed": module.batches[-1][0]}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_both_ranks_agree(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    replayed = one.pop("replayed"), two.pop("replayed")
    assert differences(one, two) == []
    assert one["state"]["n_tasks"] == 2
    assert not torch.isin(replayed[0], replayed[1]).any()
