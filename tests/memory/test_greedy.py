"""GDumb's sampler against the paper's loop."""

import torch

from lightning_cl.functional.seeding import generator
from lightning_cl.memory import Memory


def plain_greedy(labels: list[int], size: int, source: torch.Generator) -> list[int]:
    """Algorithm 1 of Prabhu et al. 2020, sample by sample; positions held, by place."""
    held: dict[int, list[int]] = {}
    place: dict[int, int] = {}
    for i, y in enumerate(labels):
        quota = size / len(held) if held else size
        if y in held and not len(held[y]) < quota:
            continue
        if sum(map(len, held.values())) >= size:
            largest = next(c for c in held if len(held[c]) == max(map(len, held.values())))
            out = held[largest].pop(int(torch.randint(len(held[largest]), (1,), generator=source)))
            place[i] = place.pop(out)
        else:
            place[i] = len(place)
        held.setdefault(y, []).append(i)
    return sorted(place, key=lambda i: place[i])


def test_equals_the_plain_loop_however_it_is_cut_into_batches():
    source = torch.Generator().manual_seed(1)
    for size, classes in ((20, 3), (10, 10), (7, 12), (500, 4)):
        labels = torch.cat([torch.randint(c, c + 2, (60,), generator=source) for c in range(0, classes, 2)])
        expected = plain_greedy(labels.tolist(), size, generator(5, "memory", "fill"))
        for batch in (1, 13, 1000):
            memory = Memory(size, "greedy", seed=5)
            for part in torch.arange(len(labels)).split(batch):
                memory.add((part, labels[part]), labels[part])
            assert memory.at(slice(0, len(memory)))["0"].tolist() == expected


def test_classes_end_within_one_of_each_other():
    memory, labels = Memory(50, "greedy"), torch.arange(10).repeat_interleave(100)
    memory.add((labels, labels), labels)
    assert memory.labels.bincount().tolist() == [5] * 10


def test_saved_and_loaded_it_goes_on_alike():
    labels = torch.arange(6).repeat_interleave(20)
    whole, first, again = (Memory(16, "greedy", seed=2) for _ in range(3))
    whole.add((labels, labels), labels)
    first.add((labels[:70], labels[:70]), labels[:70])
    again.load_state_dict(first.state_dict())
    again.add((labels[70:], labels[70:]), labels[70:])
    assert torch.equal(whole.labels, again.labels)
