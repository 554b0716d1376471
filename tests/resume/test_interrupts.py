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
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_cl.sequence import Stopped
from tests.resume.helpers import contents, differences, learn, module, without_times


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


@pytest.mark.parametrize("step", [3, 7])  # the last batch has step 7
def test_sigterm_in_training(step: int, tmp_path: Path, whole: Any):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        learn(tmp_path, callbacks=[AtStep(send(signal.SIGTERM), step)])
    assert signal.getsignal(signal.SIGTERM) is handler
    goes_on(tmp_path, *whole)


def test_sigterm_in_evaluation(tmp_path: Path, whole: Any):
    learner = module()
    original = learner.test_step

    def test_step(batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        original(batch, batch_idx, dataloader_idx)

    learner.test_step = test_step  # type: ignore[method-assign]
    with pytest.raises(SIGTERMException):  # Lightning itself would go on to the next task
        learn(tmp_path, module=learner, callbacks=[AtStep(None, -1)])
    assert contents(tmp_path)["checkpoint"] == "task0000-stage2"
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
