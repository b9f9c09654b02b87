"""Figure 4 (left): BatchE on 250 permutations of MNIST, LeNet 300-100.

The first task trains all weights. Every other one trains two vectors a layer, whose outer product multiplies the
weights. The task is given.

Command:  python experiments/GNu/MNISTPerm/LeNet-250-tasks/batche.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: measured: 0.8874 after 10 tasks, 0.8821 after 250 (seed 0). The authors' code: 0.9074 over the first 3, each
          when just learned.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/batche.yaml")
