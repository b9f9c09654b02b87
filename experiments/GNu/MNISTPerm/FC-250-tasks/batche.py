"""Figure 4 (right): BatchE on 250 permutations of MNIST, FC 1024-1024.

The first task trains all weights. Every other one trains two vectors a layer, whose outer product multiplies the
weights. The task is given.

Command:  python experiments/GNu/MNISTPerm/FC-250-tasks/batche.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: only plotted in the paper. Measured: 0.9284 after 10 tasks (seed 0).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/batche.yaml")
