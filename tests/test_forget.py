"""Memories of runs: their files are in the run folder, and a person's samples can be deleted from it."""

import contextlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cl import forgetting
from lightning_cl.callbacks._fit_checkpoint import damaged
from lightning_cl.callbacks.replay import Replay
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.forgetting import forget_samples
from lightning_cl.memory._forgetting import memory_states
from lightning_cl.sequence import run_sequence
from lightning_cl.sequence.records import newest_intact
from tests.command_line import QUICK, Call, call  # noqa: F401
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

ER = [*QUICK, "hydra.run.dir=run", "callbacks.er.memory_size=50"]
DISK = ["+callbacks.er.storage=disk", "+callbacks.er.path=memory"]
LOG = "+callbacks.er.deletion_log=deleted.txt"


def replay(kind: str, folder: Path, **options: Any) -> Replay:
    options = {"fill": "step", "deletion_log": folder / "log.txt", **options}
    return Replay(30, **options, **({"storage": "disk", "path": folder / "memory"} if kind == "disk" else {}))


def run(kind: str, folder: Path, kill_at: Any = None, **options: Any) -> Replay:
    method, tasks = replay(kind, folder, **options), stream()
    with contextlib.suppress(Killed):
        run_sequence(
            module(), tasks, [method, Recorder(kill_at)], run_dir=folder, batch_size=6, progress_bar=False,
            checkpoint_every_n_steps=2, trainer=trainer(),
        )  # fmt: skip
    return method


def rows_of(data: Any) -> dict[int, list[float]]:
    every = torch.arange(len(data))
    return dict(zip(data.sample_ids(every).tolist(), data.batch(every)[0].flatten(1).tolist(), strict=True))


def numbers(value: Any) -> set[float]:
    """All numbers in a state."""
    if isinstance(value, torch.Tensor):
        return set(value.double().flatten().tolist())
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return set().union(*map(numbers, values))


@pytest.mark.parametrize("fill", ["step", "consolidate"])
def test_our_own_data_name_their_samples_and_nothing_else_changes(fill: str, tmp_path: Path):
    named, plain = (run("ram", tmp_path / name, fill=fill, deletion_log=log) for name, log in
                    (("a", tmp_path / "log"), ("b", None)))  # fmt: skip
    assert plain.memory.ids is None
    known: dict[int, list[float]] = {}
    for task in stream():
        known |= rows_of(task.train)
    held = named.memory.at(slice(0, 30))
    assert len(set(named.memory.ids.tolist())) == 30
    assert torch.equal(held["0"], plain.memory.at(slice(0, 30))["0"])
    if fill == "consolidate":  # not augmented
        assert held["0"].flatten(1).tolist() == [known[i] for i in named.memory.ids.tolist()]
    weights = [load_state(tmp_path / name / "model.ckpt")["state_dict"] for name in "ab"]
    assert differences(*weights) == []


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("kill_at", [("batch end", 5), ("train end", 8)], ids=["in a fit", "behind a fit"])
def test_what_is_forgotten_is_in_no_file_and_does_not_come_back(kind: str, kill_at: Any, tmp_path: Path):
    killed = run(kind, tmp_path, kill_at).memory
    saved = [s for f in sorted(tmp_path.glob("checkpoints/*.ckpt")) for s in memory_states(load_state(f))]
    ids = torch.as_tensor(killed.ids)[:4].tolist()
    samples = killed.at(slice(0, 4))["0"].double().flatten().tolist()
    rare = {x for x in samples if abs(x - round(x)) > 1e-3}
    assert len(rare) == 4
    assert all(kind == "disk" or rare <= numbers(state["table"]) for state in saved if state["length"])
    assert forget_samples(tmp_path, ids) == 4
    assert forget_samples(tmp_path, ids) == 0
    for file in tmp_path.glob("checkpoints/*.ckpt"):
        for state in memory_states(load_state(file)):
            assert not rare & numbers(state["table"]), file.name
    for file in tmp_path.rglob("leaf*0-*.bin"):
        data = torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8).view(torch.float32)
        assert not rare & set(data.double().tolist()), file.name
    resumed = run(kind, tmp_path).memory
    assert not set(ids) & set(torch.as_tensor(resumed.ids).tolist())
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
    assert run(kind, tmp_path / "again").memory.n_seen == 40


@pytest.mark.parametrize("replaced", [False, True], ids=["before a rename", "behind a rename"])
@pytest.mark.parametrize("number", [1, 2])
def test_killed_while_it_forgets(number: int, replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ids = torch.as_tensor(run("ram", tmp_path, ("batch end", 5)).memory.ids)[:4].tolist()
    before = json.loads((tmp_path / "sequence.json").read_text())["checkpoint"]
    done: list[Any] = []

    def replace(source: Any, target: Any) -> None:
        done.append(target)
        if len(done) < number or replaced:
            os.rename(source, target)
        if len(done) == number:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "os", SimpleNamespace(replace=replace))
        with pytest.raises(KeyboardInterrupt):
            forget_samples(tmp_path, ids)
    assert newest_intact(tmp_path)["checkpoint"] == before
    assert not any(map(damaged, tmp_path.glob("checkpoints/fit-*.ckpt")))
    forget_samples(tmp_path, ids)
    resumed = run("ram", tmp_path).memory
    assert not set(ids) & set(torch.as_tensor(resumed.ids).tolist())
    assert list(tmp_path.rglob("*.tmp")) == []
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"


def test_a_run_without_that_sample_is_not_changed(tmp_path: Path):
    for name in "ab":
        run("ram", tmp_path / name, ("batch end", 5))
    assert forget_samples(tmp_path / "a", [10_000]) == 0
    ends = []
    for name in "ab":
        run("ram", tmp_path / name)
        ends.append(contents(tmp_path / name))
        del ends[-1]["learner"]["callbacks"]["Replay.replay"]["memory"]["deleted"]
    assert differences(*ends) == []


def test_what_cannot_be_forgotten_is_refused_and_stays(tmp_path: Path):
    with pytest.raises(InputError, match=r"without a sequence.json that can be read; expected a run folder. HINT"):
        forget_samples(tmp_path, [1])
    run("ram", tmp_path, deletion_log=None)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    with pytest.raises(InputError, match=r"with samples that have no ids; expected a run whose memory.*HINT: remove"):
        forget_samples(tmp_path, [1])
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}


def test_a_deletion_log_without_ids_is_refused_before_the_first_step(tmp_path: Path):
    from tests.callbacks.replay_examples import Classifier, fit

    net = Classifier()
    before = net.weights.clone()
    x, y = torch.randn(12, 4), torch.zeros(12, dtype=torch.long)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=6)
    with pytest.raises(
        InputError, match=r"deletion_log with samples that have no ids; expected an integer.*HINT: give"
    ):
        fit(net, loader, Replay(10, deletion_log=tmp_path / "log"))
    assert torch.equal(net.weights, before)


def test_the_command_line(call: Call):  # noqa: F811
    assert call(*ER, LOG, "limit_tasks=1", *DISK).code == 0
    assert Path("run/memory/owner.json").is_file()
    state = next(memory_states(load_state(sorted(Path("run/checkpoints").glob("*.learner.ckpt"))[-1])))
    file = next(Path("run/memory").glob("ids-.bin"))
    ids = torch.from_file(str(file), size=file.stat().st_size // 8, dtype=torch.long)[state["table"]["index"]["rows"]]
    gone = ids[:2].tolist()
    outcome = call("forget", "run", *map(str, gone), "99999999")
    assert (outcome.code, outcome.out) == (0, "forgot 2 samples of run\n")
    assert Path("run/deleted.txt").is_file()
    outcome = call(*ER, LOG, *DISK)
    assert outcome.code == 0, outcome.err
    assert "forgot 0 samples" in call("forget", "run", *map(str, gone)).out
    assert "run folder" in call("forget", "nowhere", "1").error
    assert "--help" in call("forget", "run").error
    # anew, it does not take them either
    assert call(*ER, LOG, "resume=never", *DISK).code == 0
    assert "forgot 0 samples" in call("forget", "run", *map(str, gone)).out


def test_jobs_that_name_the_same_relative_folder_do_not_meet(call: Call):  # noqa: F811
    jobs = [*QUICK, *DISK, "callbacks.er.memory_size=50", "limit_tasks=1"]
    for seed in (0, 1):
        assert call(*jobs, f"seed={seed}", f"hydra.run.dir={seed}").code == 0
    assert not Path("memory").exists()
    assert call(*jobs, "limit_tasks=2", "seed=0", "hydra.run.dir=0").code == 0
    assert call(*jobs, "limit_tasks=2", "seed=0", "hydra.run.dir=alone").code == 0
    rows = [json.loads(Path(name, "results.json").read_text())["accuracy_matrix"] for name in ("0", "alone")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", ["ram", "disk"])
def test_samples_with_names_are_forgotten_with_all_that_is_beside_them(kind: str, tmp_path: Path):
    from lightning_cl.memory import Memory
    from lightning_cl.memory._forgetting import forget_in_files, forget_in_state

    def make() -> Memory:
        options: dict[str, Any] = {"storage": "disk", "path": tmp_path / "m"} if kind == "disk" else {}
        return Memory(6, "ring", id_fn=lambda batch: batch["who"], max_age=100, **options)

    def offer(memory: Memory, start: int, names: list[str]) -> None:
        x = torch.arange(start, start + len(names)).float()
        memory.add(
            {"x": x, "who": names, "y": torch.zeros(len(names), dtype=torch.long)}, torch.zeros(len(names)).long()
        )

    memory = make()
    offer(memory, 100, ["anna", "bob", "anna", "carl"])
    states = [memory.state_dict()]
    offer(memory, 104, ["dora", "anna", "emil"])
    states.append(memory.state_dict())
    if kind == "disk":
        assert forget_in_files(tmp_path / "m", states, ["anna", "5"]) == 2
    held = [forget_in_state(state, ["anna", "5"], tmp_path / "m" if kind == "disk" else None) for state in states]
    assert held == ([2, 2] if kind == "ram" else [0, 0])
    for state, names in zip(states, (["bob", "carl"], ["bob", "carl", "dora", "emil"]), strict=True):
        assert "anna" not in (state["table"]["columns"]["leaf:who"])
        again = make()
        again.load_state_dict(state)
        found = again.at(slice(0, len(again)))
        assert sorted(found["who"]) == names
        assert not {100.0, 102.0, 105.0} & set(found["x"].tolist())
        offer(again, 200, ["anna", "fred"])
        assert "anna" not in again.ids
        assert "fred" in again.ids


def test_files_that_a_kill_left_half_written_hold_nothing_back(call: Call):  # noqa: F811
    assert call(*ER, LOG, "limit_tasks=1").code == 0
    half = [Path("run/checkpoints") / f".{dots}task0000-stage2.learner.ckpt.forget.tmp{end}.tmp" for dots, end in
            [("", ""), (".", ".123")]]  # fmt: skip
    for again in (lambda: forget_samples("run", [3]), lambda: call(*ER, LOG, "limit_tasks=2")):
        for file in half:
            file.write_bytes(b"samples")
        again()
        assert not any(file.exists() for file in half)
