"""From gradient norms of groups to what is trained, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_cl.finetuning._probe import Probe
from lightning_cl.finetuning.depth_groups import DepthGroup
from lightning_cl.finetuning.selectors import head_of
from lightning_cl.functional.gradient_norms import GroupNorms, relative_rates

ENOUGH = 0.9
Row = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why.

    Args:
        groups: Names of the groups to be trained, from input to output.
        rates: Of every group, the factor of its learning rate if all are trained (Auto-RGN).
        table: For each group ``group``, ``parameters``, ``gradient``, ``weight``, ``rgn``, ``share`` (of the sum of
            all RGN), ``rate``, ``train`` and ``why``.
        reason: The rule that was applied, in a sentence.
        probed: Whether the gradients were taken behind a fitted head.
    """

    groups: tuple[str, ...]
    rates: dict[str, float]
    table: tuple[Row, ...]
    reason: str
    probed: bool

    def multipliers(self, least: float = 1e-3) -> dict[str, float]:
        """Auto-RGN: factors for :func:`~lightning_cl.parameter_groups`, for a training of all groups.

        Args:
            least: Factor of a group without gradient.
        """
        return {name: max(rate, least) for name, rate in self.rates.items()}

    def explanation(self) -> str:
        """The table and the reason, as text."""
        head = ("group", "parameters", "RGN", "share", "train", "why")
        lines = [head, *(tuple(_cells(row)) for row in self.table)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        left = (0, 4, 5)
        text = []
        for line in lines:
            cells = zip(line, widths, strict=True)
            text.append("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip())
        return "\n".join([*text, self.reason])


def decide(
    groups: Sequence[DepthGroup], norms: dict[str, GroupNorms], threshold: float, probe: Probe | None, note: str
) -> Choice:
    """Apply the rules that :func:`~lightning_cl.finetuning.auto_freeze.choose_groups` states.

    Args:
        groups: Depth groups.
        norms: Of each.
        threshold: Part of the largest RGN.
        probe: The fitted head, if there is one.
        note: Why there is none.
    """
    head = head_of(groups)
    compared = {name: norm for name, norm in norms.items() if probe is None or name != head}
    rates = relative_rates(compared)
    explained = 0.0 if probe is None or probe.guess <= 0 else 1 - probe.loss / probe.guess
    solved = probe is not None and explained >= ENOUGH
    why = {
        name: f"{100 * rate:.0f} % of the largest RGN, {'at least' if rate >= threshold else 'below'} {threshold:.0%}"
        for name, rate in rates.items()
    }
    train = {name: rate >= threshold and not solved for name, rate in rates.items()}
    if solved:
        why = dict.fromkeys(rates, "the head alone explains the labels")
    if probe is not None:
        train[head], why[head], rates[head] = True, "always, behind a fitted head", 1.0
    if not any(train.values()):
        train[head], why[head] = True, "there is no gradient anywhere"
    total = sum(norm.relative for norm in norms.values())
    table = tuple(
        {
            "group": group.name,
            "parameters": group.size,
            "gradient": norms[group.name].gradient,
            "weight": norms[group.name].weight,
            "rgn": norms[group.name].relative,
            "share": norms[group.name].relative / total if total > 0 else 0.0,
            "rate": rates[group.name],
            "train": train[group.name],
            "why": why[group.name],
        }
        for group in groups
    )
    chosen = tuple(group.name for group in groups if train[group.name])
    if probe is None:
        reason = "Gradients with the head as it is" + (f", because {note}." if note else ".")
    else:
        so = "no other group is trained" if solved else f"less than {ENOUGH:.0%}, so features are trained too"
        part = f"{explained:.0%}" if explained > 0 else "none"
        reason = f"The fitted head explains {part} of the held out labels' entropy: {so}."
    return Choice(chosen, {group.name: rates[group.name] for group in groups}, table, reason, probe is not None)


def _cells(row: Row) -> Iterator[str]:
    yield from (row["group"], f"{row['parameters']:,}", f"{row['rgn']:.3g}", f"{row['share']:.0%}")
    yield from ("yes" if row["train"] else "no", row["why"])
