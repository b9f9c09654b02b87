"""Networks from outside the project, by the name that a flag gives them: torchvision's, and those of a user's file."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import random
import stat
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from models.builder import Builder
from models.convert import MASKED, NORMS, Kept, copied
from models.multitask import Rng, begin_task

CHANGED = 1e-3  # of the largest output: more than rounding, and less than statistics that have moved
OUTPUTS = ("outputs", "num_classes", "output_size")  # what a class may call the number of its outputs


def torchvision(name: str, builder: Builder, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """The network of that name in ``torchvision.models``, with masks.

    Raises:
        ValueError: there is none for images, or it takes no images of that shape.
    """
    return builder.converted(torchvision_network(name, output_size, builder.seed), input_shape, output_size)


def from_file(path: str, name: str, builder: Builder, input_shape: tuple[int, int, int], output_size: int) -> nn.Module:
    """The network that the class ``name`` in the file ``path + ".py"`` makes, with masks.

    The class is called with the number of outputs and with ``input_shape``, as far as it has parameters of these names;
    a function that gives a network will do as well. The file is run, as ``import`` does.

    Raises:
        ValueError: the file or the class is missing, fails, or gives no network for such images.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(builder.seed)
        module = _module(Path(f"{path}.py").expanduser())
        make = getattr(module, name, None)
        if not callable(make):
            there = [
                key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)
            ]
            own = [key for key in there if vars(module)[key].__module__ == module.__name__]
            raise ValueError(f"there is no {name} in the file" + (f"; it has {', '.join(own)}" if own else ""))
        known = {**dict.fromkeys(OUTPUTS, output_size), "input_shape": tuple(input_shape)}
        try:
            parameters = inspect.signature(make).parameters
            model = make(**{key: value for key, value in known.items() if key in parameters})
        except Exception as error:  # whatever a user's own code raises
            raise ValueError(f"{name} cannot be made: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module")
    return builder.converted(model, input_shape, output_size)


def torchvision_network(name: str, outputs: int, seed: int) -> nn.Module:
    """A network of ``torchvision.models`` by its name, with random weights drawn from ``seed``.

    Raises:
        ValueError: torchvision has none of that name that classifies images.
    """
    from torchvision import models  # takes a second to import

    names = models.list_models(module=models)
    if name not in names:
        like = [other for other in names if other.startswith(name[:5].lower())] or names
        raise ValueError(f"torchvision has no such network; it has {', '.join(like[:8])} ...")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how weights are drawn there, which are drawn again
        torch.manual_seed(seed)
        network: nn.Module = models.get_model(name, weights=None, num_classes=outputs)
        return network


def check_answers(model: nn.Module, input_shape: tuple[int, int, int], output_size: int) -> None:
    """See that a network answers images as one of the project does, in training and in evaluation.

    In training with gradients, as masks over its layers need them, and with nothing changed by it that its answers
    depend on but batch norms. Layers that take their shape from the first batch get it.

    Raises:
        ValueError: it does not.
    """
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with draws_kept():
        _try(model, images, output_size, training=False)
        network = copied(model)  # of which training changes the statistics of batch norms
        norms = {norm: copy.deepcopy(norm.state_dict()) for norm in network.modules() if isinstance(norm, NORMS)}
        before, again = (_try(network, images, output_size, training=False) for _ in range(2))
        _try(_trainable(network), images, output_size, training=True)
        for norm, state in norms.items():
            norm.load_state_dict(state)
        after = _try(network, images, output_size, training=False)
    if torch.equal(before, again) and (after - before).abs().max() > CHANGED * before.abs().max():
        raise ValueError(
            "keeps something of its own that changes in training, as running statistics, and with it the answers of "
            "learned tasks; keep it fixed"
        )


@contextmanager
def draws_kept(gpus: Sequence[torch.device] = ()) -> Iterator[None]:
    """Leave the generators from which a user's network may draw, torch's on ``gpus`` too, as they are."""
    of_python, of_numpy = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(of_python)
        numpy.random.set_state(of_numpy)


def _try(network: nn.Module, images: Tensor, output_size: int, training: bool) -> Tensor:
    """What a network answers two images, whatever was drawn before; in training with gradients.

    Raises:
        ValueError: it answers otherwise than it should, or changes what it keeps, and with it its answers.
    """
    how = "in training" if training else "in evaluation"
    network.train(training)  # which a user's own may answer with nothing
    kept = Kept(network)
    for seed in (torch.manual_seed, random.seed, numpy.random.seed):
        seed(0)
    try:
        with torch.set_grad_enabled(training):
            answer = _answer(network, images)
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(f"takes no images {tuple(images.shape[1:])} {how}: {told(error)}") from error
    said = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    if said != (2, output_size):
        raise ValueError(f"answers two images with {said} {how}, should be (2, {output_size})")
    if training:
        _check_gradients(answer, "in training, so no mask can be learned")
    network.eval()
    kept.check(partial(_answer, network, images))
    return answer


def _answer(network: nn.Module, images: Tensor) -> Tensor:
    answer: Tensor = network(images.clone())  # which it may change
    return answer


def _trainable(network: nn.Module) -> nn.Module:
    """A network, changed in place, of which gradients reach the layers that get masks, and nothing else."""
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, (*MASKED, nn.MultiheadAttention)):
            for parameter in module.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
    return network


def check_inference(model: nn.Module, images: Tensor, rng: Rng) -> None:
    """See that a network with masks gives gradients in evaluation too, by which tasks are inferred.

    Whatever was learned, for a task is begun, which is left so.

    Args:
        images: some (N, channels, height, width).
        rng: a key to a generator, for the scores of the task.

    Raises:
        ValueError: it does not.
    """
    begin_task(model, 0, rng)
    model.eval()
    try:
        with torch.enable_grad():
            answer = model(images)
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(f"cannot answer in evaluation with gradients: {told(error)}") from error
    _check_gradients(answer, "in evaluation, so no task can be inferred")


def _check_gradients(answer: Tensor, how: str) -> None:
    """See that an answer has gradients.

    Raises:
        ValueError: it has none, or they fail; it ends with ``how`` it was given and what cannot be.
    """
    if not answer.requires_grad:
        raise ValueError(f"answers without gradients, as under torch.no_grad(), {how}")
    try:
        answer.sum().backward()
    except Exception as error:  # whatever a user's own code raises
        raise ValueError(f"fails in its gradients {how}: {told(error)}") from error


def load_weights(model: nn.Module, path: str) -> None:
    """Give a network the weights in a file that ``torch.save(model.state_dict(), path)`` or safetensors wrote.

    Nothing in the file is run. One Linear or Conv layer, the last of a network that was trained for other classes, may
    have another number of outputs there: it keeps the weights that it has.

    Raises:
        ValueError: the file cannot be read, or is of another network.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for without end
            raise OSError("is no file")
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"the weights {path} cannot be read: {told(error)}") from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"the weights {path} are no state_dict: names and tensors")
    own = model.state_dict()
    if state.keys() != own.keys():  # as of DataParallel, which holds the network as its ``module``
        state = {str(name).removeprefix("module."): value for name, value in state.items()}
    if other := sorted(state.keys() ^ own.keys()):
        where = "has no" if other[0] in own else "has a"
        raise ValueError(f"the weights {path} are of another network: it {where} {other[0]}")
    differing = [name for name, value in state.items() if value.shape != own[name].shape]
    inputs = [name for name in differing if state[name].shape[1:] != own[name].shape[1:]]
    layers = {name.rpartition(".")[0] for name in differing}
    if inputs or len(layers) > 1 or not all(isinstance(model.get_submodule(layer), MASKED) for layer in layers):
        name = (inputs or differing)[0]
        raise ValueError(
            f"the weights {path} are of another network: {name} is {tuple(state[name].shape)} there, "
            f"{tuple(own[name].shape)} here"
        )
    model.load_state_dict(state | {name: own[name] for name in differing})


def _module(path: Path) -> ModuleType:
    """The module that a file is, which may import what lies beside it.

    Raises:
        ValueError: it is missing or fails.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    name = f"network_in_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: is no file of Python, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's own code raises
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ValueError(f"the file cannot be imported: {told(error)} (line {line})") from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def told(error: Exception) -> str:
    """An error in one line, in which no backquotes name a setting."""
    return " ".join(f"{type(error).__name__}: {error}".replace("`", "'").split())[:300]
