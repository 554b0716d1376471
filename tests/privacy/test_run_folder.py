"""Which files of a run folder hold training samples: none, unless the method keeps a memory of them."""

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_cl._conf import conf_dir
from tests.command_line import Call, call
from tests.privacy.pictures import DEVIATION, MEAN, Pictures, Search

__all__ = ["call"]

#: methods that keep no samples; what is not there yet is left out
DATA_FREE = [
    *("naive", "ewc", "online_ewc", "kfac_ewc", "si", "mas", "rwalk", "l2", "l2sp", "freezing", "lwf", "dgr"),
    *("cumulative", "from_scratch", "joint"),
]
METHODS = [name for name in DATA_FREE if (conf_dir() / "method" / f"{name}.yaml").is_file()]
QUICK = ("ewc", "lwf", "dgr")
RUN = [
    "stream=custom",
    "stream.n_tasks=2",
    "+stream.dataset.train._target_=tests.privacy.pictures.Pictures",
    "+stream.dataset.test._target_=tests.privacy.pictures.Pictures",
    "+stream.dataset.test.test=true",
    "trainer.max_epochs=2",
    "+trainer.log_every_n_steps=1",
    "batch_size=5",
    "checkpoint_every_n_steps=3",
    "reference_methods=[]",
    "model.backbone.hidden=[24]",
    "logger=[csv,tensorboard]",
    "accelerator=cpu",
    "validation_fraction=0.1",
    "evaluate_every_n_steps=4",
    "optimizer_state=keep",
    "hydra.run.dir=run",
]
OWN = {"dgr": ["+callbacks.dgr.hidden=[24]", "+callbacks.dgr.latent=6"]}
NORMALIZED = [f"+stream.normalize=[{MEAN},{DEVIATION}]"]
SEARCH = Search(Pictures().x)


class Watch:
    """Looks into every file of a checkpoint's kind at the moment when it gets its name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.found: dict[str, list[str]] = {}
        self._replace = os.replace
        monkeypatch.setattr(os, "replace", self._replaced)

    def _replaced(self, source: str, target: str) -> None:
        self._replace(source, target)
        path = Path(target)
        self.names.append(path.name)
        if found := SEARCH.in_file(path):
            self.found.setdefault(path.name, []).extend(found)


def run(call: Call, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> tuple[Watch, dict[str, list[str]]]:
    """What was found in files while they came and went, and in those that are there at the end."""
    watch = Watch(monkeypatch)
    outcome = call(*RUN, *overrides)
    assert outcome.code == 0, outcome.err
    files = {path.relative_to("run").as_posix(): path for path in Path("run").rglob("*") if path.is_file()}
    expected = ["config.yaml", "csv/metrics.csv", "events.out", "results.json", "report.html", "model.ckpt", "run.log"]
    for name in expected:
        assert any(name in path for path in files), (name, sorted(files))
    for name in ("fit-task0000-stage0.ckpt", "task0001-stage1.learner.ckpt", "task0001-stage1.model.ckpt"):
        assert name in watch.names or "joint" in str(overrides)
    return watch, {name: found for name, path in files.items() if (found := SEARCH.in_file(path))}


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_method_without_memory_leaves_no_sample(method: str, call: Call, monkeypatch: pytest.MonkeyPatch):
    watch, left = run(call, monkeypatch, f"method={method}", *OWN.get(method, []))
    assert watch.found == {}
    assert left == {}


@pytest.mark.parametrize("method", [name for name in ("lwf", "dgr") if name in METHODS])
def test_nor_of_normalized_inputs(method: str, call: Call, monkeypatch: pytest.MonkeyPatch):
    decoder = ["+callbacks.dgr.decoder=gaussian"] if method == "dgr" else []
    watch, left = run(call, monkeypatch, f"method={method}", *OWN.get(method, []), *decoder, *NORMALIZED)
    assert watch.found == {}
    assert left == {}


@pytest.mark.parametrize("overrides", [[], NORMALIZED, ["+callbacks.er.fill=step"]])
def test_a_memory_is_found_where_it_belongs_and_nowhere_else(
    overrides: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
):
    watch, left = run(call, monkeypatch, "method=er", *overrides)
    assert {name.split(".")[-2] for name in watch.found if "fit" not in name} == {"learner"}
    assert any(name.startswith("fit-") for name in watch.found), "a killed fit goes on from its memory"
    assert "task0001-stage0.learner.ckpt" in watch.found
    assert left
    assert all(name.endswith(".learner.ckpt") for name in left)
    for places in watch.found.values():
        assert any("its bytes" in place for place in places)
        kind = "normalized" if overrides == NORMALIZED else "raw"
        assert any(f"{kind} in a tensor" in place for place in places)
    deployed = torch.load("run/model.ckpt", weights_only=True)
    assert deployed.keys() == {"state_dict", "hyper_parameters", "pytorch-lightning_version"}


def test_what_the_search_finds(tmp_path: Path):
    sample, other = Pictures().x[7], torch.rand(1, 4, 6)
    scaled = (sample - MEAN) / DEVIATION
    hidden = {
        "a.ckpt": {"deep": [{"x": torch.cat([other, sample])}]},
        "half.ckpt": {"x": sample.half()},
        "bfloat.ckpt": {"x": sample.double()},
        "8 bits.ckpt": {"x": (sample * 255).round().byte()},
        "column.ckpt": {"x": torch.stack([other.flatten(), sample.flatten()], 1)},
        "normalized.ckpt": {"x": scaled[None]},
        "noisy.ckpt": {"x": sample + 1e-5},
    }
    for name, state in hidden.items():
        torch.save(state, tmp_path / name)
        assert SEARCH.in_file(tmp_path / name), name
        torch.save({"x": other, "y": "text", "n": 3}, tmp_path / name)
        assert not SEARCH.in_file(tmp_path / name), name
    for name, text in {"a.json": json.dumps(sample.tolist()), "b.csv": f"1,{float(scaled[0, 1, 2])!r},2"}.items():
        (tmp_path / name).write_text(text)
        assert SEARCH.in_file(tmp_path / name), name
        (tmp_path / name).write_text(json.dumps(other.tolist()))
        assert not SEARCH.in_file(tmp_path / name), name
    (tmp_path / "events").write_bytes(b"before" + sample.numpy().tobytes() + b"after")
    assert SEARCH.in_file(tmp_path / "events")
