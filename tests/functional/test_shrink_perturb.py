"""The formula, in numbers."""

import torch

from lightning_cl.functional.shrink_perturb import shrink_and_perturb


def test_formula():
    old = {"a": torch.randn(3, 4), "b": torch.randn(2), "kept": torch.randn(2)}
    new = {"a": torch.randn(3, 4), "b": torch.randn(2)}
    changed = {name: value.clone() for name, value in old.items()}
    shrink_and_perturb(changed, new, 0.4, 0.1)
    for name in new:
        torch.testing.assert_close(changed[name].double(), 0.4 * old[name].double() + 0.1 * new[name].double())
    assert torch.equal(changed["kept"], old["kept"])


def test_one_and_zero_change_no_bit():
    old = {"a": torch.randn(100)}
    changed = {"a": old["a"].clone()}
    shrink_and_perturb(changed, {"a": torch.randn(100)}, 1.0, 0.0)
    assert torch.equal(changed["a"], old["a"])
