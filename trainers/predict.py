"""What a learned model answers to images of which nobody says the task."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from data.folder import read_files
from data.loader import Preparation
from models import multitask
from trainers import ADAPTORS
from trainers.fit import check_adaptor
from trainers.inference import alpha_gradients, entropy, uniform
from trainers.options import DEFAULTS, InferenceOptions, Settings, pick
from trainers.setup import build, recall, set_up
from utils.errors import UserError
from utils.parallel import Group
from utils.settings import OUTCOME

TOGETHER = 128  # images that go through the network at once


def rows(s: Settings, told: Mapping[str, object], checkpoint: Path) -> tuple[list[dict[str, object]], list[str]]:
    """What a run answers for images: a row for each, and what is to be said of them.

    Args:
        s: the settings of the run, but that the adaptor, its options and ``task_eval`` say how to infer now;
            ``predict`` names the images.
        told: the settings that make the run, as far as it tells of them.
        checkpoint: the run's.

    Raises:
        UserError: the run, its data or the images are not there, or nothing is learned that can answer.
    """
    of_run = replace(s, resume=str(checkpoint))
    vars(of_run).update({name: told.get(name, DEFAULTS[name]) for name in OUTCOME})
    data, model, trainer = build(of_run, set_up(of_run)[0], Group())
    learned = recall(of_run, model, trainer, data.fingerprint(), [], may_grow=False).candidates
    tasks = _candidates(s, learned)
    if len(tasks) > 1:
        check_adaptor(s.adaptor, model, data.input_shape, trainer.rng)
    files, images, broken = read_files(s.predict or (), data.read, data.input_shape)
    prepared = Preparation(data.val_loader.prepare.mean, data.val_loader.prepare.std, None, data.device)
    names = {task: data.labels_of(task) for task in tasks} if trainer.tasks_known else _of_masks(data, tasks)
    labels = {task: list(of_task) for task, of_task in names.items()}
    answers = predict(model, prepared(images.to(data.device)), tasks, s.adaptor, pick(InferenceOptions, s), labels)
    called = data.task_name if trainer.tasks_known else str
    notes = [f"cannot be read, so left out: {', '.join(broken)}"] if broken else []
    if len(tasks) > 1 and len(files) > 1 and multitask.has_batch_norm(model):
        notes.append(f"with batch norm all {len(files)} images are taken for one batch of one task; see docs/own.md")
    found: list[dict[str, object]] = [
        {"file": file, "task": called(task), "label": names[task][label], "probability": f"{share:.6f}"}
        for file, (task, label, share) in zip(files, answers, strict=True)
    ]
    return found, notes


def _of_masks(data, masks: Sequence[int]) -> dict[int, dict[int, str]]:
    """The labels of masks of which nobody knows the task: with names if all tasks have the same ones, else numbers."""
    of_tasks = [data.labels_of(task) for task in range(data.num_tasks)]
    if any(labels != of_tasks[0] for labels in of_tasks):
        every = sorted({label for labels in of_tasks for label in labels})
        of_tasks[0] = {label: str(label) for label in every}
    return dict.fromkeys(masks, of_tasks[0])


def _candidates(s: Settings, learned: Sequence[int]) -> Sequence[int]:
    """The tasks that an image may be of: the learned ones, or the one that is given.

    Raises:
        UserError: there is none, or nothing infers which.
    """
    if s.task_eval is not None and s.task_eval not in learned:
        there = ", ".join(map(str, learned)) or "none"
        raise UserError(f"`task_eval` {s.task_eval}: is not learned; there are {there}")
    if not learned:
        raise UserError(f"`resume` {s.resume}: nothing is learned yet")
    tasks = learned if s.task_eval is None else [s.task_eval]
    if len(tasks) > 1 and not ADAPTORS[s.adaptor].infers:
        raise UserError(
            f"`adaptor` {s.adaptor}: infers no task; say se_oneshot_entropy_minimization, or the task by `task_eval`"
        )
    return tasks


def _check_told_apart(model: nn.Module, images: Tensor, tasks: Sequence[int]) -> None:
    """See that images of one task say something of it where batch norms go by the statistics of these alone.

    Raises:
        UserError: they do not, as one image whose channels have one value each.
    """
    if len(images) == 1:
        (gradients,) = alpha_gradients(model, tasks, uniform(len(tasks), images.device), images[None], entropy)
        if (gradients == gradients[0]).all():
            raise UserError(
                "`predict`: with batch norm one image of this size is like any other, so no task can be told; "
                "give several images of one task, or the task by `task_eval`"
            )


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
            _check_told_apart(model, images, tasks)
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
