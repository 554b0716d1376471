"""What candidates mean."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lightning_cl.errors import InputError
from lightning_cl.importance_compute import composed
from lightning_cl.selection import parse_candidate


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("mlp", ["model=mlp"]),
        ("mlp:random", ["model=mlp"]),
        ("mlp model.backbone.hidden=[9] optimizer.lr=1", ["model=mlp", "model.backbone.hidden=[9]", "optimizer.lr=1"]),
        ("timm:vit_tiny_patch16_224.augreg_in21k", [
            "model=timm", "model.backbone.model=vit_tiny_patch16_224.augreg_in21k", "model.backbone.weights=DEFAULT"]),
        ("timm:a@/w/x.pt", ["model=timm", "model.backbone.model=a", "model.backbone.weights=/w/x.pt"]),
        ("timm:a@/w/x.pt:random", ["model=timm", "model.backbone.model=a", "++model.backbone.weights=null"]),
        ("hf:/some/folder", ["model=hf_image", "model.backbone.model=/some/folder", "model.backbone.weights=DEFAULT"]),
        ("torchvision:resnet18:random", [
            "model=torchvision", "model.backbone.model=resnet18", "++model.backbone.weights=null"]),
        ("torchvision:a:random model.backbone.weights=w.pt optimizer.lr=1", [
            "model=torchvision", "model.backbone.model=a", "optimizer.lr=1", "++model.backbone.weights=null"]),
        ("efficientnet_lite0 model.backbone.weights=w.pt", ["model=efficientnet_lite0", "model.backbone.weights=w.pt"]),
        ("efficientnet_lite0:random model.backbone.weights=w.pt", [
            "model=efficientnet_lite0", "++model.backbone.weights=null"]),
        ("hf_text:random model.backbone.name_or_path=w", [
            "model=hf_text", "model.backbone.name_or_path=w", "++model.backbone.weights=false"]),
        ("hf_text_small:random", ["model=hf_text_small"]),
        ("torchvision", ["model=torchvision"]),
        ("torchvision:random", ["model=torchvision"]),
    ],
)  # fmt: skip
def test_a_candidate_is_a_list_of_overrides(text: str, model: list[str]):
    candidate = parse_candidate(text)
    assert (candidate.name, list(candidate.model)) == (text, model)
    without = text in ("mlp", "torchvision") or text.startswith("mlp ") or ":random" in text
    assert candidate.own_weights != without


def test_a_baseline_has_the_inputs_of_its_pretrained_twin():
    assert parse_candidate("timm:a@/w:random").inputs == parse_candidate("timm:a@/w").model
    twin = "hf_text:random model.backbone.name_or_path=w"
    assert parse_candidate(twin).inputs == parse_candidate(twin.replace(":random", "")).model


def test_hf_is_a_text_encoder_for_texts():
    candidate = parse_candidate("hf:/some/folder:random", of_texts=True)
    named = ("model=hf_text", "model.backbone.name_or_path=/some/folder")
    assert candidate.model == (*named, "++model.backbone.weights=false")
    assert candidate.inputs == named


@pytest.mark.parametrize("path", ["/with a blank/w.pt", "/it's/w.pt", "/a,b=[c]{d}/w.pt", "/back\\slash/w.pt"])
def test_any_path_survives_hydras_grammar(path: str):
    import shlex

    override = parse_candidate(shlex.quote(f"timm:resnet18@{path}")).model[-1]
    assert OverridesParser.create().parse_override(override).value() == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "candidate ''; expected a name"),
        ("mlp hidden", "candidate 'mlp hidden'; expected a name, perhaps with overrides behind it"),
        ("keras:vgg", r"candidate 'keras:vgg'; expected torchvision:\.+, timm:\.+, hf:\.+, or a config"),
        ("timm:", "candidate 'timm:'; expected"),
        ("mlpp", "candidate 'mlpp'; expected .*HINT: did you mean mlp"),
        ("custom:random model.backbone._target_=torch.nn.Flatten", "expected a model with an argument weights"),
        ("vgg16", "HINT: torchvision:vgg16 or timm:vgg16 may be meant"),
    ],
)
def test_what_it_refuses(text: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_candidate(text)


@pytest.mark.parametrize("text", ["torchvision:resnet18", "hf:a/b", "hf:a/b:random", "timm:resnet18:random", "mlp"])
@pytest.mark.parametrize("of_texts", [False, True])
def test_every_candidates_overrides_compose(text: str, of_texts: bool):
    stream = ["stream=text_files"] if of_texts else []
    candidate = parse_candidate(text, of_texts=of_texts)
    for overrides in (candidate.model, candidate.inputs):
        with composed([*stream, *overrides]) as cfg:
            assert cfg.model.backbone
