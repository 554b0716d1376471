"""Two processes: equal to the bit behind every step, and equal to one process on the same global batches."""

from pathlib import Path

import pytest
import torch

from tests.callbacks.distributed_examples import in_two_processes
from tests.callbacks.freezing_distributed_examples import CASES, fit

SCRIPT = """
import sys
import torch
from tests.callbacks.freezing_distributed_examples import CASES, fit

if __name__ == "__main__":
    found = {}
    for case in CASES:
        follow, trainer = fit(case, 2)
        found[case] = {"weights": torch.stack(follow.weights), "trainable": follow.trainable,
                       "statistics": torch.stack(follow.statistics)}
    whole, _ = fit("not held by the optimizer", 2, sys.argv[1])
    again, _ = fit("not held by the optimizer", 2, sys.argv[1], 6)
    found["resumed at the second thaw"] = torch.equal(torch.stack(whole.weights[6:]), torch.stack(again.weights))
    torch.save(found, f"{sys.argv[1]}/rank{trainer.global_rank}.pt")
"""


@pytest.mark.slow
def test_ranks_are_equal_to_the_bit_and_to_one_process_after_each_of_three_thaws(tmp_path: Path):
    one, two = in_two_processes(SCRIPT, tmp_path)
    assert one["resumed at the second thaw"]
    assert two["resumed at the second thaw"]
    for case in CASES:
        assert torch.equal(one[case]["weights"], two[case]["weights"]), case
        assert one[case]["trainable"] == two[case]["trainable"]
        follow, _ = fit(case, 1)
        assert follow.trainable == one[case]["trainable"]
        assert sorted(set(follow.trainable)) == [2, 4, 8, 12]  # head, upper, middle, lower; never the stem
        torch.testing.assert_close(one[case]["weights"], torch.stack(follow.weights), rtol=0, atol=1e-6)
        assert torch.equal(two[case]["statistics"], torch.zeros(len(follow.weights), 8))
        for thaw in (follow.trainable.index(n) for n in (4, 8, 12)):
            assert not torch.equal(follow.weights[thaw + 1], follow.weights[thaw - 1])
