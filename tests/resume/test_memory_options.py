"""Every callback with a memory takes every option of a memory, killed and resumed too, or refuses it by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import AGEM, DER, EEIL, ERACE, GEM, LUCIR, BiC, GDumb, ICaRL, PODNet, Replay, UniformSampling
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from tests.resume.helpers import contents, differences, learn, module, stream, trainer

METHODS: dict[str, Any] = {
    "Replay": Replay,
    "DER": lambda size, **options: DER(size, beta=0.5, **options),
    "ERACE": ERACE,
    "AGEM": AGEM,
    "GEM": GEM,
    "EEIL": EEIL,
    "LUCIR": LUCIR,
    "PODNet": PODNet,
    "ICaRL": ICaRL,
    "BiC": lambda size, **options: BiC(size, validation_fraction=0.4, **options),
    "GDumb": GDumb,
    "UniformSampling": UniformSampling,
}


def numbers(batch: Any) -> torch.Tensor:
    """Of the samples, which have no names."""
    x = batch["0"] if isinstance(batch, dict) else batch[0]
    return (100 * x).flatten(1).long().sum(1)


def features(module: Any, batch: Any) -> torch.Tensor:
    return batch[0].flatten(1)


def losses(module: Any, batch: Any) -> torch.Tensor:
    return batch[1].float() + 1


#: option -> what it needs beside it, without the folder
OPTIONS: dict[str, dict[str, Any]] = {
    "policy_options": {"policy": "time_weighted", "policy_options": {"time_constant": 30}},
    "memory_bytes": {"memory_size": None, "memory_bytes": "1200"},
    "max_age": {"max_age": 9},
    "id_fn": {"id_fn": numbers},
    "storage": {"storage": "disk", "path": "memory"},
    "path": {"storage": "disk", "path": "memory"},
    "keep_states": {"storage": "disk", "path": "memory", "keep_states": 3},
    "stores": {"stores": "references", "fill": "consolidate"},
    "deletion_log": {"deletion_log": "deleted.txt"},
    "features_fn": {"policy": "herding", "features_fn": features, "fill": "consolidate"},
    "losses_fn": {"policy": "loss_aware", "losses_fn": losses},
}
#: of the default suite; the other pairs are `long`
IN_SHORT = ("storage", "id_fn", "stores", "deletion_log")
FIXED = ("policy_options", "features_fn", "losses_fn")
REFUSED: dict[str, tuple[str, ...]] = {
    "GEM": FIXED,
    "ICaRL": tuple(OPTIONS),
    "BiC": (*FIXED, "memory_bytes", "max_age", "stores", "id_fn", "deletion_log"),
    "GDumb": (*FIXED, "memory_bytes", "stores"),
    "UniformSampling": (*FIXED, "memory_bytes", "stores"),
}
PAIRS = [(method, option) for method in METHODS for option in OPTIONS]


def make(method: str, option: str, folder: Path) -> Any:
    options = {
        name: folder / value if name in ("path", "deletion_log") else value for name, value in OPTIONS[option].items()
    }
    if method not in ("Replay", "DER", "ERACE", "AGEM", "GEM"):
        options.pop("fill", None)
    return METHODS[method](options.pop("memory_size", 12), **options)


def run(method: str, option: str, folder: Path, kill_at: tuple[str, int] | None = None) -> Any:
    callback = make(method, option, folder)
    learner = module(head_layer="cosine") if method in ("LUCIR", "PODNet") else module()
    _, results = learn(
        folder, "naive", callbacks=[callback], kill_at=kill_at, module=learner, stream=stream(per_class=6),
        trainer=trainer(max_epochs=1), reinitialize=method == "GDumb",
    )  # fmt: skip
    return callback, results


@pytest.mark.slow
@pytest.mark.parametrize(("method", "option"), [
    pytest.param(*pair, marks=() if pair[1] in IN_SHORT else pytest.mark.long)
    for pair in PAIRS if pair[1] not in REFUSED.get(pair[0], ())
])  # fmt: skip
def test_it_works_and_goes_on_after_a_kill(method: str, option: str, tmp_path: Path):
    callback, results = run(method, option, tmp_path / "whole")
    assert results["status"] == "finished"
    assert len(callback.memory) > 0
    assert works(callback.memory, option)
    # in the second task
    assert run(method, option, tmp_path / "killed", ("batch end", 2))[1] is None
    assert run(method, option, tmp_path / "killed")[1]["status"] == "finished"
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []


def works(memory: Memory, option: str) -> bool:
    """Whether the memory was given it."""
    return {
        "policy_options": lambda: memory.policy_name == "time_weighted",
        "memory_bytes": lambda: memory.memory_bytes == 1200 and memory.size > 0,
        "max_age": lambda: memory.max_age == 9 and len(memory) <= 9,
        "id_fn": lambda: memory.ids is not None and memory.delete(memory.ids[:1]) > 0,
        "stores": lambda: memory.stores_references,
        "deletion_log": lambda: memory.deleted.log is not None and memory.deleted.log.name == "deleted.txt",
        "features_fn": lambda: memory.policy_name == "herding",
        "losses_fn": lambda: memory.policy_name == "loss_aware",
    }.get(option, lambda: memory._table.folder is not None)()


@pytest.mark.parametrize(("method", "option"), [(m, o) for m, options in REFUSED.items() for o in options])
def test_what_cannot_work_is_refused_by_name(method: str, option: str, tmp_path: Path):
    options = {option: OPTIONS[option][option]}
    size = None if option == "memory_bytes" and method == "UniformSampling" else 12
    with pytest.raises(InputError, match=rf"^{option}=.* with {method}.*; expected .* without {option}\. HINT: ."):
        METHODS[method](size, **options)


def test_every_option_is_in_the_list():
    assert set(OPTIONS) == set(MemoryOptions.__annotations__) | {"policy_options"}


def test_what_is_not_given_is_not_refused():
    for method in REFUSED:
        options = {"storage": "ram", "stores": "samples", "path": None, "id_fn": None, "max_age": None}
        assert METHODS[method](12, **options, features_fn=None).memory._table.folder is None


def test_both_memories_of_bic_are_the_runs_that_starts_anew(tmp_path: Path):
    for _ in range(2):
        bic = BiC(40, storage="disk", path=tmp_path / "memory")
        bic.belongs_to(tmp_path)
        for memory in (bic.memory, bic.validation):
            memory.add((torch.zeros(2, 3), torch.arange(2)), torch.arange(2))
    other = BiC(40, storage="disk", path=tmp_path / "memory")
    for memory in (other.memory, other.validation):
        with pytest.raises(InputError, match="samples of another memory"):
            memory.add((torch.zeros(2, 3), torch.arange(2)), torch.arange(2))


def test_uniform_sampling_of_everything_has_no_memory():
    with pytest.raises(InputError, match=r"id_fn=a function with UniformSampling\(\) of all.*HINT: set memory_size"):
        UniformSampling(id_fn=numbers)
    with pytest.raises(InputError, match=r"storage='disk' with UniformSampling\(\) of all.*HINT: set memory_size"):
        UniformSampling(storage="disk", path="memory")


def test_logits_stand_beside_references(tmp_path: Path):
    der, _ = run("DER", "stores", tmp_path)
    assert der.memory.extras(slice(0, 2))["logits"].shape[0] == 2
    with pytest.raises(InputError, match=r"fill='step' with stores='references'; .*HINT: set fill='consolidate'"):
        DER(12, stores="references")


def test_gem_does_not_draw_what_was_deleted():
    gem = GEM(4, id_fn=numbers)
    x, y = torch.arange(4.0)[:, None], torch.zeros(4, dtype=torch.long)
    gem.memory.add((x, y), torch.zeros(4, dtype=torch.long), ids=torch.arange(4))
    gem.n_tasks = 1
    assert [len(slots) for slots in gem._slots()] == [4]
    gem.memory.delete([1, 2])
    assert [slots.tolist() for slots in gem._slots()] == [[0, 1]]


def test_what_icarl_has_deleted_is_not_taken_again():
    icarl = ICaRL(4)
    batch = {"x": torch.arange(4.0)[:, None], "y": torch.zeros(4, dtype=torch.long), "id": torch.arange(4)}
    icarl._hold([(batch, batch["y"])])
    icarl.memory.delete([1, 2])
    icarl._hold([(batch, batch["y"])])
    assert icarl.memory.ids.tolist() == [0, 3]
