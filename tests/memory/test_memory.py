import io
import time
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.memory import Memory, find_labels
from tests.callbacks.replay_examples import same


def stream(n: int, classes: int = 3, start: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.arange(start, start + n)
    return ids[:, None].float().repeat(1, 4), ids % classes


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_holds_what_was_stored_row_by_row():
    memory = Memory(10, seed=3)
    for start in range(0, 100, 20):
        x, y = stream(20, start=start)
        memory.add({"x": x, "meta": {"y": y, "name": [f"sample {i}" for i in range(start, start + 20)]}}, y)
    assert len(memory) == 10
    assert memory.n_seen == 100
    sample = memory.sample(10)
    ids = sample["x"][:, 0].long()
    assert len(set(ids.tolist())) == 10, "without replacement"
    assert torch.equal(sample["meta/y"], ids % 3)
    assert sample["meta/name"] == [f"sample {i}" for i in ids.tolist()]
    assert torch.equal(memory.labels, memory.at(slice(0, 10))["meta/y"])


def test_dtypes_are_kept_and_more_than_all_is_with_replacement():
    memory = Memory(3)
    memory.add(
        (torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bool))
    )
    assert [leaf.dtype for leaf in memory.sample(7).values()] == [torch.uint8, torch.bfloat16, torch.bool]
    assert len(memory.sample(7)["0"]) == 7
    assert len(memory) == 2


def test_stored_samples_are_copies():
    x, y = stream(4)
    memory = Memory(4)
    memory.add((x, y))
    x.zero_()
    memory.sample(4)["0"].fill_(-1)
    memory.at(slice(0, 4))["0"].fill_(-1)
    assert sorted(memory.at(slice(0, 4))["0"][:, 0].tolist()) == [0, 1, 2, 3]


def test_class_balanced_shares_follow_the_classes_seen():
    memory = Memory(10, "class_balanced")
    expected = {2: [5, 5], 3: [4, 3, 3], 4: [3, 3, 2, 2], 6: [2, 2, 2, 2, 1, 1]}
    start = 0
    for classes, shares in expected.items():
        for _ in range(4):
            x, y = stream(60, classes, start)
            memory.add((x, y), y)
            start += 60
        held = Counter(memory.labels.tolist())
        assert [held[c] for c in range(classes)] == shares
        x, y = memory.at(slice(0, len(memory))).values()
        assert torch.equal(y, memory.labels), "what is moved to close gaps keeps its label"


def test_class_balanced_with_rare_classes_and_with_more_classes_than_samples():
    memory = Memory(10, "class_balanced")
    memory.add((torch.arange(21.0),), torch.tensor([0] * 20 + [1]))
    assert Counter(memory.labels.tolist()) == {0: 5, 1: 1}
    assert len(memory) == 6
    memory.add((torch.arange(30.0),), torch.arange(30))
    assert sorted(memory.labels.tolist()) == list(range(10))


def test_class_balanced_is_uniform_within_a_class_after_shrinking():
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(2500):
        memory = Memory(4, "class_balanced", seed)
        for ids, labels in (([0, 1, 2, 3, 4], [0] * 5), ([10, 11, 12, 5], [1, 1, 1, 0]), ([6], [0])):
            memory.add((torch.tensor(ids),), torch.tensor(labels))
        held = memory.at(slice(0, 4))["0"]
        counts[tuple(sorted(held[memory.labels == 0].tolist()))] += 1
    assert chisquare([counts[pair] for pair in combinations(range(7), 2)]).pvalue > 1e-3


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_a_loaded_memory_goes_on_as_the_saved_one(policy: str):
    one = Memory(12, policy, seed=5)
    x, y = stream(40)
    one.add((x, ["s"] * 40, {"y": y}), y)
    one.sample(3)
    other = Memory(12, policy, seed=99)
    other.load_state_dict(through_a_file(one.state_dict()))
    for memory in (one, other):
        for k in range(3):
            x, y = stream(30, 4 + k, 100 + 30 * k)
            memory.add((x, ["t"] * 30, {"y": y}), y)
    a, b = one.sample(8), other.sample(8)
    assert a["1"] == b["1"]
    assert torch.equal(a["0"], b["0"])
    assert torch.equal(a["2/y"], b["2/y"])
    assert same(one.state_dict(), other.state_dict())
    assert torch.equal(one.at(slice(0, 12))["0"], other.at(slice(0, 12))["0"])


def test_the_seed_decides_and_draws_do_not_change_what_is_stored():
    def run(seed: int, draws: int) -> Tensor:
        memory = Memory(5, seed=seed)
        for start in range(0, 60, 20):
            memory.add(stream(20, start=start))
            for _ in range(draws):
                memory.sample(2)
        return memory.at(slice(0, 5))["0"]

    assert torch.equal(run(0, 0), run(0, 4))
    assert not torch.equal(run(0, 0), run(1, 0))


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    memory = Memory(5, "class_balanced")
    memory.add(stream(50), stream(50)[1])
    memory.sample(3)
    assert torch.equal(before, torch.get_rng_state())


def test_token_batches_of_unequal_length_are_padded():
    memory = Memory(6)
    for start, length in ((0, 3), (2, 5), (4, 2)):
        tokens = torch.full((2, length), start + 1)
        memory.add({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens})
    rows = memory.at(slice(0, 6))
    assert rows["input_ids"].shape == (6, 5)
    assert rows["input_ids"][0].tolist() == [1, 1, 1, 0, 0]
    assert rows["attention_mask"].sum(1).tolist() == [3, 3, 5, 5, 2, 2]
    assert rows["labels"][4].tolist() == [5, 5, -100, -100, -100]


def test_nbytes_counts_what_is_held():
    memory = Memory(100)
    memory.add((torch.zeros(10, 4), torch.zeros(10, dtype=torch.long), ["abc"] * 10), torch.zeros(10, dtype=torch.long))
    assert memory.nbytes == 10 * (16 + 8 + 3 + 8)


def test_sampling_and_adding_cost_the_same_from_a_thousand_and_a_million():
    def cost(n: int) -> float:
        memory = Memory(n)
        memory.add((torch.zeros(n, 1), torch.zeros(n, dtype=torch.long)))
        batch, times = (torch.zeros(128, 1), torch.zeros(128, dtype=torch.long)), []
        for _ in range(30):
            start = time.process_time()
            for _ in range(10):
                memory.sample(128)
                memory.add(batch)
            times.append(time.process_time() - start)
        return min(times)

    small, large = cost(1_000), cost(1_000_000)
    assert large < 3 * small


def test_labels_are_found_where_people_put_them():
    x, y = stream(4)
    assert find_labels((x, y)) is y
    assert find_labels([x, y, torch.zeros(4, dtype=torch.long)]) is y
    assert find_labels({"id": torch.arange(4), "label": y}) is y
    assert find_labels({"pixels": x, "meta": {"target": y}, "n": y + 1}) is y
    assert find_labels(x) is None
    assert find_labels((x, x)) is None
    assert find_labels((x, x), label_fn=lambda batch: batch[1][:, 0].long()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("size", [-1, -3, 2.5, True, "many"])
def test_what_is_no_size(size: Any):
    with pytest.raises(InputError, match=rf"memory_size={size!r}; expected an integer >= 0.*HINT: set memory_size=200"):
        Memory(size)


def test_other_bad_input():
    x, y = stream(4)
    with pytest.raises(InputError, match=r"policy='fifo'; expected one of reservoir, class_balanced, .*HINT"):
        Memory(3, "fifo")
    with pytest.raises(
        InputError, match=r"labels missing for 4 samples; expected one label per sample.*HINT: give label_fn"
    ):
        Memory(3, "class_balanced").add((x, y))
    with pytest.raises(InputError, match=r"labels of shape \(4, 1\) for 4 samples.*HINT"):
        Memory(3).add((x, y), y[:, None])
    memory = Memory(3)
    memory.add((x, y))
    with pytest.raises(InputError, match=r"leaves \['x'\] for a memory of \['0', '1'\].*HINT"):
        memory.add({"x": x})
    with pytest.raises(InputError, match=r"leaf '0' of torch.int64 for a memory of torch.float32.*HINT"):
        memory.add((x.long(), y))
    with pytest.raises(
        InputError, match=r"\(1, 3, 'reservoir'\); expected \(1, 4, 'reservoir'\). HINT: use memory_size=3"
    ):
        Memory(4).load_state_dict(memory.state_dict())


def test_max_per_class_caps_a_class_while_there_is_room() -> None:
    memory = Memory(20, "class_balanced", max_per_class=3)
    labels = torch.arange(2).repeat(50)
    memory.add((torch.arange(100), labels), labels)
    assert memory.labels is not None
    assert torch.bincount(memory.labels).tolist() == [3, 3]


@pytest.mark.parametrize(("policy", "cap"), [("reservoir", 5), ("class_balanced", 0)])
def test_max_per_class_is_refused_where_it_means_nothing(policy: str, cap: int) -> None:
    with pytest.raises(InputError, match="max_per_class"):
        Memory(20, policy, max_per_class=cap)
