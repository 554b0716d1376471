"""Two processes: iCaRL, BiC and WA have the same exemplars, rule and weights in both."""

from pathlib import Path

import pytest

from tests.callbacks.distributed_examples import in_two_processes
from tests.resume.helpers import differences

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import BiC, ICaRL, WA
from lightning_cl.streams import TaskDataModule
from tests.callbacks.classifier_examples import learner, stream

if __name__ == "__main__":
    found = {}
    for name, callback in (("icarl", ICaRL(30)), ("bic", BiC(60)), ("wa", WA(distillation=True)), ("naive", None)):
        model = learner()
        for task in stream()[:2]:
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback] if callback else [],
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                use_distributed_sampler=False,
            )
            trainer.fit(model, datamodule=TaskDataModule(task, batch_size=8))
        found[name] = {"weights": model.state_dict(), "state": callback.state_dict() if callback else {}}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_both_ranks_agree(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert differences(one, two) == []
    for name in ("icarl", "bic", "wa"):
        difference = one[name]["weights"]["head.weight"] - one["naive"]["weights"]["head.weight"]
        assert float(difference.abs().max()) > 1e-3
        assert one[name]["state"]["n_tasks"] == 2
    assert float(one["bic"]["weights"]["rule.shift"][3]) != 0
