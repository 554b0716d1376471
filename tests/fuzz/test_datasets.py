"""Whatever a data set holds: the run ends with a result, or with one line."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.fuzz import datasets as made
from tests.fuzz.harness import attempt, config_of
from tests.fuzz.settings import examples

SCENARIOS = ["class_incremental"] * 3 + ["task_incremental", "domain_incremental", "data_incremental"]
SCENARIOS += ["online", "blurry", "gradual"]
WORDS = ("label", "data", "train", "test", "class", "sample", "task", "input", "loss", "item")


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """Training data, perhaps test data, and how they become tasks."""
    return {
        "train": draw(made.datasets()),
        "test": draw(made.datasets()) if draw(st.integers(0, 3)) == 0 else None,
        "scenario": draw(st.sampled_from(SCENARIOS)),
        "n_tasks": draw(st.integers(1, 3)),
        "validation_fraction": draw(st.sampled_from([0.0, 0.0, 0.3])),
        "method": draw(st.sampled_from(["er", "er", "ewc", "naive"])),
    }


def outcome_of(case: dict[str, Any]) -> Any:
    config = config_of(case["method"])
    made.CURRENT.update(train=case["train"], test=case["test"])
    for part in ("train", "test"):
        target = {"_target_": "tests.fuzz.datasets.given", "part": part}
        OmegaConf.update(config, f"stream.dataset.{part}", target, force_add=True)
    config.stream.dataset._target_ = "lightning_cl.streams.custom"
    for key in ("scenario", "n_tasks", "validation_fraction"):
        config.stream[key] = case[key]
    return attempt(config, ["stream=custom"], case["method"])


def problems(n: int) -> tuple[Counter, list[str]]:
    counts: Counter = Counter()
    found: dict[str, str] = {}

    @examples(n)
    @given(cases())
    def try_one(case: dict[str, Any]) -> None:
        outcome = outcome_of(case)
        counts[outcome.kind] += 1
        said = outcome.kind == "refused" and not any(word in outcome.text for word in WORDS)
        if outcome.kind in ("traceback", "too long") or said:
            tail = " | ".join(outcome.text.strip().splitlines()[-5:])
            found.setdefault(outcome.text[-80:], f"{outcome.kind}: {case}: {tail}")

    try_one()
    return counts, list(found.values())


def test_thirty_data_sets():
    counts, found = problems(30)
    assert not found, "\n".join(found)
    assert counts["refused"] > 5


@pytest.mark.long
def test_five_hundred_data_sets():
    counts, found = problems(550)
    print("data sets:", dict(counts))
    assert not found, "\n".join(found)
    assert sum(counts.values()) >= 500
