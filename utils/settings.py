"""What each setting of a run makes: its network, its outcome, or neither. Imports nothing, so that all may ask."""

# The tasks and the frozen network: what was learned means nothing under other values of these.
NETWORK = frozenset(
    {
        *("set", "tasks_by", "image_size", "mean", "std", "num_tasks", "classes_per_task", "seed"),
        *("model", "width_mult", "output_size", "individual_heads"),
        *("conv_type", "bn_type", "conv_init", "mode", "nonlinearity", "sparsity", "er_sparsity"),
    }
)
# Those that a set of the user's own finds out on its images, if nobody says them.
SETTLED = ("image_size", "mean", "std")
# How learned tasks are told apart: what was learned is the same under other values of these.
TOLD_APART = frozenset(
    {
        *("adaptor", "data_to_repeat", "real_neurons", "log_base", "adapt_lr", "adapt_steps", "adapt_tries", "gamma"),
        *("unshared_labels", "infer", "infer_layers"),
    }
)
# How tasks are learned and tested: other values give other numbers.
OUTCOME = TOLD_APART | frozenset(
    {
        *("task_eval", "tasks", "augment", "stream_tasks", "stream_jitter", "trainer", "epochs", "iter_lim"),
        *("batch_size", "test_batch_size", "keep_images"),
        *("optimizer", "lr", "train_weight_tasks", "train_weight_lr", "momentum", "weight_decay", "lr_policy"),
        *("warmup_length", "reinit_adapt", "reinit_most_recent_k", "reinit_from"),
        *("nns_every", "nns_epsilon", "nns_surprise"),
        *("amp", "channels_last", "compile", "tf32", "fast"),
        "score_when_learned",
    }
)
# Which of the tasks a run learns: runs that differ in these may be parts of one.
PART = frozenset({"task_eval", "tasks"})
# Where and how a run computes, when it looks and what it keeps: a run may go on under other values of these.
NEITHER = frozenset(
    {
        *("config", "log_dir", "name", "data", "workers", "resume", "import_file", "export"),
        *("weights", "predict", "out", "merge", "allow_missing"),
        *("multigpu", "threads", "eval_ckpts", "tasks_in_parallel", "checkpoint_minutes", "on_nan"),
    }
)
# What files tell of settings, for whoever goes on from them: neither where a run writes nor further files of settings.
TOLD = NETWORK | OUTCOME | {"data", "weights"}
# Those of ``NEITHER`` that the files of a run show all the same: when it was evaluated, the order of sums, and where
# weights came from, of which a run keeps what they are.
SHOWN = frozenset({"eval_ckpts", "tasks_in_parallel", "weights"})
