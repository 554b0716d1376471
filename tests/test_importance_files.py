"""Importances as files, and several as one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import EWC, __version__
from lightning_cl.errors import InputError
from lightning_cl.files import save_state
from lightning_cl.functional import quadratic_penalty
from lightning_cl.functional.seeding import generator
from lightning_cl.importance_files import ImportanceFile, load_importance, merge_importances, save_importance


def penalty(seed: int, dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> ImportanceFile:
    """Random importance (a fifth of it zero) and anchor."""
    rng = generator(seed, "penalty")
    importance, anchor = {}, {}
    for name, shape in (shapes or {"a": (3, 4), "b": (4,)}).items():
        weight = torch.rand(shape, generator=rng, dtype=dtype)
        importance[name] = weight * (weight > 0.2)
        anchor[name] = torch.randn(shape, generator=rng, dtype=dtype)
    return ImportanceFile(importance, anchor, {"kind": "fisher", "seed": seed})


def gradient(penalties: list[ImportanceFile], theta: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the sum of the penalties' values, each around its own anchor, in its own corner of a grown parameter."""
    leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
    total = torch.zeros(())
    for part in penalties:
        inside = {
            name: leaves[name][tuple(slice(size) for size in value.shape)] for name, value in part.importance.items()
        }
        total = total + quadratic_penalty(inside, part.importance, part.anchor, 1.0)
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def test_what_is_saved_is_loaded(tmp_path: Path):
    saved = penalty(0)
    info = {"kind": "fisher", "labels": "exact", "n_samples": 12, "tasks": ["task 0"], "more": {"x": None}}
    save_importance(tmp_path / "new" / "f.pt", saved.importance, saved.anchor, info)
    loaded = load_importance(tmp_path / "new" / "f.pt")
    for part, other in ((loaded.importance, saved.importance), (loaded.anchor, saved.anchor)):
        assert all(torch.equal(part[name], other[name]) for name in other)
    assert loaded.info == {"lightning_cl": __version__, **info}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["f.pt"]  # no temporary file is left


def test_a_methods_state_and_a_run_folders_learner_are_read_too(tmp_path: Path):
    part = penalty(0)
    ewc = EWC(1.0, state_path=tmp_path / "state.pt")
    ewc.importance, ewc.anchor = part.importance, part.anchor
    save_state(tmp_path / "state.pt", ewc.state_dict())
    callbacks = {"EWC.ewc": ewc.state_dict(), "Replay.er": {"version": 1, "memory": {}}}
    save_state(tmp_path / "learner.ckpt", {"version": 1, "callbacks": callbacks, "optimizer": {}})
    for name in ("state.pt", "learner.ckpt"):
        assert torch.equal(load_importance(tmp_path / name).anchor["b"], part.anchor["b"])
    assert load_importance(tmp_path / "learner.ckpt").info == {"kind": "EWC.ewc"}
    callbacks["SI.si"] = ewc.state_dict()
    save_state(tmp_path / "learner.ckpt", {"version": 1, "callbacks": callbacks, "optimizer": {}})
    with pytest.raises(InputError, match=r"importances of EWC.ewc, SI.si in .*; expected one. HINT: save one of them"):
        load_importance(tmp_path / "learner.ckpt")


def changed(kind: str, name: str, value: Any) -> ImportanceFile:
    part = penalty(0)
    getattr(part, kind)[name] = value
    return part


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (ImportanceFile({}, {}), "no importance; expected both for each parameter"),
        (changed("anchor", "c", torch.ones(1)), "importance and anchor that do not share c; expected both"),
        (changed("anchor", "b", torch.ones(5)), r"'b' with importance \(4,\) and anchor \(5,\); expected equal shapes"),
        (changed("importance", "b", torch.tensor([1, float("nan"), 1, 1])), "importance of 'b' is not finite"),
        (changed("anchor", "b", torch.full((4,), float("inf"))), "anchor of 'b' is not finite; expected finite"),
        (changed("importance", "b", -torch.ones(4)), "importance of 'b' is negative; expected numbers >= 0"),
        (
            ImportanceFile({"b": torch.zeros(4)}, {"b": torch.zeros(4)}),
            "importance that is 0 for every parameter; expected some that is not. HINT: the gradients vanish",
        ),
        (ImportanceFile(*penalty(0).__dict__.values()), None),
    ],
)
def test_what_cannot_be_a_penalty_is_not_written(part: ImportanceFile, message: str | None, tmp_path: Path):
    if message is None:
        save_importance(tmp_path / "f.pt", part.importance, part.anchor)
        return
    with pytest.raises(InputError, match=message):
        save_importance(tmp_path / "f.pt", part.importance, part.anchor)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("info", [{"model": object()}, {"w": torch.ones(1)}, {"list": [torch.ones(1)]}, {1: 2}])
def test_info_is_plain_values(info: dict[Any, Any], tmp_path: Path):
    part = penalty(0)
    with pytest.raises(InputError, match=r"info=.*; expected numbers, strings and lists of them. HINT: say in words"):
        save_importance(tmp_path / "f.pt", part.importance, part.anchor, info)


def test_files_that_hold_none(tmp_path: Path):
    path = tmp_path / "f.pt"
    with pytest.raises(InputError, match=r"no such file: .*expected a file written by .*HINT: check the path"):
        load_importance(path)
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match=r"cannot be read \(.*HINT: write it anew"):
        load_importance(path)
    for content in ({"state_dict": {}}, [1], {"callbacks": {"Replay.er": {"version": 1}}}, {"importance": {}}):
        torch.save(content, path)
        with pytest.raises(InputError, match=r"no importance in .*HINT: lightning-cl importance compute OUT"):
            load_importance(path)
    part = penalty(0)
    torch.save({"version": 2, "importance": part.importance, "anchor": part.anchor}, path)
    with pytest.raises(InputError, match="version 2; expected a file written by"):
        load_importance(path)
    torch.save({"version": 1, "importance": part.importance, "anchor": {}}, path)
    with pytest.raises(InputError, match=r"do not share a, b in '.*f.pt'"):
        load_importance(path)


def test_the_sum_has_the_gradient_of_all_penalties(tmp_path: Path):
    shapes = [{"a": (3, 4), "b": (4,)}, {"a": (5, 4), "c": (2,)}, {"a": (4, 4), "b": (4,)}]
    parts = [penalty(i, torch.float64, **shape) for i, shape in enumerate(shapes)]
    theta = {
        name: torch.randn(shape, generator=generator(9, name), dtype=torch.float64)
        for name, shape in {"a": (5, 4), "b": (4,), "c": (2,)}.items()
    }
    expected = gradient(parts, theta)
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        merged = merge_importances([parts[i] for i in order])
        found = gradient([merged], theta)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
    assert merged.info == {"kind": "merged", "how": "sum", "of": [parts[i].info for i in (2, 1, 0)]}
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for path, part in zip(paths, parts, strict=True):
        save_importance(path, part.importance, part.anchor, part.info)
    from_files = merge_importances(paths)
    assert torch.equal(from_files.anchor["a"], merge_importances(parts).anchor["a"])


def test_online_keeps_the_newest_anchors():
    first, second = penalty(0), penalty(1, a=(3, 4), c=(2,))
    merged = merge_importances([first, second], "online", 0.5)
    assert torch.equal(merged.importance["a"], 0.5 * first.importance["a"] + second.importance["a"])
    assert torch.equal(merged.anchor["a"], second.anchor["a"])
    for name, part in (("b", first), ("c", second)):  # known to one of them only: kept as it is
        assert torch.equal(merged.importance[name], part.importance[name])
        assert torch.equal(merged.anchor[name], part.anchor[name])
    assert merged.info["gamma"] == 0.5


def test_average_is_the_mean_of_all():
    parts = [penalty(i) for i in range(3)]
    merged = merge_importances(parts, "average")
    torch.testing.assert_close(merged.importance["a"], sum(part.importance["a"] for part in parts) / 3)
    assert torch.equal(merged.anchor["a"], parts[-1].anchor["a"])


@pytest.mark.parametrize("how", ["sum", "online", "average"])
def test_a_newer_file_may_be_of_the_smaller_head(how: str):
    grown, small = penalty(0, head=(5, 2)), penalty(1, head=(2, 2))
    merged = merge_importances([grown, small], how)
    assert merged.anchor["head"].shape == (5, 2)
    assert torch.equal(merged.anchor["head"][2:], grown.anchor["head"][2:])
    assert bool((merged.importance["head"][2:] <= grown.importance["head"][2:]).all())


@pytest.mark.parametrize(
    ("shapes", "how", "gamma", "message"),
    [
        ([(2,)], "sum", None, r"1 importance file\(s\) to merge; expected two or more"),
        ([(2,), (2,)], "max", None, "how='max'; expected one of sum, online, average. HINT: sum is exact"),
        ([(2,), (2,)], "sum", 0.5, r"gamma=0.5 with how='sum'; expected a number in \[0, 1\], not with sum"),
        ([(2,), (2,)], "online", 1.5, "gamma=1.5 with how='online'"),
        ([(2, 3), (3, 2)], "sum", None, r"'w' of shapes \(2, 3\) and \(3, 2\); expected equal shapes, or one that"),
        ([(2, 3), (6,)], "online", None, r"'w' of shapes \(2, 3\) and \(6,\)"),
    ],
)
def test_what_cannot_be_merged(shapes: list[tuple[int, ...]], how: str, gamma: float | None, message: str):
    with pytest.raises(InputError, match=message):
        merge_importances([penalty(i, w=shape) for i, shape in enumerate(shapes)], how, gamma)
