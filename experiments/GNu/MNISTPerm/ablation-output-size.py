"""Ablation of the output size: SupSup on 250 permutations of MNIST with 25, 100 and 200 outputs (GNu).

Superfluous outputs make the objectives tell more about the task. Twelve runs a seed: both networks, both objectives,
three output sizes.

Command:  python experiments/GNu/MNISTPerm/ablation-output-size.py --gpu-sets "0|1|2|3" --data DIR
Small:    ... --gpu-sets "cpu|cpu" --data DIR --num-tasks 10 --eval-ckpts 5,10
Expected: only plotted in the paper: the more outputs, the later inference begins to fail. Measured, LeNet after 50
          tasks (seed 0): with 25 outputs 0.9348 (H) and 0.9378 (G), with 100 outputs 0.9360 and 0.9358, with 200
          outputs 0.9363 and 0.9361; with the task given 0.9390, 0.9367 and 0.9363.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

VARIANTS = [
    {"model": model, "adaptor": f"se_oneshot_{objective}_minimization", "output-size": outputs}
    for model in ("LeNet", "FC1024")
    for objective in ("entropy", "g")
    for outputs in (25, 100, 200)
]

if __name__ == "__main__":
    launch(__file__, config="configs/ablation-output-size.yaml", variants=VARIANTS)
