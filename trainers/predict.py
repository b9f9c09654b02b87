"""What a learned model answers to images of which nobody says the task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models import multitask
from trainers import ADAPTORS
from trainers.adaptors import InferenceOptions

TOGETHER = 128  # images that go through the network at once


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    tasks: Sequence[int],
    adaptor: str,
    options: InferenceOptions,
    labels: Mapping[int, Sequence[int]],
) -> list[tuple[int, int, float]]:
    """The task, the label and its probability for each of ``images`` (N, channels, height, width), prepared.

    The task of each image is inferred by itself; in a network with batch norm, whose statistics are those of a batch,
    all images are taken to be of one task, which is inferred from all of them.

    Args:
        tasks: the learned ones; of a single one nothing is inferred.
        adaptor: how, a key of ``ADAPTORS`` that infers.
        labels: of each task, the labels that it has; probabilities are over all outputs.
    """
    model.eval()
    found = torch.full((len(images),), tasks[0])
    if len(tasks) > 1:
        infer = ADAPTORS[adaptor].load()
        if multitask.has_batch_norm(model):
            found[:] = infer(model, tasks, images[None], replace(options, data_to_repeat=len(images))).item()
        else:
            parts = [infer(model, tasks, part[:, None], options) for part in images.split(TOGETHER)]
            found = torch.cat(parts).cpu()
    answers: list[tuple[int, int, float]] = [(0, 0, 0.0)] * len(images)
    for task in found.unique().tolist():
        multitask.select_task(model, task)
        places, own = (found == task).nonzero().squeeze(1), torch.tensor(labels[task])
        # What statistics of a batch tell apart must not depend on where it is cut.
        for some in places.split(len(places) if multitask.mixes_images(model) else TOGETHER):
            shares = model(images[some.to(images.device)]).softmax(dim=1).cpu()[:, own]
            for place, share, best in zip(some.tolist(), *(part.tolist() for part in shares.max(dim=1)), strict=True):
                answers[place] = (task, int(own[best]), share)
    return answers
