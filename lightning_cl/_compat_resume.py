"""What Lightning loses when a fit is resumed from ``on_train_batch_end``; each function has a test."""

from typing import Any

from lightning.pytorch.loops.evaluation_loop import RestartStage as EvaluationStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as EpochStage


def saved_behind_last_batch(trainer: Any) -> bool:
    """True in ``on_train_start`` of a fit whose checkpoint was written in ``on_train_batch_end`` of an epoch's end."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    return bool(epoch.restarted_on_train_batch_end and fit.restarted_mid_epoch and epoch.batch_progress.is_last_batch)


def validate_first(trainer: Any) -> bool:
    """In ``on_train_start``: let a fit that was saved in ``on_train_batch_end`` do the validation that followed.

    Lightning leaves it out, and, behind an epoch's last batch, the end of the epoch too; both will run as they did.
    False if no validation followed, and nothing is changed.
    """
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if not epoch.restarted_on_train_batch_end:
        return False
    last = int(saved_behind_last_batch(trainer))
    _count_epochs(fit, -last)
    if not epoch._should_check_val_fx(fit._data_fetcher):
        _count_epochs(fit, last)
        return False
    epoch.batch_progress.increment_completed()
    # as if it had been saved inside the validation, which is then done from its start
    epoch._restart_stage = EpochStage.RESTARTED_ON_LAST
    epoch.val_loop._restart_stage = EvaluationStage.RESTARTED_MID_EVALUATION
    epoch.val_loop.restarting = False
    return True


def _count_epochs(fit_loop: Any, n: int) -> None:
    for tracker in (fit_loop.epoch_progress.total, fit_loop.epoch_progress.current):
        tracker.processed += n
        tracker.completed += n


def no_batch_follows(trainer: Any) -> bool:
    """True in ``on_train_batch_end`` of an epoch's last batch."""
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def logged_in_training(trainer: Any, name: str) -> Any:
    """In ``on_train_batch_end``: what Lightning accumulates this metric of the epoch's training in, or None."""
    for metric in reversed(trainer.fit_loop.epoch_loop._results.result_metrics):
        names = (metric.meta.name, metric.meta.forked_name(on_step=True), metric.meta.forked_name(on_step=False))
        if name in names and not metric.has_reset:
            return metric
    return None


def of_the_epoch(metric: Any, name: str) -> float:
    """Its value if no batch follows, as monitors will see it; every process must call this."""
    meta = metric.meta
    by_step = not meta.on_epoch or (meta.forked and name == meta.forked_name(on_step=True))
    if by_step:
        return float(metric._forward_cache)
    weight = getattr(metric, "cumulated_batch_size", None)
    if weight is not None:  # it is summed over processes in place
        metric.cumulated_batch_size = weight.clone()
    try:
        return float(type(metric).compute(metric))  # the instance's would be kept, and taken for the epoch's
    finally:
        if weight is not None:
            metric.cumulated_batch_size = weight


def so_far(metric: Any) -> list[float] | None:
    """What is accumulated in this process; None if it is not in plain numbers, or not complete before other hooks."""
    if not metric.is_tensor or metric.meta.fx == "on_train_batch_end":
        return None
    if not metric.meta.on_epoch:
        return []
    return [float(metric.value), float(getattr(metric, "cumulated_batch_size", 0))]


def put_before(metric: Any, earlier: list[float]) -> None:
    """Add what was accumulated before the first batch of this process; sums of two do not depend on their order."""
    if not earlier:
        return
    value, meta = metric.value.new_tensor(earlier[0]), metric.meta
    summed = meta.is_mean_reduction or meta.is_sum_reduction
    metric.value = metric.value + value if summed else meta.reduce_fx(metric.value, value)
    if meta.is_mean_reduction:
        metric.cumulated_batch_size = metric.cumulated_batch_size + int(earlier[1])
    metric._computed = None
