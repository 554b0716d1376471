"""Every method in two processes: the same weights and state in both, and those of one process where nothing is drawn.

One start for all of a kind. ``pytest -n0 -s tests/parity/test_processes.py`` prints the figures.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.callbacks.distributed_examples import in_two_processes
from tests.finetuning.examples import blobs
from tests.parity.conditions import CONDITIONS, STRUCTURES
from tests.parity.methods import METHODS, OURS, SEQUENCE, refusal
from tests.parity.processes import HEADS, KINDS, NAMES, PARTS, REFUSED, SAME_STATE, SAME_WEIGHTS, learn, stream
from tests.parity.projects import ours
from tests.resume.helpers import differences

pytestmark = [pytest.mark.long]  # `pytest -m long -n0 tests/parity/test_processes.py`

#: which classes these hold is drawn
RESERVOIRS = [
    *("er", "er, separate", "er_ace", "der", "derpp", "a_gem", "gem", "wa", "wa, distillation", "balanced_fine_tuning"),
    *(name for name in HEADS if name.startswith("er,")),
]
SCRIPT = """
import os, sys
import torch
from tests.parity.processes import PARTS, learn

if __name__ == "__main__":
    found = {{name: learn(name, 2) for name in PARTS["{part}"]}}
    torch.save(found, sys.argv[1] + "/rank" + os.environ.get("LOCAL_RANK", "0") + ".pt")
"""


def tensors(value: Any, where: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {where: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {k: v for key, part in pairs for k, v in tensors(part, f"{where}/{key}").items()}


def largest(a: Any, b: Any) -> float:
    """The largest difference between two states of one structure; in units of a tensor's largest value above 1."""
    one, two = tensors(a), tensors(b)
    assert one.keys() == two.keys()
    found = [0.0]
    for key, value in one.items():
        if value.shape != two[key].shape:
            return float("inf")
        if value.numel():
            scale = max(1.0, float(value.abs().max()))
            found.append(float((value.double() - two[key].double()).abs().max()) / scale)
    return max(found)


@pytest.mark.parametrize("part", PARTS)
def test_two_processes_and_one(part: str, tmp_path: Path):
    one, two = in_two_processes(SCRIPT.format(part=part), tmp_path, timeout=900)
    assert list(one) == PARTS[part]
    assert {name for name, found in one.items() if "refused" in found} == set(REFUSED) & set(one)
    for name in set(REFUSED) & set(one):
        assert "HINT: " in one[name]["refused"]
    trained = {name: found for name, found in one.items() if name not in REFUSED}
    # a process counts what it has replayed itself
    for name, found in trained.items():
        assert [d for d in differences(found, two[name]) if ".replayed: " not in d] == [], name
    assert all(torch.isfinite(value).all() for value in tensors(trained).values() if value.is_floating_point())

    apart: dict[str, tuple[float, float]] = {}
    for name in trained:
        alone = learn(name, 1)
        pairs = list(zip(one[name]["ends"], alone["ends"], strict=True))
        apart[name] = tuple(max(largest(a[of], b[of]) for a, b in pairs) for of in ("weights", "state"))
        print(f"{name:24} rank difference 0, from one process: weights {apart[name][0]:.1e} state {apart[name][1]:.1e}")
        if name in KINDS:
            continue
        counted_once(name, one[name])
        memories_have_the_same_law(name, one[name]["ends"][-1], alone["ends"][-1])
    assert {name: apart[name] for name in apart if name in SAME_WEIGHTS and apart[name][0] > 1e-6} == {}
    assert {name: apart[name] for name in apart if name in SAME_STATE and apart[name][1] > 1e-6} == {}
    if "icarl" in one:
        the_rule_is_that_of_the_exemplars(one["icarl"]["ends"][-1])


def counted_once(name: str, found: dict[str, Any]) -> None:
    """Accuracies are those over the 63 test samples of each task, whole numbers of them."""
    counts = found["matrix"][-1] * 63
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4, msg=f"{name}: {counts}")


def memories_have_the_same_law(name: str, both: Any, alone: Any) -> None:
    """As many samples, each of them once, and as many of each class where the policy balances classes."""
    for held, other in zip(both["stored"], alone["stored"], strict=True):
        assert len(held["0"].unique(dim=0)) == len(held["0"]) == len(other["0"]), f"{name}: a sample is stored twice"
        labels, others = (memory["1"].bincount(minlength=6) for memory in (held, other))
        if name not in RESERVOIRS:
            assert sorted(labels.tolist()) == sorted(others.tolist()), name


def the_rule_is_that_of_the_exemplars(end: Any) -> None:
    """Herding means over ranks: those of the stored exemplars under the weights that both ended with."""
    model = ours("tuple", CONDITIONS["plain"], class_names=blobs().class_names)
    model.set_rule("nearest_mean")
    model.load_state_dict(end["weights"])
    from lightning_cl import ICaRL

    icarl = OURS["icarl"][0]()[0]
    assert isinstance(icarl, ICaRL)
    icarl.load_state_dict(end["state"]["0"])
    held, labels = icarl.memory.at(slice(0, len(icarl.memory))), icarl.memory.labels
    features = F.normalize(model.backbone(held["0"]), dim=1)
    means = F.normalize(torch.stack([features[labels == c].mean(0) for c in range(6)]), dim=1)
    torch.testing.assert_close(model.rule.means, means)


def test_the_list_of_names():
    assert set(SAME_STATE) | set(SAME_WEIGHTS) | set(REFUSED) <= set(NAMES)
    assert set(HEADS) <= set(NAMES)
    assert {name for part in PARTS.values() for name in part} == set(NAMES)
    for kind in STRUCTURES[1:]:
        refused = {method for method in METHODS if refusal(method, "plain", kind) is not None}
        assert {KINDS[name][0] for name in PARTS[kind]} == set(METHODS) - set(SEQUENCE) - refused
    assert len(stream()[0].test) == 63
