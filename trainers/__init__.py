"""How a task is learned, and how it is tested."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from pkgutil import resolve_name

from utils.registry import Registry


class Needs(Enum):
    """What an adaptor needs of a network."""

    NOTHING = auto()  # the task is given
    SUPERPOSITION = auto()  # that tasks can be superposed
    PARAMETERS = auto()  # parameters for each task
    RECOVERY = auto()  # a memory that masks can be recovered from


@dataclass(frozen=True)
class Adaptor:
    """A way to know the task of test batches.

    Attributes:
        needs: what it needs of a network, which says whether the task is given, inferred or its mask recovered.
        function: what does it, an attribute of ``trainers.adaptors``; empty where the task is given.
        superfluous: whether it looks at outputs that stand for no class (objective G).
    """

    needs: Needs
    function: str = ""
    superfluous: bool = False

    @property
    def gives(self) -> bool:
        """Whether the task is given."""
        return self.needs is Needs.NOTHING

    @property
    def infers(self) -> bool:
        """Whether a task is inferred for each batch."""
        return self.needs in (Needs.SUPERPOSITION, Needs.PARAMETERS)

    @property
    def recovers(self) -> bool:
        """Whether a mask is recovered from the batches of a task."""
        return self.needs is Needs.RECOVERY

    def load(self) -> Callable:
        """The function itself; this loads torch."""
        return resolve_name(f"trainers.adaptors:{self.function}")


# What ``trainer`` can name.
TRAINERS = Registry(
    {
        "default": "trainers.default:DefaultTrainer",
        "halves": "trainers.halves:HalvesTrainer",
        "nns": "trainers.nns:NNsTrainer",
        "reinit": "trainers.reinit:ReinitTrainer",
    }
)
# What ``adaptor`` can name.
ADAPTORS = {
    "gt": Adaptor(Needs.NOTHING),
    "se_oneshot_entropy_minimization": Adaptor(Needs.SUPERPOSITION, "se_oneshot_entropy_minimization"),
    "se_oneshot_g_minimization": Adaptor(Needs.SUPERPOSITION, "se_oneshot_g_minimization", superfluous=True),
    "se_binary_entropy_minimization": Adaptor(Needs.SUPERPOSITION, "se_binary_entropy_minimization"),
    "se_binary_g_minimization": Adaptor(Needs.SUPERPOSITION, "se_binary_g_minimization", superfluous=True),
    "se_gradient_minimization": Adaptor(Needs.SUPERPOSITION, "se_gradient_minimization"),
    "se_be_adapt": Adaptor(Needs.PARAMETERS, "se_be_adapt"),
    "se_be_max_adapt": Adaptor(Needs.PARAMETERS, "se_be_max_adapt"),
    "hopfield_recovery": Adaptor(Needs.RECOVERY, "hopfield_recovery"),
}
FROM_RUN = "n-1-imagenet"
# What ``reinit_adapt`` can name; see ReinitTrainer.
ADAPTATIONS = ("running_mean", "gradient", "binary", "random", "n-1", "starting_from_task_0", FROM_RUN)
