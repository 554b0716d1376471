"""Features: eval mode, order, and what is kept on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.selection import extract_features
from lightning_cl.streams import TensorData


class Backbone(nn.Module):
    """Counts its samples; fails when there are too many."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.count, self.limit = 0, limit

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        if self.count > self.limit:
            raise KeyboardInterrupt
        return self.layers(x)


def data(n: int = 1300, shift: float = 0.0) -> TensorData:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1)) + shift
    return TensorData(x, torch.arange(n) % 3)


def test_they_are_those_of_eval_mode_in_order():
    backbone = Backbone().train()
    found = extract_features(backbone, data())
    assert torch.equal(found.features, torch.cat([backbone.eval()(part).detach() for part in data().x.split(64)]))
    assert found.seconds > 0
    assert not found.features.requires_grad
    assert not found.features.is_inference()


def test_a_backbone_whose_features_are_used_at_length_one(tmp_path: Path):
    plain, backbone = extract_features(Backbone(), data(100), tmp_path).features, Backbone()
    backbone.unit_length = True
    found = extract_features(backbone, data(100), tmp_path).features
    assert torch.allclose(found, plain / plain.norm(dim=1, keepdim=True))


def test_the_mode_and_the_statistics_are_put_back():
    backbone = Backbone().train()
    backbone.layers[1].eval()
    extract_features(backbone, data(10))
    assert [backbone.training, backbone.layers[1].training, backbone.layers[2].training] == [True, False, True]
    assert int(backbone.layers[1].num_batches_tracked) == 0


def test_a_stopped_extraction_goes_on(tmp_path: Path):
    whole = extract_features(Backbone(), data()).features
    with pytest.raises(KeyboardInterrupt):
        extract_features(Backbone(limit=700), data(), tmp_path)
    (folder,) = tmp_path.iterdir()
    assert [file.name for file in folder.iterdir()] == ["part-00000000.pt"]
    again = Backbone()
    assert torch.equal(extract_features(again, data(), tmp_path).features, whole)
    assert again.count == 1300 - 512
    assert [file.name for file in folder.iterdir()] == ["features.pt"]
    done = Backbone()
    found = extract_features(done, data(), tmp_path)
    assert (done.count, torch.equal(found.features, whole)) == (0, True)


@pytest.mark.parametrize("other", ["weights", "inputs", "labels", "batch_size"])
def test_other_weights_and_other_data_have_features_of_their_own(tmp_path: Path, other: str):
    extract_features(Backbone(), data(60), tmp_path)
    backbone, samples, options = Backbone(), data(60), {}
    if other == "weights":
        backbone.layers[0].bias.data[0] += 1
    elif other == "inputs":
        samples = data(60, shift=1e-3)
    elif other == "labels":
        samples.targets[3] += 1
    else:
        options = {"batch_size": 7}
    extract_features(backbone, samples, tmp_path, **options)
    assert backbone.count == 60
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_file_is_made_anew(tmp_path: Path):
    whole = extract_features(Backbone(), data(60), tmp_path).features
    (file,) = tmp_path.glob("*/features.pt")
    file.write_bytes(b"half")
    again = Backbone()
    assert torch.equal(extract_features(again, data(60), tmp_path).features, whole)
    assert again.count == 60


def test_texts_are_mappings():
    pytest.importorskip("transformers")
    from lightning_cl.streams.text_data import TextData, Tokens

    class Length(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["attention_mask"].sum(1, keepdim=True).float()

    texts = TextData(Tokens([[5, 6], [7], [8, 9, 4]]), torch.tensor([0, 1, 0]))
    assert extract_features(Length(), texts, batch_size=2).features.tolist() == [[2.0], [1.0], [3.0]]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x[:, :, None], r"features \(5, 4, 1\); expected \(N, d\)"),
        (lambda x: {"x": x}, "features 'dict'; expected"),
        (lambda x: x / 0, "features that are not finite"),
    ],
)
def test_what_it_refuses(output: Any, message: str):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output(x)

    with pytest.raises(InputError, match=message):
        extract_features(Odd(), data(5))
