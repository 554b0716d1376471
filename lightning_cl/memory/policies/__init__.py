"""Rules that decide which samples of a stream a memory holds, by name."""

from lightning_cl.memory.policies._policy import Offered, Plan, Policy
from lightning_cl.memory.policies.balanced import ClassBalanced, TaskBalanced
from lightning_cl.memory.policies.gdumb import GDumb
from lightning_cl.memory.policies.herding import Herding
from lightning_cl.memory.policies.loss_aware import LossAware
from lightning_cl.memory.policies.reservoir import Reservoir
from lightning_cl.memory.policies.ring import Ring
from lightning_cl.memory.policies.time_weighted import TimeWeighted

#: Every policy there is; a new one is added here.
POLICIES: dict[str, type[Policy]] = {
    "reservoir": Reservoir,
    "class_balanced": ClassBalanced,
    "task_balanced": TaskBalanced,
    "ring": Ring,
    "herding": Herding,
    "gdumb": GDumb,
    "loss_aware": LossAware,
    "time_weighted": TimeWeighted,
}

__all__ = ["POLICIES", "Offered", "Plan", "Policy"]
