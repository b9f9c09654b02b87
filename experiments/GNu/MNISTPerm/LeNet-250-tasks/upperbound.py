"""Figure 4 (left): Upper bound on 250 permutations of MNIST, LeNet 300-100.

All weights are trained on each task in turn, and each task is scored when it was just learned.

Command:  python experiments/GNu/MNISTPerm/LeNet-250-tasks/upperbound.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: measured: 0.9541 over 10 tasks, each when just learned (seed 0).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/upperbound.yaml")
