"""Two processes that fill a memory step by step: both hold what one process would hold, and draw other samples."""

from pathlib import Path

import pytest
import torch

from lightning_cl.memory import Memory
from tests.callbacks.distributed_examples import in_two_processes
from tests.callbacks.replay_examples import Numbered

SCRIPT = """
import sys
import torch
from torch.utils.data import DataLoader
from lightning.pytorch import Trainer
from lightning_cl import Replay
from tests.callbacks.replay_examples import Classifier, Numbered, as_dict

def collate(samples):
    batch = as_dict(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))
    return {**batch, "id": batch["image"][:, 0].long(), "bits": batch["label"] > 1}

if __name__ == "__main__":
    replay, module = Replay(12, fill="step", seed=3), Classifier(as_dict)
    offered = []
    add = replay.memory.add
    replay.memory.add = lambda batch, *rest, **known: (offered.append(batch["id"].clone()), add(batch, *rest, **known))
    for task in range(2):
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[replay], logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(Numbered(task), batch_size=5, collate_fn=collate))
    held = replay.memory.at(slice(0, len(replay.memory)))
    found = {"held": held, "offered": offered, "weights": module.weights, "seen": module.seen,
             "state": replay.state_dict(), "labels": replay.memory.labels}
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.long
def test_both_processes_hold_what_one_would(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert torch.equal(one["weights"], two["weights"])
    for path in ("image", "label", "id", "bits"):
        assert torch.equal(one["held"][path], two["held"][path])
    assert one["held"]["meta/name"] == two["held"]["meta/name"] == [f"sample {i}" for i in one["held"]["id"].tolist()]
    assert torch.equal(one["held"]["image"][:, 0].long(), one["held"]["id"])
    assert torch.equal(one["state"]["memory"]["draws"], two["state"]["memory"]["draws"])
    # every sample of both, once, in the order of ranks
    assert [ids.tolist() for ids in one["offered"]] == [ids.tolist() for ids in two["offered"]]
    own = [rank["seen"] for rank in (one, two)]
    first = one["offered"][0].tolist()
    assert first == own[0][0] + own[1][0]
    assert sorted(torch.cat(one["offered"]).tolist()) == sorted([*range(24), *range(100, 124)])
    # the law is that of one process which is offered the same
    alone = Memory(12, "reservoir", _seed())
    x = torch.cat([Numbered(task).x for task in range(2)])
    place = {int(number): i for i, number in enumerate(x[:, 0])}
    for ids in one["offered"]:
        alone.add({"id": ids, "image": x[[place[i] for i in ids.tolist()]]})
    assert torch.equal(alone.at(slice(0, 12))["id"], one["held"]["id"])
    # at a step of the second task the two replay different samples
    replayed = [[set(numbers[5:]) for numbers in rank["seen"][-3:]] for rank in (one, two)]
    assert all(not a & b for a, b in zip(*replayed, strict=True))


def _seed() -> int:
    from lightning_cl.functional.seeding import derive_seed

    return derive_seed(3, "replay")
