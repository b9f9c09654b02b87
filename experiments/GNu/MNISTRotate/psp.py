"""Figure 6: PSP on 36 rotations of MNIST, FC 1024-1024.

One network for all tasks, trained by each of them in turn. A task rotates the input of every layer by random
orthogonal matrices of its own. The task is given.

Command:  python experiments/GNu/MNISTRotate/psp.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 4 --epochs 1
Expected: measured: 0.9755 after 2 rotations, 0.9729 after 10, 0.9595 after 36 (seed 0).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/psp.yaml")
