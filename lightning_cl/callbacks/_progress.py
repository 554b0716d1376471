"""A progress bar that names task and method."""

from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar


class TaskProgressBar(TQDMProgressBar):
    """Lightning's tqdm bar, headed ``task 2/5 er``.

    Args:
        title: What stands before the epoch.
        refresh_rate: Batches between two redraws; a redraw costs as much as a small model's step.
    """

    def __init__(self, title: str, refresh_rate: int = 25) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=False)
        self.title = title

    def on_train_epoch_start(self, trainer: Any, *args: Any) -> None:
        """Name task, method and epoch."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(f"{self.title} epoch {trainer.current_epoch + 1}")

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Logged values without the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
