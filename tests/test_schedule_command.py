"""``lightning-cl schedule``: the YAML of a config's model."""

from pathlib import Path

import pytest

from lightning_cl.finetuning import phases_from_yaml
from tests.command_line import QUICK, Call, call

__all__ = ["call"]


def test_a_phase_for_each_group(call: Call):
    outcome = call("schedule", "model.backbone.hidden=[16,16,16]")
    assert (outcome.code, outcome.err) == (0, "")
    assert phases_from_yaml(outcome.out) == [
        {"thaw": "head"},
        {"thaw": "stage2", "epoch": 1},
        {"thaw": "stage1", "epoch": 2},
        {"thaw": "stem", "epoch": 3},
    ]
    assert "#   stem      1,040        2  backbone.layers.1\n" in outcome.out
    assert "#   head        170        2  head\n" in outcome.out  # rows of all ten classes


def test_a_torchvision_model_a_recipe_and_a_file(call: Call, tmp_path: Path):
    model = ["model=torchvision", "model.backbone.model=resnet18"]
    options = ["--recipe", "lp_ft", "--option", "fraction=0.25", "--option", "lr=1e-2"]
    outcome = call("schedule", *model, *options, "--out", "new/schedule.yaml")
    assert (outcome.code, outcome.out, outcome.err) == (0, "schedule: new/schedule.yaml\n", "")
    text = (tmp_path / "new" / "schedule.yaml").read_text()
    assert phases_from_yaml(text) == [{"thaw": "head"}, {"thaw": "all", "fraction": 0.25, "lr": 0.001}]
    assert "stage4  8,393,728       15  backbone.network.layer4\n" in text


def test_fewer_groups(call: Call):
    outcome = call("schedule", "model.backbone.hidden=[8,8,8,8,8,8]", "--max-groups", "4")
    assert len(phases_from_yaml(outcome.out)) == 4


def test_an_edited_file_is_another_run(call: Call, tmp_path: Path):
    command = ["method=freezing", "callbacks.freezing.phases=my.yaml", *QUICK]
    file = tmp_path / "my.yaml"
    file.write_text("phases:\n- thaw: head\n- {thaw: all, step: 2}\n")
    assert call(*command).code == 0
    assert call(*command).code == 0  # as it was: the result again
    file.write_text("phases:\n- thaw: head\n")
    error = call(*command).error
    assert "config differs" in error
    assert "phases" in error
    assert call(*command, "resume=never").code == 0


def test_help(call: Call):
    outcome = call("schedule", "--help")
    assert outcome.code == 0
    assert "--recipe NAME" in outcome.out
    assert "schedule    print a freezing schedule" in call("--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "lpft"], "recipe 'lpft'"),
        (["--option", "every"], "--option 'every'; expected KEY=VALUE"),
        (["--option", "every=x"], "every='x' of recipe 'gradual_unfreeze'"),
        (["--option", "k=2"], "recipe 'gradual_unfreeze' with k"),
        (["--max-groups", "2"], "max_groups=2"),
        (["--max-groups", "x"], "lightning-cl schedule as its --help says"),
        (["--nothing"], "--nothing"),
        (["model=resnet99"], "resnet99"),
        (["--out", "."], "--out '.'"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], message: str, call: Call):
    assert (
        message
        in call("schedule", "model.backbone.hidden=[4]" if "model=" not in arguments[0] else "seed=1", *arguments).error
    )
