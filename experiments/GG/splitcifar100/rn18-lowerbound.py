"""Figure 3 (right), Lower Bound: one trunk trained on all tasks, a head for each.

All tasks are scored at the end, when later tasks have changed the trunk: what forgetting leaves. The original
repository has no script for this line of the figure.

Command:  python experiments/GG/splitcifar100/rn18-lowerbound.py --gpu-sets "0|1|2|3" --data DIR --seeds 5
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: 0.245 on average over the 20 tasks (published). Measured: 0.4004 after 5 tasks (seed 0, --num-tasks 5 --epochs
          10 --amp bf16 --channels-last).
Run time: 6 min 21 s for 5 tasks of 10 epochs with --amp bf16 --channels-last (one core of a Xeon, beside other
          runs); not measured on a GPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/rn18-lowerbound.yaml")
