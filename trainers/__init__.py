"""How a task is learned, and how it is tested."""

from utils.registry import Registry, of

# What --trainer can name.
TRAINERS = Registry(
    {
        "default": "trainers.default:DefaultTrainer",
        "nns": "trainers.nns:NNsTrainer",
        "reinit": "trainers.reinit:ReinitTrainer",
    }
)
# What --adaptor can name. None: the task is given, or its mask is not chosen but recovered.
ADAPTORS = Registry(
    {
        "gt": None,
        **of(
            "trainers.adaptors",
            *("se_oneshot_entropy_minimization", "se_oneshot_g_minimization"),
            *("se_binary_entropy_minimization", "se_binary_g_minimization"),
            *("se_gradient_minimization", "se_be_adapt", "se_be_max_adapt"),
        ),
        "hopfield_recovery": None,
    }
)
# Of these, what look at superfluous outputs (objective G), and what need only parameters for each task, not masks.
OF_SUPERFLUOUS = frozenset({"se_oneshot_g_minimization", "se_binary_g_minimization"})
OF_ANY_TASKS = frozenset({"se_be_adapt", "se_be_max_adapt"})
# What --reinit-adapt can name; see ReinitTrainer.
ADAPTATIONS = ("running_mean", "gradient", "binary", "random", "n-1", "starting_from_task_0", "n-1-imagenet")

# What else the package offers, of modules that load torch.
_OFFERED = Registry(
    {
        **of("trainers.adaptors", "InferenceOptions", "TaskScore", "check_adaptor", "evaluate"),
        **of("trainers.default", "DefaultTrainer"),
        **of("trainers.options", "TrainingOptions"),
        **of("trainers.nns", "NNsTrainer"),
        **of("trainers.reinit", "ReinitTrainer"),
        **of("trainers.several", "SeveralTrainer"),
    }
)


def __getattr__(name: str) -> object:
    if name in _OFFERED:
        return _OFFERED[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
