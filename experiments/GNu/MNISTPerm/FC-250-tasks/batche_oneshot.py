"""Figure 6 (right): BatchE with one-shot inference on 250 permutations of MNIST, FC 1024-1024.

The first task trains all weights. Every other one trains two vectors a layer, whose outer product multiplies the
weights. The task is inferred as SupSup infers it, with the rank-one matrices in place of the masks.
--adaptor se_be_adapt (smallest entropy) or se_be_max_adapt (largest top probability) tries every task instead.

Command:  python experiments/GNu/MNISTPerm/FC-250-tasks/batche_oneshot.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: only plotted in the paper. Measured after 10 tasks (seed 0): 0.9284 with the task given, 0.1803 with it
          inferred, which is right for 0.1899 of the batches; with --output-size 500 0.9267, 0.4321 and 0.4595. With
          --model LeNet 0.8879, 0.2522 and 0.2810, and with 500 outputs 0.8845, 0.1941 and 0.2114; with LeNet and
          --adaptor se_be_adapt 0.6274 is right, the task inferred for 0.7025.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(__file__, config="configs/batche_oneshot.yaml")
