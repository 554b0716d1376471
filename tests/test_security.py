"""Files may come from anywhere: nothing in them is executed, and nothing is written outside the run folder."""

import ast
import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import EWC, FineTuningModule
from lightning_cl.errors import InputError
from lightning_cl.files import load_state, save_state
from lightning_cl.finetuning import TorchvisionBackbone
from lightning_cl.memory import Memory
from lightning_cl.sequence.records import read_record
from tests.command_line import Call, call
from tests.resume.helpers import Backbone, contents, differences, learn, without_times

__all__ = ["call"]  # a fixture
PICKLERS = ("pickle", "joblib", "dill", "shelve")
ROOT = Path(__file__).parents[1]


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Path]:
    """What a payload would make; it is never there."""
    target = tmp_path / "owned"
    yield target
    assert not target.exists()


def crafted(path: Path, target: Path, around: Any = None) -> Path:
    """A checkpoint with a payload among its values."""
    torch.save({**(around or {}), "extra": Payload(target)}, path)
    return path


def test_the_payload_works(tmp_path: Path):
    """What the tests below would miss otherwise."""
    target = tmp_path / "target"
    torch.load(crafted(tmp_path / "x.ckpt", target), weights_only=False)
    assert target.exists()


def test_no_file_is_unpickled_as_code(tmp_path: Path, owned: Path):
    with pytest.raises(pickle.UnpicklingError):
        load_state(crafted(tmp_path / "x.ckpt", owned))


@pytest.mark.parametrize("kind", ["model", "learner", "fit"])
def test_crafted_files_in_a_run_folder(tmp_path: Path, owned: Path, kind: str):
    folder = tmp_path / "run"
    whole = learn(tmp_path / "whole")[1]
    learn(folder, limit_tasks=1)
    learn(folder, kill_at=("batch end", 5))
    saved = json.loads((folder / "sequence.json").read_text())
    pattern = f"fit-{saved['checkpoint']}.ckpt" if kind == "fit" else f"{saved['checkpoint']}.{kind}.ckpt"
    (path,) = (folder / "checkpoints").glob(pattern)
    crafted(path, owned, load_state(path))
    # the damage is seen, and the run goes on from what is intact
    assert without_times(learn(folder)[1]) == without_times(whole)
    assert differences(contents(folder), contents(tmp_path / "whole")) == []


@pytest.mark.parametrize("kind", ["model", "learner"])
def test_crafted_files_with_a_checksum_that_fits(tmp_path: Path, owned: Path, kind: str):
    from lightning_cl.files import checksum
    from lightning_cl.sequence.records import write_record

    learn(tmp_path, limit_tasks=1)
    record = read_record(tmp_path / "sequence.json")
    assert record is not None
    name = f"{record['checkpoint']}.{kind}.ckpt"
    path = tmp_path / "checkpoints" / name
    crafted(path, owned, load_state(path))
    record["checksums"][name] = checksum(path)
    write_record(tmp_path, record)
    with pytest.raises(InputError, match=rf"{name}' cannot be read \(UnpicklingError\)"):
        learn(tmp_path)


def test_crafted_files_elsewhere(tmp_path: Path, owned: Path, call: Call, monkeypatch: pytest.MonkeyPatch):
    path = crafted(tmp_path / "x.ckpt", owned, {"state_dict": {}})
    with pytest.raises(InputError, match="cannot be read"):
        TorchvisionBackbone((3, 32, 32), "resnet18", weights=str(path))
    with pytest.raises(pickle.UnpicklingError):
        FineTuningModule.load_from_checkpoint(path, weights_only=True)
    with pytest.raises(InputError, match=r"x.ckpt' cannot be read \(UnpicklingError\)"):
        learn(None, callbacks=[EWC(1.0, state_path=path)])
    monkeypatch.chdir(tmp_path)
    for arguments in (["inspect", "x.ckpt"], ["compute", "y.pt", "--checkpoint", "x.ckpt"]):
        assert call("importance", *arguments).error.startswith("error: ")


@pytest.mark.parametrize("name", ["../../escape", "/etc/escape", "task0000-stage0/../../escape", 3, None])
def test_a_progress_file_cannot_name_a_path(tmp_path: Path, name: Any):
    learn(tmp_path / "run", "naive", limit_tasks=1)
    path = tmp_path / "run" / "sequence.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps({**record, "checkpoint": name}))
    assert read_record(path) is None
    path.write_text(json.dumps({**record, "checksums": {"../../escape": "0"}}))
    assert read_record(path) is None


def test_targets_in_a_checkpoint_are_never_built(tmp_path: Path, owned: Path):
    learn(tmp_path / "run", "naive", limit_tasks=1)
    model = load_state(tmp_path / "run" / "model.ckpt")
    command = f"touch {owned}"
    for spec in ({"_target_": "os.system", "command": command}, {"name": "os.system", "command": command}):
        model["hyper_parameters"]["backbone"] = spec
        save_state(tmp_path / "x.ckpt", model)
        with pytest.raises(InputError, match=r"expected one of mlp, "):
            FineTuningModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    # given by the user, a backbone is what the user says
    assert FineTuningModule.load_from_checkpoint(tmp_path / "x.ckpt", backbone=Backbone(), weights_only=True)


def test_names_of_parts_and_samples_do_not_lead_out_of_a_memory(tmp_path: Path):
    folder = tmp_path / "a" / "memory"
    memory = Memory(4, storage="disk", path=folder)
    batch = {"../../x": torch.ones(2, 3), "/etc/x": torch.ones(2, 3), "..": torch.ones(2, 3), "y": torch.arange(2)}
    ids = torch.tensor([11, 12])
    memory.add(batch, torch.arange(2), ids=ids)
    memory.delete(ids[:1])
    outside = [file for file in tmp_path.rglob("*") if file.is_file() and folder not in file.parents]
    assert outside == []
    assert len(list(folder.rglob("*.bin"))) >= 4


def test_class_names_do_not_lead_out_of_a_run_folder(tmp_path: Path):
    from tests.resume.helpers import stream

    tasks = stream()
    tasks.class_names[:] = ["../../a", "/etc/b", "..", "c\x00d"]
    before = set(tmp_path.rglob("*"))
    learn(tmp_path / "in" / "run", "ewc+er", stream=tasks)
    made = set(tmp_path.rglob("*")) - before
    assert all(tmp_path / "in" in [file, *file.parents] for file in made)


def test_the_code_reads_no_pickles_and_evaluates_no_text():
    """``torch.load`` says ``weights_only=True``, ``numpy.load`` no pickles, ``yaml`` only its safe loader."""
    found, loads = [], 0
    for file in [*(ROOT / "lightning_cl").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{file.name}: {n}" for n in names if n.split(".")[0] in PICKLERS]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            loads += called == "torch.load"
            wrong = (
                (called == "torch.load" and options.get("weights_only") != "True")
                or (called in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
                or called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system")
            )
            found += [f"{file.name}:{node.lineno} {called}"] if wrong else []
    assert loads >= 2
    assert found == []


def test_a_folder_from_elsewhere_is_removed_only_inside(tmp_path: Path):
    """``resume=never`` clears what a run has written, and nothing that a link points at."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "task0000-stage0.model.ckpt").write_text("precious")
    learn(tmp_path / "run", "naive", limit_tasks=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "checkpoints").mkdir()
    os.symlink(outside / "task0000-stage0.model.ckpt", tmp_path / "run" / "checkpoints" / "task0000-stage0.model.ckpt")
    learn(tmp_path / "run", "naive", resume="never", limit_tasks=1)
    assert (outside / "task0000-stage0.model.ckpt").read_text() == "precious"
