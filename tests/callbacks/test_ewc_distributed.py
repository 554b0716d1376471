"""Two processes: both have the same importances, and the same weights after training with the penalty."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import EWC
from tests.callbacks.ewc_examples import Net, data

if __name__ == "__main__":
    ewc, module = EWC(20.0, state_path=sys.argv[1] + "/state.pt"), Net()
    for task in range(2):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[ewc], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(module, data(task))
    found = {"weights": module.weights, "importance": ewc.importance, "anchor": ewc.anchor, "tasks": ewc.n_tasks}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_both_ranks_agree_and_one_process_has_the_same_importance(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert torch.equal(one["weights"], two["weights"])
    assert one["tasks"] == two["tasks"] == 2
    for kind in ("importance", "anchor"):
        assert all(torch.equal(one[kind][name], two[kind][name]) for name in one[kind])
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(saved["importance"][name], one["importance"][name]) for name in one["importance"])

    from lightning_cl.functional import diagonal_fisher
    from tests.callbacks.ewc_examples import Net, data

    module = Net()
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(one["weights"], module.parameters())
    second = diagonal_fisher(module, data(1))
    # what is left of the merged importance is the first task's, which cannot be negative
    for name, value in second.items():
        assert bool((one["importance"][name] - value > -1e-6).all())
        assert bool(value.any())
