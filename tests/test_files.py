"""Checkpoints are the same size for the same content."""

from pathlib import Path
from typing import Any

import torch

from lightning_cl.files import load_state, save_state


def other_objects(value: Any) -> Any:
    """Equal, and none of its strings is an object that is used anywhere else."""
    if isinstance(value, dict):
        found = type(value)((other_objects(key), other_objects(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):
            found._metadata = other_objects(value._metadata)
        return found
    if isinstance(value, list | tuple):
        return type(value)(other_objects(item) for item in value)
    return value.encode().decode() if isinstance(value, str) else value


def test_equal_states_are_files_of_equal_size(tmp_path: Path):
    weights = torch.nn.Linear(2, 2).state_dict()
    state = {"head": {"weight": ["bias", "head"], "version": 1}, "weights": weights, "names": ("head", "weight")}
    save_state(tmp_path / "one.ckpt", state)
    save_state(tmp_path / "two.ckpt", other_objects(state))
    save_state(tmp_path / "three.ckpt", load_state(tmp_path / "one.ckpt"))
    with open(tmp_path / "four.ckpt", "wb") as file:
        torch.save(other_objects(state), file)
    one, two, three, plain = ((tmp_path / f"{n}.ckpt").stat().st_size for n in ("one", "two", "three", "four"))
    assert one == two == three
    assert plain > one  # what is tested
    read = load_state(tmp_path / "one.ckpt")
    assert read["weights"]._metadata == weights._metadata
    assert torch.equal(read["weights"]["weight"], weights["weight"])
    assert {**read, "weights": 0} == {**state, "weights": 0}
