"""Figure 3 (right), BatchE (GG): rank-one matrices over weights trained on the first task.

The first task trains the weights with its vectors; later tasks learn their vectors alone. The original repository
has no script for this curve of the figure: the weight rate is that of rn18-separate-heads.py.

Command:  python experiments/GG/splitcifar100/rn18-batche.py --gpu-sets "0|1|2|3" --data DIR --seeds 5
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: the paper plots this curve and prints no number. Measured: 0.6992 after 5 tasks (seed 0, --num-tasks 5
          --epochs 10 --amp bf16 --channels-last).
Run time: 13 min 34 s for 5 tasks of 10 epochs with --amp bf16 --channels-last (one core of a Xeon, beside other
          runs); not measured on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/rn18-batche.yaml")
