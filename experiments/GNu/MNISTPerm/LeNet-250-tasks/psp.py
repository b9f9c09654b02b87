"""Figure 4 (left): PSP on 250 permutations of MNIST, LeNet 300-100.

One network for all tasks, trained by each of them in turn. A task rotates the input of every layer by random
orthogonal matrices of its own. The task is given.

Command:  python experiments/GNu/MNISTPerm/LeNet-250-tasks/psp.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: measured: 0.9460 after 10 tasks, 0.8363 after 50, 0.3663 after 250 (seed 0). The authors' code: 0.9627 over
          the first 3, each when just learned.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/psp.yaml")
