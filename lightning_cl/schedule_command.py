"""``lightning-cl schedule``"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl._parser import Parser
from lightning_cl.errors import InputError

DESCRIPTION = """Print a freezing schedule for a config's model as YAML: what its groups hold, from input to output, and
one phase for each group by default. Edit it, and give it to FreezingSchedule. No data are trained on."""
EPILOG = """  lightning-cl schedule model=torchvision model.backbone.model=resnet50 stream=image_folder data_dir=DIR
  lightning-cl schedule --recipe lp_ft --option epoch=2 --out my_schedule.yaml
recipes: linear_probe, lp_ft, gradual_unfreeze, last_k, surgical_first, full"""


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``schedule``.

    Returns:
        0.

    Raises:
        InputError: For bad input.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="lightning-cl schedule", description=DESCRIPTION, epilog=EPILOG, formatter_class=form)
    parser.add_argument("overrides", metavar="override", nargs="*", help="of the app: model=..., stream=..., data_dir=")
    parser.add_argument("--recipe", default="gradual_unfreeze", metavar="NAME", help="default: gradual_unfreeze")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the recipe; repeatable")
    parser.add_argument("--max-groups", type=int, default=8, metavar="N", help="groups at most (default: 8)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the schedule there, in place of printing it")
    given = parser.parse_intermixed_args(list(argv))
    text = _schedule(given.overrides, given.recipe, _options(given.option), given.max_groups)
    if given.out is None:
        print(text, end="")
        return 0
    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--out {str(given.out)!r} ({error.strerror})", "a file that can be written", "choose another"
        ) from error
    print(f"schedule: {given.out}")
    return 0


def _options(given: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    for text in given:
        if not text.partition("=")[0].isidentifier() or "=" not in text:
            raise InputError(f"--option {text!r}", "KEY=VALUE", "try --option every=2")
    plain: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(given)))
    return plain


def _schedule(overrides: list[str], recipe: str, options: dict[str, Any], max_groups: int) -> str:
    """The YAML for the model of a config, whose head has the classes of all tasks."""
    from hydra.utils import instantiate

    from lightning_cl import app
    from lightning_cl.finetuning.depth_groups import depth_groups
    from lightning_cl.finetuning.recipes import recipe_phases, schedule_yaml
    from lightning_cl.importance_compute import composed

    app.quiet()
    with composed(overrides) as cfg:
        stream = instantiate(cfg.stream, _convert_="all")
        module = app.build_module(cfg, stream)
    if hasattr(module, "learn_classes"):
        module.learn_classes(stream.class_names, [task.class_indices for task in stream])
    groups = depth_groups(module, max_groups=max_groups)
    return schedule_yaml(recipe_phases(recipe, groups, **options), groups)
