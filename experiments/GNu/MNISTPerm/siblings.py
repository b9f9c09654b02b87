"""SupSup beside its relatives on 10 permutations of MNIST (GNu), LeNet 300-100: Piggyback, WSN, PackNet and ExSSNeT.

Each task is a mask; SupSup's weights are frozen, those of the others trained by one task each. All have 1,000 batches a
task, of which PackNet and ExSSNeT find a mask in the first half and train its weights in the second.

Command:  python experiments/GNu/MNISTPerm/siblings.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets "cpu|cpu" --data DIR --num-tasks 3 --eval-ckpts 3
Expected: not in the paper. Measured after 10 tasks (seed 0), with the task given and inferred: SupSup 0.9369 and
          0.9369, Piggyback 0.9564 and 0.4432, WSN 0.9462 and 0.9462, PackNet 0.8797 and 0.4958,
          ExSSNeT 0.9367 and 0.9367.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

VARIANTS = [
    {"conv-type": "FastMultitaskMaskConv", "conv-init": "signed_constant"},
    {"conv-type": "PiggybackConv"},
    {"conv-type": "WSNConv"},
    {"conv-type": "PackNetConv", "trainer": "halves", "sparsity": 0.25},
    {"conv-type": "ExSSNeTConv", "trainer": "halves"},
]

if __name__ == "__main__":
    launch(__file__, config="configs/siblings.yaml", variants=VARIANTS)
