"""A freezing schedule as a text that people edit."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.finetuning.depth_groups import DepthGroup
from lightning_cl.finetuning.phases import Phase, check_phases

_HEAD = """# A freezing schedule: each phase thaws more of the model, and nothing else is trained.
#   thaw: a group below, all, all_but_head, re:PATTERN (in names of modules), type:Class, or a list of these
#   when: epoch: N, step: N, fraction: 0.5 (of the training) or plateau: {monitor: val_loss, mode: min, patience: 3}
#   lr: the learning rate of what is thawed; the optimizer's if there is none
"""


def schedule_yaml(phases: Sequence[Mapping[str, Any]], groups: Sequence[DepthGroup]) -> str:
    """The phases under the key ``phases``, with comments that say what each group of the model holds.

    Args:
        phases: See :func:`.check_phases`.
        groups: The model's, from :func:`~lightning_cl.depth_groups`.

    Returns:
        A text from which :func:`phases_from_yaml` gives the same phases.

    Raises:
        InputError: For what is no phase.
    """
    import yaml

    checked = check_phases(phases)
    rows = [(g.name, f"{g.size:,}", str(len(g.parameters)), _held(g)) for g in groups]
    widths = [max(len(row[i]) for row in [("group", "numbers", "tensors"), *rows]) for i in range(3)]
    titles = [("group", "numbers", "tensors", "modules and parameters, from input to output"), *rows]
    lines = [f"#   {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in titles]
    text = yaml.safe_dump({"phases": checked}, sort_keys=False, allow_unicode=True, width=1000)
    return _HEAD + "#\n" + "\n".join(lines) + "\n" + text


def _held(group: DepthGroup) -> str:
    beside = [p for p in group.parameters if not any(p.startswith(f"{m}.") for m in group.modules)]
    names = [*group.modules, *beside]
    return ", ".join(names if len(names) <= 8 else [*names[:4], "...", *names[-3:]])


def phases_from_yaml(text: str) -> list[Phase]:
    """The phases of such a text: a list, or a mapping with ``phases``.

    Raises:
        InputError: For a text that is neither.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    expected, hint = "YAML with a list under 'phases'", "lightning-cl schedule prints one"
    try:
        found: Any = OmegaConf.to_container(OmegaConf.create(text))  # unlike PyYAML it reads 1e-3 as a number
    except (yaml.YAMLError, OmegaConfBaseException, AssertionError) as error:
        raise InputError(f"a schedule that cannot be read ({' '.join(str(error).split())})", expected, hint) from error
    phases = found.get("phases") if isinstance(found, dict) else found
    if not isinstance(phases, list):
        raise InputError(f"a schedule with {sorted(found) if isinstance(found, dict) else found!r}", expected, hint)
    return check_phases(phases)
