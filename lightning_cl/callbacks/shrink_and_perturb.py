"""Warm starts that generalise like fresh ones."""

import copy
import logging
from typing import Any

from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.functional.shrink_perturb import shrink_and_perturb

log = logging.getLogger(__name__)


class ShrinkAndPerturb(MethodCallback):
    r"""Before each fit but the first, moves the weights towards new ones (Ash & Adams 2020, arXiv:1910.08475).

    .. math:: \theta \leftarrow a\,\theta + b\,\theta_{new}

    with :math:`\theta_{new}` freshly initialised: every submodule's ``reset_parameters`` (our head: new rows) on a
    copy, so that the noise has the scale of an initialisation, layer by layer. Made for training on all data so far,
    as ``method=shrink_and_perturb`` does. Buffers, and parameters without such an initialisation, stay as they are;
    frozen ones too.

    State: for how many tasks it has acted (so that a fit that is resumed is not changed again). The new weights are a
    function of (seed, task).

    Args:
        shrink: a, from 0 to 1.
        perturb: b, >= 0.
        seed: Seed of the new weights.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For other values.
    """

    needs_data = False

    def __init__(
        self,
        shrink: float = 0.4,
        perturb: float = 0.1,
        *,
        seed: int = 0,
        name: str = "shrink_and_perturb",
        **method: Any,
    ) -> None:
        super().__init__(name=name, **method)
        for key, value, good, expected in (
            ("shrink", shrink, _number(shrink) and 0 <= shrink <= 1, "a number from 0 to 1"),
            ("perturb", perturb, _number(perturb) and 0 <= perturb < float("inf"), "a finite number >= 0"),
        ):
            if not good:
                raise InputError(f"{key}={value!r}", expected, f"leave {key} out")
        self.shrink, self.perturb, self.seed = float(shrink), float(perturb), seed
        self.changed = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Change the weights, once for each task."""
        over = self._resumed_a_finished_fit
        super().on_fit_start(trainer, pl_module)
        if over or self.changed >= self.n_tasks:
            return
        self.changed = self.n_tasks
        fresh = fresh_parameters(pl_module, derive_seed(self.seed, self.name, self.n_tasks))
        own = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if left := sorted(own.keys() - fresh.keys()):
            log.warning("%s: %s have no initialisation of their own and stay as they are", self.state_key, left)
        shrink_and_perturb(own, {k: v for k, v in fresh.items() if k in own}, self.shrink, self.perturb)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {"changed": self.changed}

    def _load(self, state: dict[str, Any]) -> None:
        self.changed = state["changed"]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def fresh_parameters(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """New values of all parameters whose module can initialise itself; the module is not changed."""
    found: dict[str, Tensor] = {}
    with _compat.seeded(seed):
        for prefix, part in module.named_modules():
            names = ("redraw", "reset_parameters", "_reset_parameters")
            name = next((name for name in names if callable(getattr(part, name, None))), None)
            if name is None:
                continue
            # a copy of the part only: the whole module may hold a Trainer
            fresh = copy.deepcopy(part)
            getattr(fresh, name)(*([seed] if name == "redraw" else []))
            for own, parameter in fresh.named_parameters(recurse=False):
                found[f"{prefix}.{own}" if prefix else own] = parameter.detach()
    return found
