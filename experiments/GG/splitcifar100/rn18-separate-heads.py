"""Figure 3 (right), Separate Heads: a head for each task on a trunk trained on the first.

The first task trains trunk and head; later tasks learn a head alone.

Command:  python experiments/GG/splitcifar100/rn18-separate-heads.py --gpu-sets "0|1|2|3" --data DIR --seeds 5
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: the paper plots this curve and prints no number. Measured: 0.6111 after 20 tasks (seed 0, --epochs 10 --amp
          bf16 --channels-last), 0.6792 after 5 (--num-tasks 5 beside these).
Run time: 15 min 50 s for 20 tasks of 10 epochs with --amp bf16 --channels-last (one core of a Xeon, beside other
          runs); not measured on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/rn18-separate-heads.yaml")
