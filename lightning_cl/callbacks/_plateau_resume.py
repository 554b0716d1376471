"""The steps of ``ReduceLROnPlateau`` that Lightning leaves out when a fit is resumed."""

from typing import Any

from lightning_cl import _compat_loops as loops


class PlateauSteps:
    """Makes up for them, for schedulers that are stepped once an epoch.

    Lightning steps them behind the hook in which ``ModelCheckpoint`` saves, and not at all in the epoch of a resume,
    because what they monitor is not in a checkpoint: it is kept here.
    """

    def __init__(self) -> None:
        self._ending: dict[int, tuple[int, float]] = {}  # place of a scheduler: its steps so far, the metric
        self._configs: list[Any] = []
        self._loaded: list[list[float]] = []

    def epoch_ends(self, trainer: Any) -> None:
        """In ``on_train_epoch_end``: note what is coming, and have it done in the epoch of a resume too."""
        metrics, self._ending = trainer.callback_metrics, {}
        plateaus = [(i, c) for i, c in enumerate(trainer.lr_scheduler_configs) if c.reduce_on_plateau]
        known = [(i, c) for i, c in plateaus if c.monitor in metrics]
        if plateaus and len(known) == len(plateaus):
            loops.end_epoch_as_usual(trainer)
        for i, config in known:
            if config.interval == "epoch" and (trainer.current_epoch + 1) % config.frequency == 0:
                self._ending[i] = config.scheduler.last_epoch, float(metrics[config.monitor])
        self._configs = trainer.lr_scheduler_configs

    def epoch_starts(self) -> None:
        """All steps of the epoch before are done."""
        self._ending, self._configs = {}, []

    def state(self) -> list[list[float]]:
        """Place and metric of the schedulers that are waiting for their step at this moment."""
        return [[i, v] for i, (n, v) in self._ending.items() if self._configs[i].scheduler.last_epoch == n]

    def load(self, state: list[list[float]]) -> None:
        """Keep them for :meth:`make_up`."""
        self._loaded = [list(entry) for entry in state]

    def make_up(self, trainer: Any) -> None:
        """In ``on_train_start``: take the steps that the checkpoint was waiting for."""
        for place, value in self._loaded:
            trainer.lr_scheduler_configs[int(place)].scheduler.step(value)
        self._loaded = []
