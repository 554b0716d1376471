"""What goes wrong around a run: damaged files, full disks, other processes, bad data. What was learnt is not lost."""

import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import FineTuningModule
from lightning_cl.errors import InputError
from lightning_cl.files import save_state
from lightning_cl.sequence.lock import RunLock
from lightning_cl.streams import TensorData
from tests.resume.helpers import contents, differences, learn, module, stream, without_times

ROOT = Path(__file__).parents[2]


def files_of(folder: Path) -> dict[str, Path]:
    """Of the newest boundary and the fit that goes on from it, by kind."""
    stem = json.loads((folder / "sequence.json").read_text())["checkpoint"]
    checkpoints = folder / "checkpoints"
    return {
        "model": checkpoints / f"{stem}.model.ckpt",
        "learner": checkpoints / f"{stem}.learner.ckpt",
        "progress": folder / "sequence.json",
        "fit": checkpoints / f"fit-{stem}.ckpt",
    }


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """One bit, inside the values of a tensor, where a zip file would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    _, results = learn(folder, "ewc+er")
    return results, contents(folder)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its second task."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    learn(folder, "ewc+er", limit_tasks=1)
    assert learn(folder, "ewc+er", kill_at=("batch end", 5))[1] is None
    assert files_of(folder)["fit"].is_file()
    return folder


@pytest.mark.parametrize("harm", [cut, flip, remove])
@pytest.mark.parametrize("kind", ["model", "learner", "progress", "fit"])
def test_a_damaged_file_costs_no_more_than_a_stage(
    tmp_path: Path, killed: Path, whole: Any, caplog: pytest.LogCaptureFixture, kind: str, harm: Any
):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    if kind == "progress" and harm is remove:
        pytest.skip("a folder without progress is no run")
    harm(files_of(folder)[kind])
    with caplog.at_level(logging.WARNING, "lightning_cl"):
        _, results = learn(folder, "ewc+er")
    said = [r.getMessage() for r in caplog.records if r.name.startswith("lightning_cl") and "damaged" in r.getMessage()]
    if not (kind == "fit" and harm is remove):  # a fit has none before its first
        assert len(said) == 1
        assert files_of(killed)[kind].name in said[0]
        assert "\n" not in said[0]
    assert without_times(results) == without_times(whole[0])
    assert differences(contents(folder), whole[1]) == []


def test_when_no_boundary_is_intact(tmp_path: Path, killed: Path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    for file in (folder / "checkpoints").glob("*.learner.ckpt"):
        flip(file)
    with pytest.raises(InputError, match=r"learner.ckpt' cannot be read, .* one intact boundary. HINT: resume=never"):
        learn(folder, "ewc+er")
    assert list((folder / "checkpoints").glob("*.model.ckpt"))  # nothing was thrown away


def in_another_process(code: str, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


HOLD = """
import sys, time
from pathlib import Path
from lightning_cl.sequence.lock import RunLock
from lightning_cl.streams import TensorData
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_two_runs_in_one_folder(tmp_path: Path):
    other = in_another_process(HOLD, tmp_path)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"in use by process {other.pid} on .*; expected one process") as error:
            learn(tmp_path, "naive")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "sequence.json").exists()
    finally:
        other.kill()
        other.wait()
    assert learn(tmp_path, "naive")[1]["status"] == "finished"  # the lock died with its process
    assert not (tmp_path / ".lock").exists()


def test_the_same_process_may_begin_anew(tmp_path: Path):
    first, second = RunLock(tmp_path), RunLock(tmp_path)
    assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()
    for lock in (second, first, first):
        lock.release()
    assert not (tmp_path / ".lock").exists()


RUN = """
import sys
from pathlib import Path
from tests.resume.helpers import learn
from lightning_cl.errors import InputError
try:
    learn(Path(sys.argv[1]), "ewc+er", **eval(sys.argv[2]))
except InputError as error:
    sys.exit(f"error: {error}")
"""


@pytest.mark.parametrize("room", [4_000, 14_000, 24_000])
def test_a_full_disk(tmp_path: Path, whole: Any, room: int):
    """A permitted file size that is used up fails as a full disk does, in the middle of a write."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    run = in_another_process(RUN, tmp_path / "run", "{}", preexec_fn=limit)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "Traceback" not in said
    assert "error: no space left to write" in said.splitlines()[-1]
    assert [file.name for file in tmp_path.rglob("*.tmp")] == []
    _, results = learn(tmp_path / "run", "ewc+er")
    assert without_times(results) == without_times(whole[0])
    assert differences(contents(tmp_path / "run"), whole[1]) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    save_state(tmp_path / "x.ckpt", {"a": torch.ones(2)})
    before = (tmp_path / "x.ckpt").read_bytes()

    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    said = "no space left" if number in (errno.ENOSPC, errno.EDQUOT) else "no permission"
    with pytest.raises(InputError, match=rf"{said} to write .*x.ckpt'; expected .* HINT: "):
        save_state(tmp_path / "x.ckpt", {"a": torch.zeros(2)})
    assert (tmp_path / "x.ckpt").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


class KillWorker(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            import multiprocessing

            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
            time.sleep(0.5)


def test_a_worker_process_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TensorData, "cheap", False)  # or no worker is started
    tasks = stream(per_class=60)
    with pytest.raises(InputError, match=r"num_workers=2: DataLoader worker .* killed .*the same command goes on"):
        learn(tmp_path, "ewc+er", stream=tasks, num_workers=2, callbacks=[KillWorker(1)])
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "failed"
    assert learn(tmp_path, "ewc+er", stream=tasks, callbacks=[KillWorker(-1)])[1]["status"] == "finished"


class NaNInTask(Callback):
    """Puts a NaN into a batch of the third task, or into its loss's gradient."""

    def __init__(self, what: str) -> None:
        self.what, self.state = what, {}

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if len(module.class_names) == 6 and trainer.global_step == 2:
            if self.what == "batch":
                batch[0][0, 0, 0] = float("nan")
            else:
                with torch.no_grad():
                    module.head.weight.fill_(1e38)


@pytest.mark.parametrize("what", ["batch", "loss"])
def test_numbers_that_are_not_finite_in_the_third_task(tmp_path: Path, what: str):
    with pytest.raises(InputError, match=r"loss=(nan|inf) at step \d; expected a finite loss. HINT: lower"):
        learn(tmp_path, "ewc+er", stream=stream(n_classes=6), callbacks=[NaNInTask(what)])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["status"] == "failed"
    assert "finite loss" in results["error"]
    assert [all(value is None for value in row) for row in results["accuracy_matrix"]] == [False, False, True]
    stem = json.loads((tmp_path / "sequence.json").read_text())["checkpoint"]
    assert stem.startswith("task0002")
    from tests.resume.helpers import Backbone

    usable = FineTuningModule.load_from_checkpoint(
        tmp_path / "checkpoints" / f"{stem}.model.ckpt", backbone=Backbone(), weights_only=True
    ).eval()
    assert len(usable.class_names) == 4
    assert torch.isfinite(usable(torch.ones(3, 1, 4, 4))).all()


def test_a_clock_that_goes_backwards(tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch):
    now = [2e9]

    def back() -> float:
        now[0] -= 1000
        return now[0]

    monkeypatch.setattr(time, "time", back)
    learn(tmp_path, "ewc+er", kill_at=("batch end", 4))
    for file in tmp_path.rglob("*"):
        os.utime(file, (now[0], now[0]))
        now[0] -= 1000
    _, results = learn(tmp_path, "ewc+er")
    assert without_times(results) == without_times(whole[0])
    assert all(seconds is None or seconds >= 0 for row in results["per_task"] for seconds in row["seconds"].values())


def test_data_that_have_changed(tmp_path: Path):
    learn(tmp_path, "naive", kill_at=("batch end", 4))
    with pytest.raises(InputError, match="task 0 of the stream is not the one that was learnt"):
        learn(tmp_path, "naive", stream=stream(per_class=11))


def test_module_is_the_same_at_every_call():
    """What the comparisons above rest on."""
    assert differences(module().state_dict(), module().state_dict()) == []
