"""A sequence learnt by two processes."""

import json
from pathlib import Path

import pytest
import torch

from lightning_cl.files import load_state
from tests.callbacks.distributed_examples import in_two_processes
from tests.command_line import Call, call
from tests.resume.helpers import differences

__all__ = ["call"]  # a fixture
pytestmark = pytest.mark.slow

HEAD = """
import os, signal, sys
from pathlib import Path
import torch
from lightning_cl.errors import InputError
from tests.resume.helpers import Backbone, Killed, Recorder, learn, module, stream, trainer
folder, rank = Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", 0))
both = trainer(strategy="ddp")
both.keywords["devices"] = 2
"""

RUN = (
    HEAD
    + """
# ranks that are not seeded alike
learner = module(weights=3 + rank)
events, results = learn(folder / "run", "ewc+er", trainer=both, module=learner, stream=stream(per_class=11))
weights = {name: value.detach().clone() for name, value in learner.state_dict().items()}
torch.save({"weights": weights, "matrix": torch.tensor(results["accuracy_matrix"][-1])}, folder / f"rank{rank}.pt")
"""
)


def test_both_have_the_same_weights_and_one_writes(tmp_path: Path):
    one, two = in_two_processes(RUN, tmp_path)
    assert differences(one, two) == []
    run = tmp_path / "run"
    assert json.loads((run / "results.json").read_text())["status"] == "finished"
    assert differences(load_state(run / "model.ckpt")["state_dict"], one["weights"]) == []
    assert [file.name for file in run.rglob("*.tmp")] == []
    # every test sample counts once: an odd number of them, so that padding would show
    from tests.resume.helpers import module, stream

    learner = module()
    learner.learn_classes(stream().class_names, [[0, 1], [2, 3]])
    learner.load_state_dict(one["weights"])
    learner.eval()
    for task, accuracy in zip(stream(per_class=11), one["matrix"], strict=True):
        x, y = task.test.batch(torch.arange(len(task.test)))
        assert len(y) % 2 == 0 or len(y) > 2
        assert float((learner(x).argmax(1) == y).float().mean()) == pytest.approx(float(accuracy))


SCRIPT = (
    HEAD
    + """
class Die(Recorder):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 3 and len(args[0].class_names) == 4 and not (folder / "again").exists():
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

learner = module()
ON_DISK
learn(folder / "run", METHOD, trainer=both, module=learner, callbacks=[*memories, Die()])
found = {name: value.detach().clone() for name, value in learner.state_dict().items()}
for memory in memories:
    found |= memory.memory.at(slice(None))
torch.save(found, folder / f"rank{rank}.pt")
"""
)
ON_DISK = """
from lightning_cl import Replay
memories = [Replay(20, fill="step", storage="disk", path=folder / "memory", name="disk")]
"""


@pytest.mark.parametrize("disk", [False, pytest.param(True, marks=pytest.mark.long)])
def test_killed_and_started_again(tmp_path: Path, disk: bool):
    name = '"naive"' if disk else '"ewc+er"'
    script = SCRIPT.replace("METHOD", name).replace("ON_DISK", ON_DISK if disk else "memories = []")
    (whole := tmp_path / "whole").mkdir()
    (whole / "again").touch()  # this one is not killed
    expected, _ = in_two_processes(script, whole)
    (killed := tmp_path / "killed").mkdir()
    with pytest.raises(AssertionError):
        in_two_processes(script, killed)
    assert json.loads((killed / "run" / "sequence.json").read_text())["progress"]["task"] == 1
    (killed / "again").touch()
    one, two = in_two_processes(script, killed)
    assert differences(one, two) == differences(one, expected) == []


ERROR = (
    HEAD
    + """
learn(folder / "run", "ewc+er", trainer=both, limit_tasks=1)
said = ""
try:
    learn(folder / "run", "ewc+er", trainer=both, batch_size=5)
except InputError as error:
    said = str(error)
torch.save({"said": said}, folder / f"rank{rank}.pt")
"""
)


def test_what_the_first_refuses_all_refuse(tmp_path: Path):
    one, two = in_two_processes(ERROR, tmp_path)
    assert "batch_size: 6 -> 5" in one["said"]
    assert one == two


def test_a_sweep_does_not_start_processes(call: Call):
    outcome = call("-m", "seed=0,1", "accelerator=cpu", "+trainer.strategy=ddp", "trainer.devices=2")
    assert outcome.code == 1
    assert "a sweep (-m) of jobs with 2 processes each; expected jobs of one process" in outcome.out + outcome.err
