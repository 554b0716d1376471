"""``lightning-cl importance``: computed outside any training, inspected and merged."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra

from lightning_cl import cli
from lightning_cl.files import load_state, save_state
from lightning_cl.importance_files import ImportanceFile, load_importance, merge_importances
from tests.command_line import QUICK, Call, call
from tests.report.test_page import assert_self_contained, text_of

__all__ = ["call"]
ONE_TASK = ["method=ewc", "limit_tasks=1", *QUICK]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one task with EWC, in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    GlobalHydra.instance().clear()
    assert cli.main([*ONE_TASK, f"hydra.run.dir={folder}"]) == 0
    GlobalHydra.instance().clear()
    return folder


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_run_folder_gives_what_its_own_method_has_taken(run: Path, call: Call, tmp_path: Path):
    outcome = call("importance", "compute", "new/f.pt", "--run", str(run), "--task", "0")
    assert (outcome.code, outcome.err) == (0, "")
    assert "importance: new/f.pt" in outcome.out
    found = load_importance(tmp_path / "new" / "f.pt")
    (learner,) = (run / "checkpoints").glob("task0001-*.learner.ckpt")
    own = load_importance(learner)
    assert equal(found.importance, own.importance)
    assert equal(found.anchor, own.anchor)
    weights = load_state(run / "model.ckpt")["state_dict"]
    assert all(torch.equal(found.anchor[name], weights[name]) for name in found.anchor)
    expected = {"kind": "fisher", "labels": "exact", "stream": "split_digits", "tasks": ["task 0"], "seed": 0}
    assert {key: found.info[key] for key in expected} == expected
    by_hand = ["importance", "compute", "g.pt", "--task", "0", "--checkpoint", str(run / "model.ckpt"), *QUICK]
    assert call(*by_hand).code == 0
    assert equal(load_importance(tmp_path / "g.pt").importance, own.importance)


def test_samples_labels_and_method_make_a_difference(run: Path, call: Call, tmp_path: Path):
    found: dict[str, ImportanceFile] = {}
    for name, options in {
        "all": "--task 0",
        "few": "--task 0 --n-samples 50",
        "empirical": "--task 0 --labels empirical",
        "mc": "--task 0 --labels mc --n-draws 2 batch_size=7",
        "mas": "--task 0 --method mas",
    }.items():
        assert call("importance", "compute", f"{name}.pt", "--run", str(run), *options.split()).code == 0
        found[name] = load_importance(tmp_path / f"{name}.pt")
    weights = [part.importance["head.weight"] for part in found.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])
    assert (found["all"].info["n_samples"], found["few"].info["n_samples"]) == (722, 50)
    assert (found["mas"].info["kind"], "labels" in found["mas"].info) == ("mas", False)


def test_a_fresh_head_knows_the_tasks_classes_and_says_that_it_is_untrained(call: Call, tmp_path: Path):
    small = ["model.backbone.hidden=[16]"]
    outcome = call("importance", "compute", "f.pt", "--task", "1", *small)
    assert outcome.code == 0
    assert outcome.err.startswith("note: rows of the head that nothing has trained: 0, 1, 2, 3;")
    assert load_importance(tmp_path / "f.pt").importance["head.weight"].shape == (4, 16)

    heads = "stream.scenario=task_incremental"  # only the task's own rows are read
    assert call("importance", "compute", "g.pt", "--task", "1", heads, *small).code == 0
    rows = load_importance(tmp_path / "g.pt").importance["head.weight"].sum(1) > 0
    assert rows.tolist() == [False, False, True, True]
    assert call("importance", "compute", "h.pt", "--all-tasks", heads, *small).code == 0
    assert bool((load_importance(tmp_path / "h.pt").importance["head.weight"].sum(1) > 0).all())
    assert call("importance", "compute", "i.pt", "--task", "1", "model.head=fixed", *small).code == 0
    assert load_importance(tmp_path / "i.pt").importance["head.weight"].shape == (10, 16)


def test_data_are_in_order_and_not_augmented(call: Call, tmp_path: Path):
    plain = ["stream=custom", "+stream.dataset.train._target_=tests.test_importance_command.Images", *QUICK]
    augmented = ["+stream.augment._target_=lightning_cl.streams.RandomCropFlip"]
    for name, more in (("plain", []), ("augmented", augmented)):
        outcome = call("importance", "compute", f"{name}.pt", "--task", "0", "--n-samples", "9", *plain, *more)
        assert outcome.code == 0, outcome.err
    found = [load_importance(tmp_path / f"{name}.pt").importance for name in ("plain", "augmented")]
    assert equal(*found)


class Images(torch.utils.data.Dataset):
    """Noise of four classes."""

    targets = [i % 4 for i in range(40)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index)), self.targets[index]


def test_a_lightning_checkpoint_of_ones_own_training(call: Call, tmp_path: Path):
    from lightning.pytorch import Trainer

    from lightning_cl import FineTuningModule
    from lightning_cl.finetuning import MLP

    module = FineTuningModule(MLP((64,), hidden=[16]), class_names=[str(i) for i in range(10)])
    trainer = Trainer(logger=False, enable_checkpointing=False, max_epochs=0)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "own.ckpt")
    outcome = call("importance", "compute", "f.pt", "--checkpoint", "own.ckpt", "model.backbone.hidden=[16]")
    assert (outcome.code, outcome.err) == (0, "")
    found = load_importance(tmp_path / "f.pt")
    assert equal(found.anchor, dict(module.state_dict()))
    # the same classes in another order are not the same model
    outcome = call("importance", "compute", "f.pt", "--checkpoint", "own.ckpt", "class_order_seed=1", *QUICK)
    assert "where the model has '0'" in outcome.error


def test_a_method_starts_from_the_file(run: Path, call: Call, tmp_path: Path):
    assert call("importance", "compute", "f.pt", "--run", str(run)).code == 0
    second = [
        "method=ewc",
        "limit_tasks=1",
        "callbacks.ewc.lambda_=1e6",
        "+callbacks.ewc.apply=proximal",
        *QUICK,
        "seed=1",
    ]
    assert call(*second, "hydra.run.dir=without").code == 0
    assert call(*second, "+callbacks.ewc.importance_path=f.pt", "hydra.run.dir=with").code == 0
    anchor = load_importance(tmp_path / "f.pt").anchor["head.weight"]
    weights = [load_state(tmp_path / d / "model.ckpt")["state_dict"]["head.weight"] for d in ("with", "without")]
    near, far = (float((w[: len(anchor)] - anchor).norm()) for w in weights)
    assert near < 0.7 * far


def test_inspect_says_the_same_everywhere(run: Path, call: Call, tmp_path: Path):
    (learner,) = (run / "checkpoints").glob("task0001-*.learner.ckpt")
    outcome = call("importance", "inspect", str(learner), "--json", "--plot", "both.png")
    assert outcome.code == 0
    content = json.loads(outcome.out)
    assert content["info"] == {"kind": "EWC.ewc"}
    importance = load_importance(learner).importance
    assert [row["name"] for row in content["parameters"]] == list(importance)
    assert sum(row["share"] for row in content["parameters"]) == pytest.approx(1)
    for row in content["parameters"]:
        assert row["mean"] == pytest.approx(float(importance[row["name"]].double().mean()))
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")

    outcome = call("importance", "inspect", str(learner), "--html", "page.html")
    assert outcome.code == 0
    page = (tmp_path / "page.html").read_text()
    assert_self_contained(page)
    assert page.count("<figure") == 2
    for row in content["parameters"]:
        mean = f"{row['mean']:.3g}"
        for text in (outcome.out, text_of(page)):
            assert re.search(rf"{re.escape(row['name'])} .* {re.escape(mean)} ", text)
    assert {path.name for path in tmp_path.iterdir()} == {"both.png", "page.html"}


def test_merge(run: Path, call: Call, tmp_path: Path):
    for name, task in (("a", "0"), ("b", "1")):
        compute = ["importance", "compute", f"{name}.pt", "--task", task, "--n-samples", "40"]
        assert call(*compute, "model.backbone.hidden=[16]").code == 0
    assert call("importance", "merge", "a.pt", "b.pt", "--out", "sum.pt").code == 0
    expected = merge_importances([tmp_path / "a.pt", tmp_path / "b.pt"])
    found = load_importance(tmp_path / "sum.pt")
    assert equal(found.importance, expected.importance)
    assert equal(found.anchor, expected.anchor)
    assert found.importance["head.weight"].shape == (4, 16)
    assert found.info["how"] == "sum"
    outcome = call("importance", "merge", "b.pt", "a.pt", "--how", "online", "--gamma", "0.5", "--out", "online.pt")
    assert "merged, online of 2 files" in outcome.out
    assert load_importance(tmp_path / "online.pt").info["gamma"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "given", "hint"),
    [
        ("foo", "'foo'", "lightning-cl importance --help"),
        ("compute", "required: OUT", "compute --help"),
        ("compute stream=split_digits", "OUT='stream=split_digits'", "importance compute OUT"),
        ("compute .", "OUT='.', which cannot be written", "choose another"),
        ("compute f.pt stream=foo", "stream=foo", "--help"),
        ("compute f.pt nokey=3", "nokey=3 (no such key)", "--help"),
        ("compute f.pt seed=abc", "seed='abc'", "leave it out"),
        ("compute f.pt optimizer.lr=abc", "optimizer.lr='abc'", "leave it out"),
        ("compute f.pt seed=0,1", "seed=0,1", "--help"),
        ("compute f.pt accelerator=foo", "accelerator=foo", "HYDRA_FULL_ERROR=1"),
        ("compute f.pt --task 5", "--task 5", "leave it out for all tasks"),
        ("compute f.pt --task 1 --all-tasks", "--all-tasks: not allowed with argument --task", "compute --help"),
        ("compute f.pt --method foo", "invalid choice: 'foo'", "compute --help"),
        ("compute f.pt --labels foo", "labels='foo'", "labels='exact'"),
        ("compute f.pt --n-samples 0", "n_samples=0", "leave"),
        ("compute f.pt --checkpoint none.ckpt", "no such file: 'none.ckpt'", "model.ckpt"),
        ("compute f.pt --checkpoint RUN/results.json", "cannot be read", "model.ckpt"),
        ("compute f.pt --checkpoint other.ckpt", "'other.ckpt' without a state_dict", "model.ckpt"),
        ("compute f.pt --checkpoint RUN/model.ckpt", "does not fit the model", "give the overrides"),
        ("compute f.pt --run nowhere", "cannot read 'nowhere/results.json'", "run folder"),
        ("inspect", "required: FILE", "inspect --help"),
        ("inspect none.pt", "no such file: 'none.pt'", "check the path"),
        ("inspect other.ckpt", "no importance in 'other.ckpt'", "importance compute"),
        ("inspect RUN/model.ckpt --json --html x", "--html: not allowed with argument --json", "inspect --help"),
        ("merge a.pt", "required: --out", "merge --help"),
        ("merge a.pt --out c.pt", "1 importance file(s)", "give their paths"),
        ("merge a.pt b.pt --out c.pt --how max", "how='max'", "sum is exact"),
    ],
)
def test_bad_input_is_one_line(arguments: str, given: str, hint: str, run: Path, call: Call, tmp_path: Path):
    save_state(tmp_path / "other.ckpt", {"weights": {}})
    line = call("importance", *arguments.replace("RUN", str(run)).split()).error
    assert given in line.partition("; expected ")[0]
    assert hint in line.partition(". HINT: ")[2]
    assert [path.name for path in tmp_path.iterdir()] == ["other.ckpt"]


def copied(run: Path, folder: Path, *overrides: str) -> Path:
    """The run in another folder, with these overrides beside its own."""
    shutil.copytree(run, folder)
    file = folder / ".hydra" / "overrides.yaml"
    file.write_text(yaml.safe_dump([*yaml.safe_load(file.read_text()), *overrides]))
    return folder


def test_a_run_folder_that_does_not_say_what_was_run(run: Path, call: Call, tmp_path: Path):
    compute = ["importance", "compute", "f.pt", "--run"]
    line = call(*compute, str(copied(run, tmp_path / "changed", "optimizer.lr=0.5"))).error
    assert "give another config now" in line
    assert f"--checkpoint {tmp_path / 'changed' / 'model.ckpt'}" in line
    bare = copied(run, tmp_path / "bare")
    (bare / "model.ckpt").unlink()
    assert f"no model.ckpt in {str(bare)!r}" in call(*compute, str(bare)).error
    shutil.rmtree(bare / ".hydra")
    assert "overrides.yaml'; expected a run folder of lightning-cl" in call(*compute, str(bare)).error


def test_code_that_a_run_folder_names_is_not_run(run: Path, call: Call, tmp_path: Path):
    # what a folder from somewhere else may hold: config text and the hash that goes with it
    evil = copied(run, tmp_path / "evil", "model.backbone._target_=os.system", "+model.backbone.command=touch\\ owned")
    overrides = yaml.safe_load((evil / ".hydra" / "overrides.yaml").read_text())
    results = json.loads((evil / "results.json").read_text())
    (evil / "results.json").write_text(json.dumps(results | {"config_hash": _hash(overrides, results["method"])}))
    line = call("importance", "compute", "f.pt", "--run", str(evil)).error
    assert line.startswith("error: 'os.system' in the config of ")
    assert not (tmp_path / "owned").exists()


def _hash(overrides: list[str], method: str) -> Any:
    from lightning_cl._sections import recorded_config
    from lightning_cl.importance_compute import composed
    from lightning_cl.sequence.identity import config_hash

    with composed(overrides) as cfg:
        return config_hash(recorded_config(cfg, method))


@pytest.mark.slow
def test_in_processes_of_its_own(run: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}

    def lightning_cl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lightning_cl", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)

    done = lightning_cl("importance", "compute", "f.pt", "--run", str(run), "--n-samples", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert load_importance(tmp_path / "f.pt").info["n_samples"] == 30
    done = lightning_cl("importance", "inspect", "h.pt")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    check = "import sys, lightning_cl.cli as c; c.main(['importance', '--help']); print({'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "usage: lightning-cl importance compute OUT" in done.stdout
    assert done.stdout.endswith("set()\n")
