"""Figure 6: BatchE on 36 rotations of MNIST, FC 1024-1024.

The first task trains all weights. Every other one trains two vectors a layer, whose outer product multiplies the
weights. The task is given.

Command:  python experiments/GNu/MNISTRotate/batche.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 4 --epochs 1
Expected: measured: 0.9464 after 2 rotations, 0.9272 after 10, 0.9234 after 36 (seed 0).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/batche.yaml")
