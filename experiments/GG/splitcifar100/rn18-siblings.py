"""SupSup beside its relatives on SplitCIFAR100 in a small form (GG): Piggyback, WSN, PackNet and ExSSNeT.

The first 5 tasks of 5 classes, 2 epochs each; PackNet and ExSSNeT find a mask in the first and train its weights in the
second.

Command:  python experiments/GG/splitcifar100/rn18-siblings.py --gpu-sets 0 --data DIR
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1
Expected: not in the paper. Measured after 5 tasks (seed 0), with the task given and inferred, a task inferred wrong
          counting as wrong: SupSup 0.6292 and 0.2760, Piggyback 0.5892 and 0.0760, WSN 0.6260 and
          0.0684, PackNet 0.6220 and 0.2028, ExSSNeT 0.6428 and 0.0264.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

VARIANTS = [
    {"conv-type": "MultitaskMaskConv", "conv-init": "signed_constant"},
    {"conv-type": "PiggybackConv"},
    {"conv-type": "WSNConv"},
    {"conv-type": "PackNetConv", "trainer": "halves", "sparsity": 0.25},
    {"conv-type": "ExSSNeTConv", "trainer": "halves"},
]

if __name__ == "__main__":
    launch(__file__, config="configs/rn18-siblings.yaml", variants=VARIANTS)
