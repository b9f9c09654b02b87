"""Figure 4 (right): SupSup on 250 permutations of MNIST (GNu), FC 1024-1024.

The task of each test batch is inferred from one image by the gradient of G. Labels are unshared: a task
inferred wrong makes the whole batch wrong.

Command:  python experiments/GNu/MNISTPerm/FC-250-tasks/supsup_g.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets "cpu|cpu" --seeds 2 --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: 0.9491 of the test images right after 250 tasks, the task inferred (published in the text, which does not name
          the network). Measured: 0.9581 after 250 tasks, 0.9625 with the task given (seed 0, over the masks of
          supsup_h.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/supsup_g.yaml")
