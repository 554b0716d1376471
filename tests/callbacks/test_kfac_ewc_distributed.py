"""Kronecker-factored EWC on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
import torch
from lightning_cl import KroneckerEWC
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit

if __name__ == "__main__":
    method, module = KroneckerEWC(20.0, labels="mc"), Net()
    ends = []
    for task in range(2):
        trainer = fit(module, data(task), method, devices=2, strategy="ddp")
        ends.append({name: value.clone() for name, value in module.state_dict().items()})
    torch.save({"ends": ends, "state": method.state_dict()}, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_both_ranks_have_the_factors_of_one_process(tmp_path: Path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, timeout=240, check=True)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))

    from lightning_cl import KroneckerEWC
    from tests.callbacks.ewc_examples import Net, data
    from tests.resume.helpers import differences

    assert differences(one, two) == []
    single, module = KroneckerEWC(20.0, labels="mc"), Net()
    for task, end in enumerate(one["ends"]):
        module.load_state_dict(end)
        single.consolidate(None, module, data(task))
    assert differences(single.state_dict()["blocks"], one["state"]["blocks"]) == []
    assert one["state"]["n_tasks"] == 2
