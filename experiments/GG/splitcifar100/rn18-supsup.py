"""Figure 3 (right), SupSup: SplitCIFAR100, a top-k mask for each task (GG).

One run for each Erdős–Rényi multiplier 1, 2, 4, 8, 16, 32; a larger one keeps more weights. --sparsity 8 picks
one of them.

Command:  python experiments/GG/splitcifar100/rn18-supsup.py --gpu-sets "0|1|2|3" --data DIR --seeds 5
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: the authors' code reaches 0.740 and 0.688 on the first tasks of seed 0 after 10 epochs with
          multiplier 8, this code 0.672 and 0.720 (measured, --channels-last), and 0.702 to 0.706 on the
          first task with four other draws of the weights.
Run time: about 17 s of processor time an epoch of a task on one core (Xeon, AVX-512; 11 s with --channels-last,
          6 s with --amp bf16 too), so 23 hours for each run of 20 tasks; not measured on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(
        __file__,
        config="configs/rn18-supsup.yaml",
        variants=[{"sparsity": multiplier} for multiplier in (1, 2, 4, 8, 16, 32)],
    )
