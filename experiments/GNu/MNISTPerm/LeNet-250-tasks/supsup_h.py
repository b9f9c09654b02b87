"""Figure 4 (left): SupSup on 250 permutations of MNIST (GNu), LeNet 300-100.

The task of each test batch is inferred from one image by the gradient of H. Labels are unshared: a task
inferred wrong makes the whole batch wrong.

Command:  python experiments/GNu/MNISTPerm/LeNet-250-tasks/supsup_h.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets "cpu|cpu" --seeds 2 --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: 0.9491 of the test images right after 250 tasks, the task inferred (published in the text, which does not name
          the network). The authors' code: 0.9375 after 3 tasks. Measured: 0.9367 with the task given and 0.9356
          inferred after 250 tasks, 0.9368 both ways after 10 (means of seeds 0 to 2).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/supsup_h.yaml")
