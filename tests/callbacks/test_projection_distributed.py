"""Two processes: both project on the same reference gradients, and end with the same weights."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes

SCRIPT = """
import sys
import torch
from lightning.pytorch import Trainer
from lightning_cl import AGEM, GEM
from tests.callbacks.ewc_examples import data
from tests.callbacks.projection_examples import Recording

if __name__ == "__main__":
    found = {}
    for name, make in {
        "agem": lambda: AGEM(12, batch_size=4), "gem": lambda: GEM(12), "gem subset": lambda: GEM(12, batch_size=2),
    }.items():
        callback, module = make(), Recording()
        for task in range(2):
            trainer = Trainer(
                accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback], logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )
            trainer.fit(module, data(task, batch_size=3, dtype=module.dtype))
        found[name] = {
            "weights": module.weights,
            "passed": [[list(batch) for batch in calls] for calls in module.passed],
            "projected": callback.projected,
            "labels": callback.memory.labels,
        }
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_both_ranks_end_with_the_weights_of_a_plain_loop_over_the_batches_of_both(tmp_path: Path):
    from tests.callbacks.projection_examples import agem, gem, plain_loop

    one, two = in_two_processes(SCRIPT, tmp_path)
    for name, project in {"agem": agem, "gem": gem(0.5), "gem subset": gem(0.5)}.items():
        first, second = one[name], two[name]
        assert torch.equal(first["weights"], second["weights"])
        assert first["projected"] == second["projected"] > 0
        assert torch.equal(first["labels"], second["labels"])
        joined = []
        for mine, other in zip(first["passed"], second["passed"], strict=True):
            assert len(mine) == len(other)
            # each has its own share, of the current samples and of the memory
            assert all(not torch.equal(a[0], b[0]) for a, b in zip(mine, other, strict=True))
            both = [zip(a, b, strict=True) for a, b in zip(mine, other, strict=True)]
            joined.append([tuple(torch.cat(pair) for pair in batch) for batch in both])
        expected = plain_loop(joined, project)
        # reference gradients travel in fp32
        torch.testing.assert_close(first["weights"], expected, rtol=0, atol=1e-6)
