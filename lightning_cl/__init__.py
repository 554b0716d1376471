"""Fine-tuning and continual learning for PyTorch Lightning.

Nothing heavy is imported until a name is used: ``import lightning_cl`` loads neither torch nor lightning.
"""

from lightning_cl._lazy import lazy

__version__ = "0.1.0"

_WHERE = {
    "EWC": "callbacks.ewc",
    "SI": "callbacks.si",
    "MAS": "callbacks.mas",
    "L2": "callbacks.l2",
    "L2SP": "callbacks.l2sp",
    "RWalk": "callbacks.rwalk",
    "KroneckerEWC": "callbacks.kfac_ewc",
    "Replay": "callbacks.replay",
    "DER": "callbacks.der",
    "ERACE": "callbacks.er_ace",
    "LwF": "callbacks.lwf",
    "ICaRL": "callbacks.icarl",
    "BiC": "callbacks.bic",
    "WA": "callbacks.wa",
    "LUCIR": "callbacks.lucir",
    "PODNet": "callbacks.podnet",
    "EEIL": "callbacks.eeil",
    "BalancedFineTuning": "callbacks.balanced_fine_tuning",
    "AGEM": "callbacks.a_gem",
    "GEM": "callbacks.gem",
    "DGR": "callbacks.dgr",
    "UniformSampling": "callbacks.uniform",
    "GDumb": "callbacks.gdumb",
    "WiSEFT": "callbacks.wise_ft",
    "EMA": "callbacks.ema",
    "ShrinkAndPerturb": "callbacks.shrink_and_perturb",
    "FreezingSchedule": "callbacks.freezing",
    "Adapters": "callbacks.adapters",
    "FineTuningModule": "finetuning.module",
    "depth_groups": "finetuning.depth_groups",
    "parameter_groups": "finetuning.parameter_groups",
    "warmup": "finetuning.warmup",
    "ReplayDataModule": "streams.replay_datamodule",
    "InputError": "errors",
    "learn_task": "sequence",
    "run_sequence": "sequence",
}
__all__ = sorted([*_WHERE, "__version__"])
__getattr__ = lazy(__name__, _WHERE)


def __dir__() -> list[str]:
    return __all__
