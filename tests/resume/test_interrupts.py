"""Ctrl-C, SIGTERM and other requests to stop: no half-learnt task is called done, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer

from lightning_cl import signals
from lightning_cl.memory import Memory
from lightning_cl.sequence import Stopped
from lightning_cl.signals import StopRequested
from tests.resume.helpers import contents, differences, learn, module, trainer, without_times


class AtStep(Callback):
    """Does something in a batch of the first task, once."""

    def __init__(self, action: Any, step: int) -> None:
        self.action, self.step, self.done = action, step, False

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not self.done:
            self.done = True
            self.action(trainer)


def send(number: int) -> Any:
    return lambda trainer: os.kill(os.getpid(), number)


def goes_on(folder: Path, whole: Any, expected: Any) -> None:
    events, results = learn(folder, callbacks=[AtStep(None, -1)])
    assert events[0][2] >= 2
    assert without_times(results) == without_times(whole)
    assert differences(contents(folder), expected) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    _, results = learn(folder, callbacks=[AtStep(None, -1)])
    return results, contents(folder)


def test_ctrl_c(tmp_path: Path, whole: Any):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path, callbacks=[AtStep(send(signal.SIGINT), 3)])
    assert signal.getsignal(signal.SIGINT) is handler  # a second Ctrl-C works
    goes_on(tmp_path, *whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
@pytest.mark.parametrize("step", [2, 3, 5, 7])  # the last batch of an epoch has step 3, of the task 7
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_signal_in_training(accumulate: int, step: int, number: int, tmp_path: Path, whole: Any):
    """The step is finished and saved; the last of a task ends the task's training."""
    handler = signal.getsignal(number)
    options: dict[str, Any] = {"checkpoint_every_n_steps": 1000}
    if accumulate > 1:
        options["trainer"] = trainer(max_epochs=2, accumulate_grad_batches=2)
        step //= 2
    folder = tmp_path / "run"
    with pytest.raises(StopRequested) as stop:
        learn(folder, callbacks=[AtStep(send(number), step)], **options)
    assert stop.value.number == number
    assert signal.getsignal(number) is handler
    ended = step == 7 // accumulate
    assert contents(folder)["checkpoint"] == f"task0000-stage{int(ended)}"
    events, _ = learn(folder, callbacks=[AtStep(None, -1)], **options)
    first = next(event for event in events if event[0] == "batch start")
    assert first[2] == (0 if ended else step + 1)  # nothing is done twice
    if accumulate == 1:
        assert differences(contents(folder), whole[1]) == []
    else:
        learn(tmp_path / "whole", callbacks=[AtStep(None, -1)], **options)
        assert differences(contents(folder), contents(tmp_path / "whole")) == []


def test_sigterm_in_evaluation(tmp_path: Path, whole: Any):
    learner = module()
    original = learner.test_step

    def test_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(batch, batch_idx, dataloader_idx)

    learner.test_step = test_step  # type: ignore[method-assign]
    with pytest.raises(StopRequested):  # Lightning itself would go on to the next task
        learn(tmp_path, module=learner, callbacks=[AtStep(None, -1)])
    assert contents(tmp_path)["checkpoint"] == "task0001-stage0"  # it came with the last batch
    events, results = learn(tmp_path, callbacks=[AtStep(None, -1)])
    assert sum(event[0] == "train end" for event in events) == 1
    assert without_times(results) == without_times(whole[0])


def test_a_stop_request_is_not_the_end_of_a_task(tmp_path: Path, whole: Any):
    def stop(trainer: Trainer) -> None:
        trainer.should_stop = True

    with pytest.raises(Stopped, match=r"stopped in task 0 at step 4; the same command goes on"):
        learn(tmp_path, callbacks=[AtStep(stop, 3)])
    assert contents(tmp_path)["checkpoint"] == "task0000-stage0"
    goes_on(tmp_path, *whole)


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"),
                                                     (signal.SIGTERM, 143, "terminated")])  # fmt: skip
def test_the_command_line_says_one_line(number: int, code: int, word: str, tmp_path: Path):
    command = [sys.executable, "-m", "lightning_cl", "method=naive", "trainer.max_epochs=2000", "limit_tasks=1",
               "checkpoint_every_n_steps=5", "progress_bar=false", "reference_methods=[]",
               f"hydra.run.dir={tmp_path}"]  # fmt: skip
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("checkpoints/fit-*.ckpt")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1] == f"{word}; the same command goes on"


def test_a_signal_in_consolidation(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch):
    """One process leaves the pass at the next batch; the stage is done again from its start."""
    batches = []

    def counted(self: Memory, *args: Any, **keywords: Any) -> Any:
        batches.append(1)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *args, **keywords)

    original = Memory.add
    monkeypatch.setattr(Memory, "add", counted)
    with pytest.raises(StopRequested, match="stopped by SIGUSR1; the same command goes on"):
        learn(tmp_path, callbacks=[AtStep(None, -1)])
    assert contents(tmp_path)["checkpoint"] == "task0000-stage1"
    learn(tmp_path, callbacks=[AtStep(None, -1)])
    assert differences(contents(tmp_path), whole[1]) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_during_imports(number: int, tmp_path: Path):
    """Nothing heavy is imported before somebody listens."""
    code = f"""
import os, sys
import lightning_cl.cli as cli
heavy = [name for name in ("torch", "lightning", "hydra", "numpy") if name in sys.modules]
assert not heavy, heavy
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
sys.exit(cli.main(["method=naive", "reference_methods=[]", "hydra.run.dir={tmp_path}"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.strip().splitlines()[-1].endswith("; the same command goes on")
    assert "Traceback" not in done.stderr


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in signals.NUMBERS]
    with signals.listening():
        assert not signals.received()
        with signals.listening():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert signals.received() == signal.SIGUSR2
        signals.let_go()
        assert [signal.getsignal(number) for number in signals.NUMBERS] == before
    assert not signals.active()
    assert [signal.getsignal(number) for number in signals.NUMBERS] == before
    with signals.listening():
        assert not signals.received()
