"""What a penalty keeps: normalised, in bf16, from a file; and what it refuses to keep."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl import EWC
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher
from lightning_cl.functional.penalty import quadratic_penalty
from lightning_cl.importance_files import save_importance
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.replay_examples import fit


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.parametrize("kind", ["max", "mean"])
def test_every_new_importance_is_normalised_over_all_parameters(kind: Any):
    module, ewc, plain = Net(), EWC(1.0, variant="online", normalize=kind), EWC(1.0)
    for task in range(2):
        plain.importance, plain.anchor = {}, {}
        plain.consolidate(None, module, data(task))
        before = {name: value.clone() for name, value in ewc.importance.items()}
        ewc.consolidate(None, module, data(task))
        added = {name: value - before.get(name, 0) for name, value in ewc.importance.items()}
        values, own = flat(added.values()), flat(plain.importance.values())
        torch.testing.assert_close(values, own / (own.max() if kind == "max" else own.mean()))
    with pytest.raises(InputError, match="normalize='sum'; expected None, 'max' or 'mean'"):
        EWC(1.0, normalize="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_bf16_importances_are_half_the_size_and_nearly_the_same(apply: Any):
    moved, sizes = [], []
    for dtype in ("float32", "bfloat16"):
        module, ewc = Net(optimizer="Adam"), EWC(100.0, importance_dtype=dtype, apply=apply)  # type: ignore[arg-type]
        for task in range(2):
            fit(module, data(task), ewc)
        moved.append(module.weights)
        sizes.append(ewc.nbytes)
        assert {value.dtype for value in ewc.importance.values()} == {getattr(torch, dtype)}
        assert {value.dtype for value in ewc.anchor.values()} == {torch.float32}
    n = len(moved[0])
    assert sizes == [8 * n, 6 * n]
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=2e-3)
    assert not torch.equal(moved[0], moved[1])
    with pytest.raises(InputError, match="importance_dtype='float16'; expected 'float32' or 'bfloat16'"):
        EWC(1.0, importance_dtype="float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("gamma", [0.3, None])
def test_average(gamma: float | None):
    module, ewc = Net().double(), EWC(1.0, variant="average", gamma=gamma)
    fishers = []
    for task in range(3):
        fit(module, data(task, dtype=torch.float64), max_epochs=1)
        fishers.append(diagonal_fisher(module, data(task, dtype=torch.float64)))
        ewc.consolidate(None, module, data(task, dtype=torch.float64))
    shares = [1 / 3, 1 / 3, 1 / 3] if gamma is None else [0.7 * 0.3**2, 0.7 * 0.3, 0.7]
    for name, parameter in module.named_parameters():
        expected = sum(share * fisher[name] for share, fisher in zip(shares, fishers, strict=True))
        torch.testing.assert_close(ewc.importance[name], expected)
        assert torch.equal(ewc.anchor[name], parameter)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "average", "gamma": 1.0}, r"gamma=1 with variant='average'; expected a number in \(0, 1\)"),
        ({"variant": "online", "gamma": "tasks"}, "gamma='tasks' with variant='online'; expected variant='average'"),
        ({"variant": "average", "gamma": "all"}, r"gamma='all'; expected a number in \(0, 1\]"),
        ({"apply": "loss"}, "apply='loss'; expected 'gradient' or 'proximal'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        EWC(1.0, **options)


class Given(EWC):
    """An importance by hand."""

    value: Any = 0.0

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        new = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
        new["net.2.bias"] += self.value
        return new


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "importance that is 0 for every parameter of Given.ewc; expected some that is not. HINT: the gradients"),
        (
            float("nan"),
            "importance of 'net.2.bias' of Given.ewc is not finite; expected finite numbers. HINT: look",
        ),
        (-1.0, "importance of 'net.2.bias' of Given.ewc is negative"),
    ],
)
def test_what_cannot_be_a_penalty_is_refused_and_the_old_one_stays(value: float, message: str):
    module, callback = Net(), Given(1.0)
    callback.value = 2.0
    callback.consolidate(None, module, data(0))
    old = {name: value.clone() for name, value in callback.importance.items()}
    callback.value = value
    with pytest.raises(InputError, match=message):
        callback.consolidate(None, module, data(1))
    assert callback.n_tasks == 1
    assert all(torch.equal(old[name], callback.importance[name]) for name in old)


def written(path: Path, module: Net, change: Any = None) -> dict[str, dict[str, Tensor]]:
    """A file of importances: this module's Fisher on task 0, its weights moved a little."""
    content = {
        "importance": diagonal_fisher(module, data(0)),
        "anchor": {name: p.detach() + 0.1 for name, p in module.named_parameters()},
    }
    if change is not None:
        content = {kind: change(part) for kind, part in content.items()}
    save_importance(path, content["importance"], content["anchor"], {"kind": "fisher"})
    return content


def test_a_file_is_the_first_penalty(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path, module = tmp_path / "importance.pt", Net()
    content = written(path, module)
    ewc, before, after = EWC(20.0, importance_path=path), Gradients(), Gradients()
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        fit(module, data(1), before, ewc, after, max_epochs=1)
    assert any("penalty on 4 parameters from" in r.getMessage() for r in caplog.records)
    at = {n: p.requires_grad_() for n, p in zip(content["importance"], after.at[0], strict=True)}
    penalty = quadratic_penalty(at, content["importance"], content["anchor"], 20.0)
    for own, both, wanted in zip(
        before.seen[0], after.seen[0], torch.autograd.grad(penalty, list(at.values())), strict=True
    ):
        torch.testing.assert_close(both - own, wanted, rtol=1e-4, atol=1e-6)
    # it counts as a task, and what comes next is merged with it
    assert ewc.n_tasks == 2
    new = diagonal_fisher(module, data(1))
    torch.testing.assert_close(
        flat(ewc.importance.values()), flat(new[n] + content["importance"][n] for n in ewc.importance)
    )


def test_a_state_goes_before_the_file(tmp_path: Path):
    path, state, module = tmp_path / "importance.pt", tmp_path / "state.pt", Net()
    written(path, module)
    first = EWC(20.0, state_path=state)
    fit(module, data(1), first, max_epochs=1)
    again = EWC(20.0, state_path=state, importance_path=path, consolidate="manual")
    fit(module, data(2), again, max_epochs=1)
    assert again.n_tasks == 1
    assert all(torch.equal(again.importance[name], first.importance[name]) for name in first.importance)


def test_consolidating_without_a_fit_reads_it_too(tmp_path: Path):
    path, module = tmp_path / "importance.pt", Net()
    content = written(path, module)
    ewc = EWC(1.0, importance_path=path, include="net.2")
    ewc.consolidate(None, module, data(1))
    assert ewc.n_tasks == 2
    new = diagonal_fisher(module, data(1))
    for name in ("net.2.weight", "net.2.bias"):
        torch.testing.assert_close(ewc.importance[name], new[name] + content["importance"][name])
    assert len(ewc.importance) == 2


def test_rows_that_a_parameter_has_gained_since_are_free(tmp_path: Path):
    path, module = tmp_path / "importance.pt", Net()
    written(path, module, lambda part: {n: v[:2] if n.startswith("net.2") else v for n, v in part.items()})
    ewc = EWC(1.0, importance_path=path, consolidate="manual")
    fit(module, data(1), ewc, max_epochs=1)
    assert ewc.importance["net.2.weight"].shape == ewc.anchor["net.2.weight"].shape == (3, 8)
    assert not bool(ewc.importance["net.2.weight"][2].any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda part: {n.replace("net", "model"): v for n, v in part.items()},
            r"model.0.weight \(8, 4\); .*expected names and shapes of this module, such as net.0.weight, .*HINT: co",
        ),
        (
            lambda part: {n: torch.cat([v, v]) if n == "net.2.bias" else v for n, v in part.items()},
            r"with net.2.bias \(6,\), here \(3,\); expected",
        ),
    ],
)
def test_a_file_of_another_module_is_refused(change: Any, message: str, tmp_path: Path):
    written(tmp_path / "importance.pt", Net(), change)
    with pytest.raises(InputError, match=message):
        fit(Net(), data(1), EWC(1.0, importance_path=tmp_path / "importance.pt"))


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(
        InputError,
        match=r"^importance_path=.*nothing.pt': no such file: .*nothing.pt'; expected .* HINT: check the path",
    ):
        fit(Net(), data(1), EWC(1.0, importance_path=tmp_path / "nothing.pt"))
