"""SupSup in Python: one frozen network, a mask for each task, and the task of new data inferred from a gradient.

    from supsup import SupSup

    net = SupSup(my_model, outputs=100)
    net.learn("cats", loader, epochs=3)
    net.infer(x)

See ``SupSup``.
"""

import hashlib
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from args import settings_from
from data.own import OwnLoader, finite, numbers_of, tensor_of
from models import IN_FILE, MASKS_OF, MODELS, STATISTICS_OF, Builder, get_model, multitask
from models.convert import Kept, convert, given_state
from models.masked import Masked
from models.original import check_weights, input_shape, translate
from models.outside import torchvision_network
from trainers import ADAPTORS
from trainers.default import DefaultTrainer
from trainers.evaluation import TaskScore, evaluate
from trainers.inference import Objective, alpha_gradients, entropy, of_first, superfluous, uniform
from trainers.options import InferenceOptions, NetworkOptions, Settings, TrainingOptions, pick
from trainers.original import learned_tasks, settings_told
from utils.checkpoint import Checkpoint, Record, joined, named_part, write_records
from utils.errors import UserError, no_memory
from utils.files import place_of
from utils.given import in_own_modes, in_turn, one_of, own_modes, plain, whole
from utils.journal import EXPORT, RUN, TASK
from utils.original import is_original, read_original
from utils.registry import nearest
from utils.seeding import generator

KIND = "supsup"  # of the first record of a saved file
# A task's answers to a batch show that learning the next one changes nothing; of larger batches, to so many images.
SEEN_BYTES, SEEN = 2**26, 8
ROOM = 8  # tasks that a network has room for at first; it doubles as they become more
# Of the project's own networks, the layers of each kind of masks, the first that has them, and of norms.
MASKED_LAYERS = {kind: next(layer for layer in MASKS_OF if MASKS_OF[layer] == kind) for kind in MASKS_OF.values()}
NORMS = {kind: norm for norm, kind in STATISTICS_OF.items()}
# What settings of a run are called here.
CALLED = {"output_size": "outputs", "conv_init": "weights"}
# Options of ``learn``, beside those that it names.
MORE = ("iter_lim", "momentum", "weight_decay", "lr_policy", "warmup_length", "amp", "channels_last", "compile")

# Settings of ``models.Builder``, and what else a network of the original code is told.
LAYERS = ("conv_type", "bn_type", "conv_init", "sparsity", "er_sparsity", "individual_heads", "width_mult")
ORIGINAL_SETTINGS = {*LAYERS, "model", "output_size", "adaptor", "real_neurons", "seed", "task_eval"}


class SupSup:
    """A frozen network that learns tasks by name, each as a mask of one bit a weight, and forgets none.

    Tasks may be added at any time; what was learned before never changes by a bit. A task depends on the seed, on its
    name and on how many were learned before it, on nothing else. Threads that share one take turns, so what gives data
    batch by batch must not wait for the answer of the one that learns them; torch's random numbers, which a dropout
    draws, are one for all threads, so that learning in several needs a process for each.

    Args:
        model: any ``nn.Module`` made of Linear, Conv and attention layers, of which a converted copy is taken (see
            ``models.convert``); or the name of one of the project's networks, such as ``"LeNet"``, or
            ``"torchvision:NAME"``.
        outputs: of the network, the superfluous ones included: more outputs than classes make inference sharper.
        input_shape: (channels, height, width) of an image, which the project's networks must know.
        masks: ``threshold``, ``M = [S >= 0]``; or ``top-k``, the fraction ``sparsity`` of the largest ``|S|``.
        sparsity, er_sparsity: of top-k masks; with ``er_sparsity`` the multiplier of the Erdős–Rényi budget.
        weights: how the frozen weights are drawn, a name such as ``signed_constant`` (see ``models.init``); ``None``
            keeps those of ``model``, as for one that was trained before.
        norms: ``task``, batch norms keep running statistics for each task; ``batch``, they use those of the batch.
        layers: of the project's networks, in the place of ``masks`` ... ``norms``: keywords of ``models.Builder``, such
            as ``conv_type``, for layers that are told apart no further by those.
        real_neurons: outputs that stand for classes; with it, tasks are inferred by the objective G over the others
            (paper, section 3.4), without it by the entropy H of all.
        seed: of everything random.
        device: where the network lies and computes.

    Attributes:
        model: the network with masks.
        tasks: the names of the learned tasks, in the order of learning.

    Raises:
        ValueError: the network has weights that cannot be masked, or something given is not what it should be. That a
            module has other outputs is known, and raised, when it answers for the first time: when it learns.
    """

    @in_own_modes
    def __init__(
        self,
        model: nn.Module | str,
        outputs: int,
        *,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        masks: str = "threshold",
        sparsity: float = 0.5,
        er_sparsity: bool = False,
        weights: str | None = "signed_constant",
        norms: str = "task",
        layers: Mapping[str, Any] | None = None,
        real_neurons: int | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        if not isinstance(model, (nn.Module, str)):
            raise ValueError(f"model: is a {type(model).__name__}, should be a torch.nn.Module or a network's name")
        self.settings: dict[str, Any] = {
            "model": None if isinstance(model, nn.Module) else plain(model),
            "outputs": outputs,
            "input_shape": [whole("input_shape", size) for size in input_shape],
            "masks": one_of("masks", masks, MASKED_LAYERS),
            "sparsity": sparsity,
            "er_sparsity": er_sparsity,
            "weights": plain(weights),
            "norms": one_of("norms", norms, NORMS),
            "layers": None if layers is None else {name: plain(value) for name, value in layers.items()},
            "real_neurons": None if real_neurons is None else whole("real_neurons", real_neurons),
            "seed": seed,
        }
        self._settle()
        self.outputs, self.device = self.settings["outputs"], torch.device(device)
        self.turn = RLock()  # for threads, which take turns
        self.tasks: list[str] = []
        self._seen: tuple[int, Tensor, Tensor] | None = None  # of the task learned last: images and their answers
        self._seed: int = self.settings["seed"]
        self._rng = partial(generator, self._seed)
        self.model = self._network(model).to(self.device)
        self.model.eval()
        if not self._fixed:
            self.model.register_forward_hook(partial(_check_outputs, self.outputs))
            self._shared = given_state(self.model)
            self._parameters = {name for name, _ in self.model.named_parameters()}
        # Of the networks that take images of one shape alone; of the user's own, that of the first task's.
        self._image_shape = tuple(self.settings["input_shape"]) if self._fixed else None
        # The same inference, for many tests and for one batch.
        self._adaptor = "se_oneshot_entropy_minimization"
        self._objective: Objective = entropy
        if real_neurons is not None:
            self._adaptor = "se_oneshot_g_minimization"
            self._objective = partial(superfluous, real_neurons=self.settings["real_neurons"])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, turn=RLock())

    def __repr__(self) -> str:
        name = self.settings["model"] or type(self.model).__name__
        return f"SupSup({name}, outputs={self.outputs}, tasks={self.tasks})"

    def _settle(self) -> None:
        """Check the settings as those of a run are, and find the keywords of ``models.Builder`` that they make.

        Raises:
            ValueError: one of them is not what it should be.
        """
        s = self.settings
        name, layers = s["model"], s["layers"]
        if name is not None and MODELS.form(name) == IN_FILE:  # a file may not name code that is run
            raise ValueError(f"model={name!r}: is no network of the project or torchvision; give the module itself")
        if layers is not None and not self._fixed:
            raise ValueError("layers: are those of the project's own networks; say masks, sparsity, weights, norms")
        if len(s["input_shape"]) != 3:
            raise ValueError(f"input_shape={s['input_shape']}: should be (channels, height, width)")
        told = {"output_size": s["outputs"], "seed": s["seed"], **({} if name is None else {"model": name})}
        usual = {
            "conv_type": MASKED_LAYERS[s["masks"]],
            "bn_type": NORMS[s["norms"]],
            "sparsity": s["sparsity"],
            "er_sparsity": s["er_sparsity"],
            **({} if s["weights"] is None else {"conv_init": s["weights"]}),
        }
        checked = _checked("SupSup", told | usual)
        s |= {"outputs": checked.output_size, "seed": checked.seed}
        s |= {"sparsity": checked.sparsity, "er_sparsity": checked.er_sparsity}
        if (real := s["real_neurons"]) is not None and real >= s["outputs"]:
            raise ValueError(f"real_neurons={real}: should be at least 1 and fewer than the outputs, {s['outputs']}")
        known = NetworkOptions().layers.keys() - {"weights"}
        if unknown := sorted((layers or {}).keys() - known):
            raise ValueError(f"layers: there is no {unknown[0]!r}{nearest(unknown[0], known)}")
        self._layers = pick(NetworkOptions, _checked("layers", told | layers) if layers else checked).layers

    @property
    def _fixed(self) -> bool:
        """Whether the network is one of the project's, for images of one shape alone."""
        name = self.settings["model"]
        return name is not None and ":" not in name

    def _network(self, model: nn.Module | str) -> nn.Module:
        s = self.settings
        if isinstance(model, str) and self._fixed:
            if s["weights"] is None:
                raise ValueError(f"weights=None: {model} has none that were given; say how they are drawn")
            return get_model(model, Builder(self._rng, ROOM, **self._layers), tuple(s["input_shape"]), self.outputs)
        if isinstance(model, str):
            model = torchvision_network(model.partition(":")[2], self.outputs, self._seed)
        return convert(
            model,
            self._rng,
            ROOM,
            masks=s["masks"],
            sparsity=s["sparsity"],
            er_sparsity=s["er_sparsity"],
            init=s["weights"],
            norms=s["norms"],
        )

    def learn(
        self,
        name: str,
        data: Iterable[Any],
        *,
        epochs: int = 1,
        batch_size: int = 128,
        optimizer: str = "rmsprop",
        lr: float = 1e-3,
        **options: Any,
    ) -> float:
        """Learn a task: a mask that answers its data.

        A warning names weights whose masks no gradient reached, and says if learning has changed the answers of the
        task before, as a network does that keeps statistics of its own for all tasks.

        Args:
            name: of the task, a text; new.
            data: batches (x, y) in any form that ``data.own.OwnLoader`` takes: a ``DataLoader``, two arrays, a list.
                Bytes (uint8) are taken for pixels and divided by 255, so ids are given as int64.
            epochs: passes over the data.
            batch_size: of arrays.
            optimizer, lr: of the scores.
            options: more of ``TrainingOptions``: those of ``MORE``, such as ``iter_lim`` or ``lr_policy``.

        Returns:
            The mean loss of the last epoch.

        Raises:
            ValueError: there is a task of that name, an option is not what it should be, the data are not batches with
                labels in [0, real_neurons) or [0, outputs), the network has other outputs, keeps what training changes
                for all tasks, makes layers as it answers, or answers without its layers, or layers of a checkpoint of
                the original code have no place for a task's own.
            TypeError: there is no such option.
            RuntimeError: the task cannot be learned: its loss is not a finite number. It is not kept.
        """
        self._check_new(name)
        self._check_place()
        _check_options(options)
        options |= {"epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr}
        settings = _checked("learn", options)
        # Before its turn, for what makes the data may ask the network.
        with own_modes():
            loader = self._loader(data, settings.batch_size, most=settings.iter_lim, shuffle=True)
        return self._learn(str(name), loader, settings)

    @in_turn
    @in_own_modes
    def _learn(self, name: str, loader: OwnLoader, settings: Settings) -> float:
        self._check_new(name)
        number = len(self.tasks)
        loader.key = (self._seed, number)
        self._make_room(number + 1)
        # Tasks of one number, learned apart and merged, would start from the same scores and be hard to tell apart.
        rng = partial(self._rng, "task", name)
        trainer = DefaultTrainer(self.model, pick(TrainingOptions, settings), rng)
        trainer.begin_tasks([number])
        losses = self._train(trainer, loader)
        if trainer.failed:
            raise RuntimeError(next(iter(trainer.failed.values())))
        self.tasks += [name for _ in trainer.end_tasks()]
        self._image_shape = self._image_shape or loader.image_shape
        self._warn_if_changed()
        self._note_answers(number, loader.last)
        return losses[-1]

    def _note_answers(self, number: int, x: Tensor) -> None:
        """Note how a task answers some images, if it answers alike twice; see ``_warn_if_changed``."""
        x = (x if x.nbytes <= SEEN_BYTES else x[:SEEN]).clone()
        try:
            answer, again = (self._answer(number, x) for _ in range(2))
        except (AssertionError, IndexError, RuntimeError, ValueError):  # as of one image, where norms take several
            self._seen = None
        else:
            self._seen = (number, x, answer) if torch.equal(answer, again) else None

    @torch.no_grad()
    def _answer(self, number: int, x: Tensor) -> Tensor:
        """What a task answers (batch, outputs), whatever was drawn before."""
        multitask.select_task(self.model, number)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(0)
            self.model.eval()
            answer: Tensor = self.model(x)
            return answer

    def _warn_if_changed(self) -> None:
        """Warn if the task that was learned before the last one does not answer as it did when it was learned.

        Wherever the network keeps what has changed: ``Kept`` sees what torch knows of.
        """
        if self._seen is None:
            return
        number, x, answer = self._seen
        if not torch.equal(self._answer(number, x), answer):
            warnings.warn(
                f"the answers of task {self.tasks[number]!r} have changed: the network keeps something of its own that "
                "training changes for all tasks, as running statistics, or torch was told to compute in another way",
                stacklevel=2,
            )

    def _train(self, trainer: DefaultTrainer, loader: OwnLoader) -> list[float]:
        """Train the task that was begun; the mean losses of the epochs. The caller's random numbers stay as they are.

        Raises:
            ValueError: the data or the network are not what they should be.
        """
        kept = Kept(self.model)

        def answer() -> Tensor:
            self.model.eval()
            answered: Tensor = self.model(loader.last)
            return answered

        def after_batch() -> None:
            if trainer.batches_done == 1:  # what will be wrong after all of them is told at once
                self._check_layers()
                kept.check(answer)
                self.model.train()

        draws = [self.device] if self.device.type == "cuda" else []
        try:
            with _failing("data"), torch.random.fork_rng(draws):
                losses = [loss for (loss,) in trainer.learn(loader, after_batch=after_batch)]
                kept.check(answer)
        finally:
            kept.put_back()
            self.model.eval()
        if all(parameter.grad is None for parameter in trainer.parameters):
            raise ValueError(
                "model: its answer does not come from the layers that it has, so no mask is learned; layers must be "
                "attributes of modules, or in nn.ModuleList, and forward a method"
            )
        return losses

    @in_turn
    @in_own_modes
    def scores(self, x: Tensor, images: int | None = None) -> dict[str, float]:
        """How much each learned task explains a batch: ``-∂L/∂alpha`` of its coefficient (paper, equation 4).

        Args:
            x: a batch (batch, ...) of one task, as the network takes it.
            images: from how many of its first images; None for all. With batch norm the others go through beside them.

        Returns:
            A number a task, by name; the largest is that of the inferred task. If all are equal a warning says
            so, which Python shows once.

        Raises:
            ValueError: no task is learned, x is no batch of images that the network takes, or has what is no number.
        """
        self._check_learned()
        images = None if images is None else whole("images", images)
        numbers = range(len(self.tasks))
        x = self._batch(x)[None]
        objective = of_first(self._objective, images)
        if not multitask.has_batch_norm(self.model):
            x = x[:, :images]
        self.model.eval()
        with _failing("x"):
            gradients = alpha_gradients(self.model, numbers, uniform(len(numbers), self.device), x, objective)
        if not gradients.isfinite().all():
            raise ValueError("x: the network's answer is no finite number, so no task can be told from another")
        if len(numbers) > 1 and (gradients == gradients[0, 0]).all():
            if x.shape[1] == 1 and multitask.has_batch_norm(self.model):
                said = "this one image is like any other, so no task can be told; give several of one task"
                raise ValueError(f"x: with batch norm {said}")
            warnings.warn(
                "x: says nothing of its task, for the derivatives of all tasks are equal, so the first one is taken; "
                "are its numbers like those that were learned?",
                stacklevel=2,
            )
        return dict(zip(self.tasks, (-gradients[0]).tolist(), strict=True))

    def infer(self, x: Tensor, images: int | None = None) -> str:
        """The name of the task that a batch is of, by one gradient (paper, section 3.3).

        Args, Raises: as ``scores``.
        """
        scores = self.scores(x, images)
        return max(scores, key=scores.__getitem__)

    @in_turn
    @in_own_modes
    @torch.no_grad()
    def logits(self, x: Tensor, task: str | None = None) -> Tensor:
        """What the network answers, float32 (batch, outputs), with the mask of ``task``; None infers it from x.

        Raises:
            ValueError: no task is learned, or none of that name, or x is no batch of images that the network takes.
        """
        self._check_learned()
        x = self._batch(x)
        multitask.select_task(self.model, self._number(self.infer(x) if task is None else task))
        self.model.eval()
        with _failing("x"):
            logits: Tensor = self.model(x)
        return logits.float()  # of a network with an autocast of its own

    def predict(self, x: Tensor, task: str | None = None) -> Tensor:
        """The labels of a batch, int64 (batch,), with the mask of ``task``; None infers it from x.

        Raises: as ``logits``.
        """
        return self.logits(x, task).argmax(dim=1)

    def evaluate(
        self,
        data: Mapping[str, Iterable[Any]],
        *,
        images: int | None = None,
        batch_size: int = 128,
        unshared_labels: bool = False,
    ) -> dict[str, TaskScore]:
        """Test tasks on their own data, with the task given and with the task inferred once for each batch.

        Args:
            data: for each task, by name, batches (x, y) in any form that ``learn`` takes.
            images: from how many of the first images of a batch its task is inferred (the paper: 1); None for all.
            batch_size: of arrays.
            unshared_labels: whether a batch whose task is inferred wrong is wrong as a whole.

        Returns:
            For each task its accuracies ``given`` and ``adapted`` (inferred) in [0, 1], and ``inferred_right``, the
            share of batches whose task was inferred right.

        Raises:
            ValueError: no task is learned, none of such a name, or data or another value are not what they should be.
        """
        self._check_learned()
        if not isinstance(data, Mapping):
            raise ValueError(f"data: should be the batches of each task, by its name, not {type(data).__name__}")
        if not data:
            return {}
        images = sys.maxsize if images is None else whole("images", images)
        batch_size = whole("batch_size", batch_size)
        with own_modes():
            loaders = {self._number(name): self._loader(batches, batch_size) for name, batches in data.items()}
            for loader in loaders.values():
                loader.keep()  # some batches are answered twice, and must be the same then
        options = InferenceOptions(images, real_neurons=self._labels, unshared_labels=unshared_labels)
        return dict(zip(data, self._evaluate(loaders, options), strict=True))

    @in_turn
    @in_own_modes
    def _evaluate(self, loaders: Mapping[int, OwnLoader], options: InferenceOptions) -> list[TaskScore]:
        with _failing("data"):
            return evaluate(
                self.model, _Tests(loaders), list(loaders), self._adaptor, options, candidates=range(len(self.tasks))
            )

    @in_turn
    def save(self, path: str | Path) -> None:
        """Keep all that was learned in one file: masks, and what no seed makes again, as the network was given it.

        The file holds tensors and JSON alone. It is there whole, or not at all; a link stays one.

        Raises:
            OSError: it cannot be written, or the path is that of a pipe or a device.
        """
        place = place_of(Path(path).expanduser())
        about = {"settings": self.settings, "frozen": self._fingerprint(), "image_shape": list(self._image_shape or ())}
        first = Record(KIND, about, self._given())
        tasks = [
            Record(TASK, {"name": name}, joined({"own": multitask.task_state(self.model, number)}))
            for number, name in enumerate(self.tasks)
        ]
        write_records(place, [first, *tasks])

    @classmethod
    @in_own_modes
    def load(cls, path: str | Path, model: nn.Module | None = None, *, device: str | torch.device = "cpu") -> "SupSup":
        """What ``save`` kept, ready to infer, and to learn more; or what a checkpoint of the original code holds.

        Of such a checkpoint nothing is run. Its learned tasks are called by their numbers there, ``"0"``, ``"1"``, ...

        Args:
            model: the network, if ``SupSup`` was given one as a module; its parameters and buffers do not matter, but
                tensors that are in no ``state_dict`` must be those that it was learned with.

        Raises:
            utils.errors.UserError: the file is missing or damaged, or is none of ``save``.
            ValueError: it was made with another network.
        """
        path = Path(path).expanduser()
        if is_original(path):
            if model is not None:
                raise ValueError(f"{path}: is of the original code, whose networks are known, so no model is needed")
            return cls._load_original(path, device)
        first, tasks = _read(path)
        settings = dict(first.values["settings"])
        name = settings.pop("model")
        if (name is None) != (model is not None):
            raise ValueError(
                f"{path}: is of a network given as a module; give one of the same layers as model"
                if name is None
                else f"{path}: is of the network {name}, so no model is needed"
            )
        network = model if model is not None else name
        try:
            net = cls(network, **settings, device=device)
        except (AttributeError, TypeError) as error:
            raise ValueError(f"{path}: is damaged: its settings are not those of a SupSup: {error}") from error
        try:
            multitask.load_shared_state(net.model, first.tensors)
        except ValueError as error:
            raise ValueError(f"{path}: does not fit this network: {error}") from None
        if not net._fixed:
            net._shared = given_state(net.model)
        if net._fingerprint() != first.values.get("frozen"):
            raise ValueError(f"{path}: was made over other frozen weights than this network has here")
        net._take(path, tasks)
        if "image_shape" in first.values:
            net._image_shape = _shape_in(first)
        return net

    @classmethod
    def _load_original(cls, path: Path, device: str | torch.device) -> "SupSup":
        original = read_original(path)
        args = settings_from(settings_told(original, ORIGINAL_SETTINGS, str(path)), str(path))
        try:
            check_weights(original.tensors, args.model, args.output_size, args.width_mult)
            learned = learned_tasks(original, args.conv_type, args.task_eval)
            net = cls(
                args.model,
                args.output_size,
                input_shape=input_shape(original.tensors),
                layers={name: getattr(args, name) for name in LAYERS},
                real_neurons=args.real_neurons if ADAPTORS[args.adaptor].superfluous else None,
                seed=args.seed,
                device=device,
            )
            shared, states = translate(net.model, original.tensors, learned)
            multitask.load_shared_state(net.model, shared)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        tasks = [Record(TASK, {"name": str(task)}, joined({"own": state})) for task, state in states.items()]
        net._take(path, tasks)
        net._image_shape = None  # such a file tells how many numbers an image has, not its shape
        return net

    @in_turn
    @in_own_modes
    def merge(self, path: str | Path) -> None:
        """Take the tasks of another file of ``save``, learned elsewhere over the same frozen weights: all, or none.

        Raises:
            utils.errors.UserError: the file is missing or damaged.
            ValueError: its weights are others, or its ``norms``, it has a task of a name that is here already, or one
                that does not fit.
        """
        path = Path(path).expanduser()
        first, tasks = _read(path)
        used = given_state(self.model)  # as files had it once: with what the network keeps as it answers
        if first.values.get("frozen") not in (self._fingerprint(), self._fingerprint(used)):
            raise ValueError(f"{path}: its masks are over other frozen weights")
        ours = self.settings["norms"]
        theirs = first.values["settings"].get("norms", ours)
        if theirs != ours and not self._fixed and multitask.has_batch_norm(self.model):
            raise ValueError(f"{path}: its tasks were learned with norms={theirs!r}, here they are {ours!r}")
        for record in tasks:
            self._check_new(record.values["name"])
            self._check_place()
        self._take(path, tasks)
        self._image_shape = self._image_shape or _shape_in(first)

    def _take(self, path: Path, records: list[Record]) -> None:
        """Take the tasks of a file: all of them, or none if one does not fit."""
        states = [named_part(record.tensors, "own") for record in records]
        try:
            places = multitask.task_state(self.model, 0)
        except IndexError:  # layers that keep one task alone have no place before it: nothing can be left half done
            places = states[0] if states else {}
        for record, state in zip(records, states, strict=True):
            for name in sorted(places.keys() | state.keys()):
                own, theirs = (_kind(tensors.get(name)) for tensors in (places, state))
                if own != theirs:
                    raise ValueError(
                        f"{path}: does not fit this network: {name} of the task {record.values['name']!r} is {theirs}, "
                        f"should be {own}"
                    )
        self._make_room(len(self.tasks) + len(records))
        for record, state in zip(records, states, strict=True):
            try:
                multitask.load_task_state(self.model, len(self.tasks), state)
            except (KeyError, ValueError) as error:
                raise ValueError(f"{path}: does not fit this network: {error}") from None
            self.tasks.append(record.values["name"])

    def _given(self) -> dict[str, Tensor]:
        """What tasks share and no seed makes; of a user's network as it was given, whatever it keeps as it answers."""
        shared = multitask.shared_state(self.model) if self._fixed else self._shared
        return {name: value.detach().cpu() for name, value in shared.items()}

    def _fingerprint(self, shared: dict[str, Tensor] | None = None) -> str:
        """A hash of all that is frozen: masks mean nothing over other weights.

        Args:
            shared: what tasks share; None for what was given.
        """
        digest = hashlib.sha256()
        weights = {name: module.weight for name, module in multitask.named(self.model, Masked)}
        for name, value in sorted((weights | (self._given() if shared is None else shared)).items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _make_room(self, tasks: int) -> None:
        room = ROOM
        while room < tasks:
            room *= 2
        multitask.make_room(self.model, room)

    def _loader(self, data: Iterable[Any], batch_size: int, **more: Any) -> OwnLoader:
        """The user's batches as the network takes them; ``more`` is of ``OwnLoader``."""
        return OwnLoader(
            data, self._labels, device=self.device, batch_size=batch_size, check=self._check_images, **more
        )

    def _batch(self, x: Any) -> Tensor:
        """x as the network takes it.

        Raises:
            ValueError: it is no batch of such images.
        """
        x = tensor_of(x, "x")
        if x.ndim < 2 or not len(x):
            raise ValueError(f"x {tuple(x.shape)}: should be a batch (batch, ...) of at least one image")
        self._check_images(x, "x")
        numbers: Tensor = numbers_of(x)
        if not finite(numbers):
            raise ValueError("x: has values that are no finite numbers")
        return numbers.to(self.device)

    def _check_images(self, x: Tensor, name: str = "data") -> None:
        """See that images of a batch have the shape of those that were learned from, as far as the network needs it.

        Raises:
            ValueError: they have another.
        """
        wanted = self._image_shape
        if wanted is None or (x.shape[1:] == wanted if self._fixed else x.ndim == 1 + len(wanted)):
            return
        one = f"; of one image it is {name}[None]" if x.ndim == len(wanted) else ""
        raise ValueError(f"{name} {tuple(x.shape)}: should be (batch, {', '.join(map(str, wanted))}){one}")

    @property
    def _labels(self) -> int:
        """What labels are below."""
        real: int | None = self.settings["real_neurons"]
        return self.outputs if real is None else real

    def _check_layers(self) -> None:
        """See that the network has made no layer as it answered.

        Raises:
            ValueError: it has.
        """
        if self._fixed:
            return
        known = self._parameters | multitask.task_parameters(self.model).keys()
        if made := [name for name, _ in self.model.named_parameters() if name not in known]:
            raise ValueError(
                f"model: its own {made[0]} came into being with its first batch, too late for a mask; "
                "run a batch through the network before"
            )

    def _check_new(self, name: str) -> None:
        if not isinstance(name, str):
            raise ValueError(f"name={name!r}: of a task should be a text")
        if name in self.tasks:
            raise ValueError(f"there is a task {name!r} already")

    def _number(self, name: str) -> int:
        if name not in self.tasks:
            raise ValueError(f"no task {name!r} is learned; there are {', '.join(self.tasks)}")
        return self.tasks.index(name)

    def _check_place(self) -> None:
        layers = (self.settings["layers"] or {}).get("conv_type")
        if not multitask.has_tasks(self.model) or (layers == "MaskConv" and self.tasks):
            raise ValueError(f"layers of the kind {layers} have no place for one more task")

    def _check_learned(self) -> None:
        if not self.tasks:
            raise ValueError("no task is learned yet")


def _read(path: Path) -> tuple[Record, list[Record]]:
    """What ``save`` wrote: the record of the network, and those of the tasks.

    Raises:
        UserError: the file is missing, or is no checkpoint.
        ValueError: it is damaged, or was written by something else.
    """
    records, damaged = Checkpoint(path).read()
    if records and records[0].kind in (EXPORT, RUN):
        what = "an export" if records[0].kind == EXPORT else "the checkpoint of a run"
        raise ValueError(f"{path}: is {what} of main.py, which goes on from it, and no file of SupSup.save")
    if damaged or not records or records[0].kind != KIND:
        raise ValueError(f"{path}: is damaged, or was not written by SupSup.save")
    settings, shape = (records[0].values.get(name, []) for name in ("settings", "image_shape"))
    if not isinstance(settings, dict) or "model" not in settings:
        raise ValueError(f"{path}: is damaged: it does not tell what network it is of")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise ValueError(f"{path}: is damaged: images have the shape {shape!r}")
    names = [record.values.get("name") for record in records[1:]]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: is damaged: its tasks are called {names}")
    return records[0], records[1:]


def _checked(of: str, given: Mapping[str, object]) -> Settings:
    """Settings that a caller of ``of`` gives, each checked as one of a run is; the others at their defaults.

    Raises:
        ValueError: one of them cannot be.
    """
    try:
        return settings_from({name: plain(value) for name, value in given.items()}, of)
    except UserError as error:
        words = re.sub(rf"`?\b({'|'.join(CALLED)})\b`?", lambda found: CALLED[found[1]], str(error))
        raise ValueError(words) from None


def _check_options(options: Mapping[str, object]) -> None:
    """See that there are such options of ``learn``.

    Raises:
        TypeError: there is no option of a name.
        ValueError: weights should be trained.
    """
    if options.get("train_weight_tasks"):
        raise ValueError("train_weight_tasks: weights stay as they are here, for earlier tasks compute with them")
    if unknown := sorted(options.keys() - MORE):
        raise TypeError(f"learn has no option {unknown[0]!r}{nearest(unknown[0], MORE)}")


def _check_outputs(outputs: int, _: nn.Module, inputs: tuple[Any, ...], answer: object) -> None:
    """See that a network that answers a batch has so many outputs; a hook of its forward pass.

    Raises:
        ValueError: it has others.
    """
    said = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    wanted = (len(inputs[0]), outputs)
    if said != wanted:
        raise ValueError(f"outputs={outputs}: the network answers {wanted[0]} images with {said}, should be {wanted}")


def _shape_in(first: Record) -> tuple[int, ...] | None:
    """The shape of an image that a file of ``save`` tells; None if it was made from one that does not."""
    return tuple(first.values.get("image_shape") or ()) or None


def _kind(value: Tensor | None) -> str:
    """The type and shape of a tensor, for messages."""
    return "not there" if value is None else f"{value.dtype} {tuple(value.shape)}"


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """Say of which parameter the network fails; a lack of memory is what it is."""
    try:
        yield
    except (AssertionError, IndexError, RuntimeError) as error:
        if no_memory(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: the network fails on such a batch: {said}") from error


class _Tests:
    """The test batches of tasks, as ``trainers.evaluation.evaluate`` asks for them."""

    def __init__(self, loaders: Mapping[int, OwnLoader]) -> None:
        self.loaders = loaders

    def update_task(self, task: int) -> None:
        self.val_loader = self.loaders[task]
