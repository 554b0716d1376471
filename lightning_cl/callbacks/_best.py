"""The weights of a fit's best validation."""

from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_cl._compat_loops import validated_weights
from lightning_cl._compat_sharded import refuse_sharded
from lightning_cl.errors import InputError


class BestWeights(Callback):
    """Keeps the weights with the best value of a metric, in memory and in the fit's checkpoint.

    The first of equal values wins; a value that is not a number never does. State: the weights (as large as the model)
    and their value, on the CPU.

    Args:
        monitor: Name of the metric, as logged in ``validation_step``.
        mode: ``"max"`` or ``"min"``.

    Raises:
        InputError: If the validation did not log it.
    """

    def __init__(self, monitor: str, mode: str = "max") -> None:
        self.monitor, self.mode = monitor, mode
        self.value: float | None = None
        self.weights: dict[str, Tensor] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse sharded parameters."""
        refuse_sharded(trainer, "select='best'")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Compare, and take the weights if they are better."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            raise InputError(
                f"monitor={self.monitor!r}", f"one of {sorted(trainer.callback_metrics)}", "set monitor=val_loss"
            )
        value = float(trainer.callback_metrics[self.monitor])
        sign = 1 if self.mode == "max" else -1
        if value == value and (self.value is None or sign * value > sign * self.value):
            self.value = value
            validated = validated_weights(trainer, pl_module)
            self.weights = {key: tensor.detach().cpu().clone() for key, tensor in validated.items()}

    def load_into(self, module: Any) -> None:
        """Give the module its best weights; it keeps its own if there was no validation."""
        if self.weights:
            module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"version": 1, "value": self.value, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing."""
        self.value, self.weights = state_dict["value"], dict(state_dict["weights"])
