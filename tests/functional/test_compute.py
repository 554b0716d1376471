"""Samples of a fit against a loop that counts them."""

import itertools

import pytest

from lightning_cl.functional.compute import budget_until, samples_of_fit


def counted(n, batch_size, epochs, max_steps, accumulate, drop_last, updates=1):
    """A training loop that only counts."""
    samples = steps = 0
    for _ in range(epochs):
        sizes = [min(batch_size, n - start) for start in range(0, n, batch_size)]
        sizes = [size for size in sizes if size == batch_size or not drop_last]
        sizes = [size for size in sizes for _ in range(updates)]
        for i, size in enumerate(sizes):
            if steps == max_steps:
                return samples
            samples += size
            steps += (i + 1) % accumulate == 0 or i + 1 == len(sizes)
    return samples


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_equals_a_loop(accumulate: int, updates: int, drop_last: bool):
    for n, batch_size, epochs in itertools.product((1, 7, 30, 31), (1, 7, 10), (1, 3)):
        for max_steps in (-1, 0, 1, 4, 9, 1000):
            options = {"accumulate": accumulate, "drop_last": drop_last, "updates_per_batch": updates}
            given = samples_of_fit(n, batch_size, max_epochs=epochs, max_steps=max_steps, **options)
            assert given == counted(n, batch_size, epochs, max_steps, accumulate, drop_last, updates)


def test_limits():
    assert samples_of_fit(100, 30, max_epochs=2, limit_batches=2) == 120
    assert samples_of_fit(100, 30, max_epochs=1, limit_batches=0.5) == 60
    assert samples_of_fit(100, 30, max_epochs=-1, max_steps=-1) is None
    assert samples_of_fit(100, 30) is None


def test_shares():
    assert [budget_until(30.0, [1, 1, 1], t) for t in range(3)] == pytest.approx([10, 20, 30])
    assert budget_until(12.0, [10, 20, 90], 2) == 12.0
