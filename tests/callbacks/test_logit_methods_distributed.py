"""Two processes: LwF, DER++ and ER-ACE have the same weights and state in both, and differ from naive."""

from pathlib import Path

import pytest

from tests.callbacks.distributed_examples import in_two_processes
from tests.resume.helpers import differences

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import DER, ERACE, LwF
from tests.callbacks.ewc_examples import Net, data

METHODS = {
    "lwf": lambda: LwF(),
    "derpp": lambda: DER(10, 0.3, 0.5, batch_size=3, fill="consolidate"),
    "er_ace": lambda: ERACE(10, batch_size=3, fill="consolidate"),
}

if __name__ == "__main__":
    found = {}
    for name in [*METHODS, None]:
        callback, module = METHODS[name]() if name else None, Net(optimizer="Adam")
        for task in range(2):
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback] if name else [],
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )
            trainer.fit(module, data(task))
        found[name or "naive"] = {"weights": module.weights, "state": callback.state_dict() if name else {}}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_both_ranks_agree(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert differences(one, two) == []
    for name, found in one.items():
        assert found["weights"].isfinite().all()
        if name != "naive":
            assert found["state"]["n_tasks"] == 2
            assert float((found["weights"] - one["naive"]["weights"]).abs().max()) > 1e-3
