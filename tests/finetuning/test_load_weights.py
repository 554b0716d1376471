"""Weights into a model: prefixes, names, classifiers of another size, files that nobody should open."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning import FineTuningModule, HFImageBackbone, TorchvisionBackbone, load_weights, replace_head
from lightning_cl.finetuning._weights_names import aligned, renamed
from tests.finetuning.examples import FEW_EPOCHS, module, stream, trainer


class Net(nn.Module):
    """A small network with normalisation and a classifier that tells."""

    def __init__(self, classes: Any = 3, seed: int = 0, **options: Any) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten())
            self.fc = nn.Linear(24, 1)
            nn.init.normal_(self.body[1].running_mean)  # type: ignore[arg-type]
        replace_head(self, classes, seed=seed, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


class Around(nn.Module):
    def __init__(self, net: nn.Module, name: str = "model") -> None:
        super().__init__()
        self.add_module(name, net)
        self.weighting = nn.Parameter(torch.zeros(2))


def equal(a: nn.Module, b: nn.Module) -> bool:
    own, other = a.state_dict(), b.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def prefixed(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".safetensors"])
def test_every_file(tmp_path: Path, suffix: str) -> None:
    old, new = Net(seed=1), Net()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(old.state_dict(), path)
    else:
        torch.save(old.state_dict(), path)
    report = load_weights(new, path)
    assert equal(old, new)
    assert report.exact
    assert sorted(report.loaded) == sorted(old.state_dict())
    assert str(report) == f"weights={str(path)!r}: 9 tensors loaded"


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module", "net"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "backbone.", "_orig_mod.", "model._orig_mod.", "a.b.c."])
def test_wrappers_and_prefixes(wrapper: str, prefix: str) -> None:
    old, new = Net(seed=1), Net()
    source = {wrapper: prefixed(old.state_dict(), prefix) | {"loss.weight": torch.zeros(9)}, "epoch": 3}
    report = load_weights(new, source)
    assert equal(old, new)
    assert (report.exact, report.skipped) == (True, ["loss.weight"])
    assert report.summary() == "the state dict: 9 tensors loaded, 1 of the file not used"


def test_the_model_may_have_the_prefix() -> None:
    old, new = Net(seed=1), Around(Around(Net()))
    with pytest.raises(InputError, match=r"without 2 entries of the model, such as 'weighting'"):
        load_weights(new, old.state_dict())
    report = load_weights(new, old.state_dict(), strict=False)
    assert equal(old, new.model.model)  # type: ignore[arg-type, union-attr]
    assert report.missing == ["weighting", "model.weighting"]
    other = Around(Net(), "net")
    load_weights(other, prefixed(old.state_dict(), "module."), strict=False)
    assert equal(old, other.net)  # type: ignore[arg-type]
    compiled: Any = torch.compile(Net())
    load_weights(compiled, old.state_dict())
    assert equal(old, compiled._orig_mod)
    load_weights(new := Net(), compiled.state_dict())
    assert equal(old, new)


def test_two_networks_in_one_file() -> None:
    one, two = Net(seed=1), Net(seed=2)
    both = prefixed(one.state_dict(), "student.") | prefixed(two.state_dict(), "teacher.")
    with pytest.raises(
        InputError, match=r"two sets of weights in one file, 'student.' and 'teacher.'; .* HINT: choose"
    ):
        load_weights(Net(), both)
    load_weights(new := Net(), both, prefix="teacher.")
    assert equal(new, two)
    with pytest.raises(InputError, match=r"prefix='ema.'; expected one that tensors begin with: student, teacher"):
        load_weights(Net(), both, prefix="ema.")
    pair = nn.ModuleDict({"student": Net(), "teacher": Net()})
    load_weights(pair, both)  # all of it fits
    assert equal(pair["student"], one)
    assert equal(pair["teacher"], two)


def test_names_are_aligned_however_deep() -> None:
    own = {f"layers.{i}.{j}.weight": torch.zeros(1) for i in range(30) for j in range(30)}
    saved = {f"x.y.{key}": torch.full((1,), float(n)) for n, key in enumerate(own)}
    found = aligned(saved, own)
    assert [found[key].item() for key in own] == list(range(900))
    half = {f"other.{i}.weight": torch.zeros(1) for i in range(30)}  # fits any of the model's blocks
    assert aligned(half | {f"more.{i}": torch.zeros(1) for i in range(90)}, own).keys().isdisjoint(own)


def test_rename() -> None:
    old, new = Net(seed=1), Net()
    state = {key.replace("body.", "_features.0.x").replace("fc", "_fc"): v for key, v in old.state_dict().items()}
    with pytest.raises(InputError, match=r"without \d entries .* \(the file has '_features.*HINT: .*rename="):
        load_weights(new, state)
    assert not equal(new, old)
    load_weights(new, state, rename={r"^_features\.0\.x": "body.", r"^_fc\b": "fc"})
    assert equal(new, old)

    def rename(name: str) -> str | None:
        return None if "_fc" in name else name.replace("_features.0.x", "body.")

    report = load_weights(new := Net(seed=5), state, rename=rename)
    assert equal(new.body, old.body)
    assert report.heads == {"fc": "not in the file, stays as it is"}
    with pytest.raises(InputError, match=r"rename '\(': 'a' .*; expected a regular expression"):
        load_weights(new, state, rename={"(": "a"})
    with pytest.raises(InputError, match=r"rename that gives 'a' twice"):
        renamed(state, {".+": "a"})


CAT, DOG, OWL, ANT = "cat", "dog", "owl", "ant"


def test_rows_by_class_name(caplog: pytest.LogCaptureFixture) -> None:
    old, new = Net([CAT, DOG, OWL], seed=1), Net([OWL, ANT, CAT, DOG])
    fresh = Net([OWL, ANT, CAT, DOG]).fc
    with caplog.at_level(logging.INFO, "lightning_cl"):
        report = load_weights(new, old.state_dict(), saved_classes=[CAT, DOG, OWL])
    for name in ("weight", "bias"):
        rows, saved = getattr(new.fc, name), getattr(old.fc, name)
        assert torch.equal(rows[[2, 3, 0]], saved)
        assert torch.equal(rows[1], getattr(fresh, name)[1])
    assert report.heads == {"fc": "3 of 4 rows from the file's 3, by class name"}
    assert (report.resized, report.exact, len(report.loaded)) == (["fc.weight", "fc.bias"], False, 7)
    assert caplog.records[-1].levelno == logging.WARNING
    assert "fc: 3 of 4 rows" in caplog.text
    assert "resized: fc.bias" in str(report)
    # the same size in another order is another classifier too
    load_weights(new := Net([OWL, CAT, DOG]), old.state_dict(), saved_classes=[CAT, DOG, OWL])
    assert torch.equal(new.fc.weight, old.fc.weight[[2, 0, 1]])
    load_weights(new, old.state_dict())  # without names on both sides, a classifier of this size is the same
    assert equal(new, old)


def test_what_to_do_with_another_classifier() -> None:
    old = Net([CAT, DOG, OWL], seed=1)

    def loaded(**options: Any) -> tuple[Any, Any]:
        new = Net([DOG, ANT], seed=2)
        return new, load_weights(new, old.state_dict(), **options)

    stays = Net([DOG, ANT], seed=2).fc
    for options in ({}, {"head": "new"}, {"saved_classes": ["x", "y", "z"]}):
        new, report = loaded(**options)
        assert torch.equal(new.fc.weight, stays.weight)
        assert equal(new.body, old.body)
        assert report.kept == ["fc.weight", "fc.bias"]
        assert "stays as it is" in report.heads["fc"]
    assert "no class names of the file's rows (saved_classes=[...]); head='keep_first'" in loaded()[1].heads["fc"]
    new, report = loaded(head="keep_first")
    assert torch.equal(new.fc.weight, old.fc.weight[:2])
    assert report.heads == {"fc": "2 of 2 rows from the file's 3, by number"}
    for names in ([CAT, DOG, OWL], None):
        new, report = loaded(head="as_saved", saved_classes=names)
        assert equal(new, old)
        assert new.fc.class_names == (names or ["0", "1", "2"])
        assert report.exact
    with pytest.raises(InputError, match=r"fc of 3 rows \['cat', 'dog', 'owl'\] in the file; expected 2 rows \['dog'"):
        loaded(head="error", saved_classes=[CAT, DOG, OWL])
    assert loaded(head="new", classes=["x", "y"])[1].kept
    same = Net([CAT, DOG, OWL])
    load_weights(same, old.state_dict(), head="new")
    assert torch.equal(same.fc.weight, Net([CAT, DOG, OWL]).fc.weight)
    load_weights(same, old.state_dict(), head="error")
    assert equal(same, old)


@pytest.mark.parametrize("head", ["mlp", "cosine"])
def test_other_heads(head: Any) -> None:
    old, new = Net([CAT, DOG], seed=1, head=head), Net([DOG, OWL], head=head)
    load_weights(new, old.state_dict(), saved_classes=[CAT, DOG])
    x = torch.randn(5, 1, 8)
    torch.testing.assert_close(new.eval()(x)[:, 0], old.eval()(x)[:, 1])
    load_weights(new, old.state_dict(), saved_classes=[CAT, DOG], head="as_saved")
    assert equal(new, old)
    report = load_weights(Net([CAT], head=head), Net([CAT, DOG], seed=1).state_dict(), saved_classes=[CAT, DOG])
    kept = {"mlp": "not in the file", "cosine": "1 of 1 rows"}[head]
    assert report.heads["fc"].startswith(kept)


def test_half_precision_files_and_counters() -> None:
    old, new = Net(seed=1), Net()
    state = {key: value.half() if value.is_floating_point() else value for key, value in old.state_dict().items()}
    del state["body.1.num_batches_tracked"]  # files of old versions lack it
    assert load_weights(new, state).exact
    assert new.fc.weight.dtype == torch.float32
    assert torch.allclose(new.fc.weight, old.fc.weight, atol=1e-3)


class Evil:
    ran: list[int] = []

    def __reduce__(self) -> Any:
        return exec, ("import tests.finetuning.test_load_weights as t; t.Evil.ran.append(1)",)


def test_files_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "crafted.pt"
    for write in (
        lambda: torch.save({"fc.weight": torch.zeros(1), "x": Evil()}, path),
        lambda: path.write_bytes(pickle.dumps({"state_dict": Evil()})),
        lambda: path.write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=4)),
    ):
        write()
        with pytest.raises(InputError, match=r"cannot be read .*; expected a state dict of tensors") as caught:
            load_weights(Net(), path)
        assert "\n" not in str(caught.value)
        assert not Evil.ran
    torch.save({"fc.weight": torch.zeros(1), "x": Evil()}, path)
    with pytest.raises(InputError, match=r"cannot be read without running code from it \(\w*\.?exec\).* HINT: write"):
        load_weights(Net(), path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pt", r"weights='nowhere.pt'; expected an existing file"),
        ({}, r"the state dict without tensors by name; expected a state dict"),
        ({"state_dict": {"a": 3}}, r"the state dict without tensors by name"),
        ({"other.weight": torch.zeros(2)}, r"the state dict without 6 entries of the model, such as 'body.0.weight'"),
    ],
)
def test_refusals(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_weights(Net(), source, strict=False)


def bad(**options: Any) -> Callable[[], Any]:
    return lambda: load_weights(Net(), Net(2).state_dict(), **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (bad(head="keep"), r"head='keep'; expected one of keep_matching, as_saved, keep_first, error, new"),
        (bad(saved_classes=["a"]), r"1 saved_classes; expected 2, one for each row of fc"),
        (bad(classes=["a"]), r"1 classes; expected 3, one for each row of fc"),
        (bad(name="body.0"), r"name='body.0', which is no classifier layer; expected 'fc' \(24 -> 3\)"),
    ],
)
def test_wrong_options(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_other_shapes_and_broken_files(tmp_path: Path) -> None:
    state = Net(seed=1).state_dict() | {"body.0.weight": torch.zeros(4, 2, 3)}
    with pytest.raises(InputError, match=r"without 1 entries of the model, such as 'body.0.weight' of its shape"):
        load_weights(Net(), state)
    report = load_weights(new := Net(), state, strict=False)
    assert report.mismatched == {"body.0.weight": ((4, 2, 3), (4, 1, 3))}
    assert "mismatched: body.0.weight (4, 2, 3) in the file, (4, 1, 3)" in str(report)
    assert torch.equal(new.body[0].weight, Net().body[0].weight)
    for name in ("broken.safetensors", "broken.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"cannot be read \(\w+\); expected a state dict of tensors"):
            load_weights(Net(), tmp_path / name)
    with pytest.raises(InputError, match=r"expected a folder with model.safetensors or pytorch_model.bin"):
        load_weights(Net(), tmp_path)


def test_a_network_without_a_classifier_takes_the_rest() -> None:
    import torchvision

    for name, widest in (("mobilenet_v3_small", "classifier.0.weight"), ("alexnet", "classifier.4.weight")):
        whole = torchvision.models.get_model(name)
        shape = (3, 64, 64)
        backbone = TorchvisionBackbone(shape, name)
        report = load_weights(backbone, whole.state_dict())
        assert torch.equal(backbone.network.state_dict()[widest], whole.state_dict()[widest])
        assert report.exact
        assert len(report.skipped) == 2


def test_a_checkpoint_of_ours_knows_its_classes(tmp_path: Path) -> None:
    from lightning_cl import run_sequence

    old = module()
    run_sequence(old, stream(), [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, run_dir=tmp_path)
    path = tmp_path / "model.ckpt"
    new = module(class_names=["c5", "new", "c0"])
    report = load_weights(new, path)
    assert torch.equal(new.head.weight[[0, 2]], old.head.weight[[5, 0]])
    assert report.heads == {"head": "2 of 3 rows from the file's 6, by class name"}
    growing = module()
    assert "has no rows yet, the file 6; head='as_saved'" in load_weights(growing, path).heads["head"]
    assert load_weights(growing, path, head="as_saved").exact
    assert growing.class_names == old.class_names
    assert equal(growing, old)


def test_it_is_what_initialize_takes(tmp_path: Path) -> None:
    """``model.initialize._target_=lightning_cl.finetuning.load_weights`` in a config."""
    import functools

    old = module(class_names=["c0", "c1"])
    run = trainer()
    run.strategy.connect(old)
    run.save_checkpoint(tmp_path / "old.ckpt")
    start = functools.partial(load_weights, source=tmp_path / "old.ckpt", head="as_saved")
    new = FineTuningModule(module().backbone, input_shape=(8,), initialize=start)
    assert equal(new, old)
    assert new.class_names == ["c0", "c1"]


def test_a_folder_of_save_pretrained(tmp_path: Path) -> None:
    from tests.finetuning.test_new_head import HF, hf_model

    old = replace_head(hf_model("vit"), ["cat", "dog", "owl"])
    old.save_pretrained(tmp_path)
    new = replace_head(hf_model("vit"), ["owl", "ant"])
    before = torch.get_rng_state()
    report = load_weights(new, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert HF["vit"][1] == ["classifier"]
    assert report.heads == {"classifier": "1 of 2 rows from the file's 3, by class name"}
    assert torch.equal(new.classifier.weight[0], old.classifier.weight[2])
    body = {key.removeprefix("vit."): value for key, value in old.state_dict().items() if "classifier" not in key}
    load_weights(new := hf_model("vit"), body)  # a base model without its classifier
    assert equal(new.vit, old.vit)
    file = pytest.importorskip("safetensors.torch").load_file(tmp_path / "model.safetensors")
    backbone = HFImageBackbone((3, 32, 32), "vit", weights=str(tmp_path / "model.safetensors"), config=HF["vit"][0])
    assert equal(backbone.network.vit, old.vit)
    load_weights(new := hf_model("vit"), {f"net.{key}": value for key, value in file.items()}, prefix="net.")
    assert equal(new.vit, old.vit)
    assert load_weights(old, tmp_path).exact
    new = hf_model("vit")
    with pytest.raises(InputError, match=r"without \d+ entries of the model"):
        load_weights(new, {"classifier.weight": torch.zeros(3, 16)})
