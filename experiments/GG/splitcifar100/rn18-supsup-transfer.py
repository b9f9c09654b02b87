"""Figure 3 (right), SupSup Transfer: scores start from the mean of earlier ones (GG).

As rn18-supsup.py, but the scores of a new task start from the running mean of the scores of all earlier tasks.
One run for each Erdős–Rényi multiplier; --sparsity 8 picks one of them.

Command:  python experiments/GG/splitcifar100/rn18-supsup-transfer.py --gpu-sets "0|1|2|3" --data DIR --seeds 5
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: above rn18-supsup.py; the paper plots this curve and prints no number. Measured: 0.7840 with multiplier 8
          after 20 tasks (seed 0, --epochs 10 --amp bf16 --channels-last).
Run time: 26 min 55 s with multiplier 8 for 20 tasks of 10 epochs with --amp bf16 --channels-last (one core of an AMD
          EPYC, beside other runs); not measured on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(
        __file__,
        config="configs/rn18-supsup-transfer.yaml",
        variants=[{"sparsity": multiplier} for multiplier in (1, 2, 4, 8, 16, 32)],
    )
