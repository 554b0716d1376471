"""Two processes: the proximal form leaves the same weights in both, and they are those of one process."""

from pathlib import Path

import pytest
import torch

from lightning_cl import EWC
from tests.callbacks.distributed_examples import in_two_processes
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import differences

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, DistributedSampler
from lightning_cl import EWC
from tests.callbacks.ewc_examples import Net, data

if __name__ == "__main__":
    found = {}
    for optimizer in ("SGD", "Adam"):
        for lambda_ in ("auto", 1e9):
            ewc, module = EWC(lambda_, apply="proximal"), Net(optimizer=optimizer).double()
            for task in range(2):
                trainer = Trainer(
                    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[ewc], logger=False,
                    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                    use_distributed_sampler=False,
                )
                dataset, rank = data(task, dtype=torch.float64).dataset, trainer.global_rank
                sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
                trainer.fit(module, DataLoader(dataset, batch_size=3, sampler=sampler))
            found[f"{optimizer} {lambda_}"] = {"weights": module.weights, "state": ewc.state_dict()}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_both_ranks_agree_with_one_process_of_twice_the_batch(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert differences(one, two) == []
    for optimizer in ("SGD", "Adam"):
        module, naive = (Net(optimizer=optimizer).double() for _ in range(2))
        ewc = EWC("auto", apply="proximal")
        for task in range(2):
            # the sampler of two processes deals the samples out in turns: twice 3 are the same 6
            fit(module, data(task, dtype=torch.float64), ewc)
            fit(naive, data(task, dtype=torch.float64))
        found = one[f"{optimizer} auto"]
        assert found["state"]["n_tasks"] == 2
        assert float((found["weights"] - naive.weights).abs().max()) > 1e-3
        torch.testing.assert_close(found["weights"], module.weights)
        assert found["state"]["lambda"] == pytest.approx(ewc.strength)
