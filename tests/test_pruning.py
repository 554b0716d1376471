"""Jobs of a sweep that fall behind are given up."""

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_cl.errors import InputError
from lightning_cl.pruning import Pruning, averages_by_task, objective, pruner
from tests.command_line import QUICK, Call, call

__all__ = ["call"]
FIVE = [text for text in QUICK if not text.startswith("stream.n_tasks")]


def results(*rows: list[float | None], status: str = "running", **more: Any) -> dict[str, Any]:
    return {
        "status": status,
        "stream": "s",
        "scenario": "class_incremental",
        "metric": {"name": "accuracy", "higher_is_better": True},
        "task_names": ["a", "b", "c"],
        "accuracy_matrix": [*rows, *([None] * 3 for _ in range(3 - len(rows)))],
        "validation_accuracy_matrix": None,
        **more,
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_averages_are_over_the_tasks_so_far_and_of_validation_data_where_there_are():
    matrix = [[0.8, None, None], [0.4, 0.6, None]]
    assert averages_by_task(results(*matrix)) == [0.8, 0.5]
    assert averages_by_task(results([0.8, 0.1, 0.1])) == [0.8]  # evaluate_future fills the rest of the row
    assert averages_by_task(results(*matrix, validation_accuracy_matrix=[[0.3, None, None]])) == [0.3]
    assert averages_by_task(results()) == []


def test_the_rule():
    rule = Pruning(after=1, jobs=3)
    assert rule.falls_behind(0.4, [0.5, 0.6, 0.1])
    assert not rule.falls_behind(0.5, [0.5, 0.6, 0.1])  # as good as the median is good enough
    assert not rule.falls_behind(0.4, [0.5, 0.6])  # too few to say
    assert not Pruning(after=1, jobs=3, quantile=0.75).falls_behind(0.4, [0.5, 0.6, 0.1])
    assert rule.falls_behind(0.55, [0.5, 0.5, 0.6], higher_is_better=False)


def test_a_job_is_compared_with_others_of_its_stream_at_the_same_task(tmp_path: Path):
    own = tmp_path / "own"
    for i, value in enumerate([0.7, 0.8]):
        write(tmp_path / f"good{i}", results([value, None, None], [0.1, 0.1, None]))
    write(tmp_path / "other", results([0.99, None, None], stream="another"))
    write(tmp_path / "good0" / "references" / "joint", results([0.99, None, None]))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "results.json").write_text("{")
    give_up = pruner(Pruning(after=1, jobs=2), tmp_path, own)
    assert give_up is not None
    said = give_up(results([0.5, None, None]))
    assert said == "after task 1 of 3 an average of 0.5000, 2 other jobs had 0.7500 in the median"
    assert give_up(results([0.75, None, None])) is None
    assert give_up(results([0.5, None, None], [0.2, 0.2, None])) is None  # it has caught up
    assert give_up(results()) is None
    later = pruner(Pruning(after=2, jobs=2), tmp_path, own)
    assert later is not None
    assert later(results([0.5, None, None])) is None
    assert pruner(Pruning(), tmp_path, own) is None


def test_a_job_is_not_one_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, value in [("good", 0.7), ("own", 0.5)]:
        write(tmp_path / "references" / "sweep" / name, results([value, None, None]))
    own = (
        tmp_path / "references" / "sweep" / "own"
    )  # Hydra gives the sweep's folder as it is typed, and the job's whole
    for folder in (Path("references/sweep"), tmp_path / "references" / "sweep"):
        give_up = pruner(Pruning(after=1, jobs=1), folder, own)
        assert give_up is not None
        assert "1 other jobs had 0.7000" in str(give_up(results([0.5, None, None])))
        assert pruner(Pruning(after=1, jobs=2), folder, own)(results([0.5, None, None])) is None  # type: ignore[misc]


def test_what_a_search_is_told(tmp_path: Path):
    done = results([0.7, None, None], [0.6, 0.6, None], [0.5, 0.5, 0.5], status="finished")
    own = write(tmp_path / "own", done)
    assert objective(done, tmp_path, own) == 0.5
    assert objective(results(status="failed"), tmp_path, own) is None
    early = results([0.9, None, None], status="pruned")
    assert objective(early, tmp_path, tmp_path / "early") == 0.5  # not 0.9
    assert objective(results([0.4, None, None], status="pruned"), tmp_path, tmp_path / "early") == 0.4


@pytest.mark.parametrize("given", ["after=0", "after=x", "after=1.5", "jobs=0", "quantile=1", "quantile=x"])
def test_wrong_values(call: Call, given: str):
    assert f"prune.{given.partition('=')[0]}=" in call("method=naive", f"prune.{given}", *QUICK).error
    assert "prune=3; expected a mapping of after, jobs, quantile" in call("prune=3", *QUICK).error
    with pytest.raises(InputError, match="quantile=True"):
        Pruning(quantile=True)


def test_a_sweep_gives_up_what_falls_behind_and_is_the_same_again(call: Call, tmp_path: Path):
    sweep = ["-m", "method=naive", "optimizer.lr=0.003,0.002,1e-9", "stream.n_tasks=3", "prune.after=1", "prune.jobs=2"]
    sweep += [text.replace("epochs=1", "epochs=4") for text in FIVE]
    outcome = call(*sweep)
    assert outcome.code == 0, outcome.err  # giving up is no failure
    assert "Sweep: 2 of 3 jobs finished, 1 given up" in outcome.out
    found = {path.parent: json.loads(path.read_text()) for path in tmp_path.rglob("results.json")}
    (folder,) = [folder for folder, content in found.items() if content["status"] == "pruned"]
    assert "lr=1e-09" in str(folder)
    assert "after task 1 of 3" in found[folder]["error"]
    assert "Status: pruned" in (folder / "report.html").read_text()
    again = call(*sweep)
    assert "2 of 3 jobs finished, 1 given up" in again.out
    assert {path: json.loads((path / "results.json").read_text()) for path in found} == found
    whole = call(*[text for text in sweep if not text.startswith("prune.")])  # the same runs, none given up
    assert "Sweep: 3 of 3 jobs finished" in whole.out
    assert json.loads((folder / "results.json").read_text())["status"] == "finished"
