"""Figure 3 (left), SupSup: SplitImageNet, a top-k mask of ResNet-50 for each task (GG).

Each task is a run of its own, for each of the Erdős–Rényi multipliers 4, 8, 16 (0.87 %, 1.72 %, 3.39 % of the
weights), which the paper reports, and then 32, which the authors' script runs as well: 400 runs, which any number of
machines may share. --sparsity 4,8,16 picks the paper's, --num-tasks 2 makes the runs of the first two tasks.

Other than the authors' code, training multiplies in bf16, and its crops come from images that were decoded once, at a
smaller scale. What that costs in accuracy is not measured; --amp none --no-channels-last --no-keep-images does without.

Command:  python experiments/GG/splitimagenet/rn50-supsup.py --gpu-sets "0|1|2|3" --data DIR --seeds 1
Small:    ... --gpu-sets cpu --data DIR --num-tasks 2 --epochs 1 --iter-lim 2 --sparsity 8  (without the last two flags
          each of 8 runs decodes all of its task's images, some 13,000)
Expected: top-1 on average over 100 tasks 0.8637, 0.8868 and 0.8958 for multipliers 4, 8 and 16 (published).
Run time: not measured, neither on a GPU nor with all of ImageNet's images. With a single training image a class the
          small version takes 15 s a task and multiplier on one processor core.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # the project's root
from experiments.launcher import launch  # noqa: E402

if __name__ == "__main__":
    launch(
        __file__,
        config="configs/rn50-supsup.yaml",
        variants=[{"sparsity": multiplier} for multiplier in (4, 8, 16, 32)],
        tasks=100,
    )
