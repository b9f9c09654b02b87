"""A frozen weight and, for each task, a binary mask over it: what all masked layers have in common."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import masks, multitask
from models.layers import LayerOptions, load_into
from models.superposition import SuperposedModule

LOSSES = 2048  # whose derivatives are computed together: enough to share what is unpacked, few enough for caches
TABLES = 32  # losses whose tables of sums are made together, so that they stay in a cache
TABLED, TOGETHER = 512, 16384  # bytes of a mask that have tables for few losses at a time, and masks that are summed
NEAR = 1536  # bytes of a mask that are copied together: where masks lie far apart, waiting for memory is most of it
BYTES = 3000  # masks from which on tables of bytes take less time than those of half bytes, which are made sooner


@dataclass(frozen=True)
class Census:
    """How many masks of some tasks keep each weight.

    Attributes:
        tasks: those, in their order.
        kept: int32 (n,).
        of: the address, length and version of the tensor of masks that were counted.
    """

    tasks: tuple[int, ...]
    kept: Tensor
    of: tuple[int, int, int]


class Masked(SuperposedModule):
    """A frozen weight and, for each task, a mask made of real scores.

    Scores exist only for the task in training; learned masks lie bit-packed in ``packed``, uint8
    (num_tasks, ceil(n / 8)) for ``n`` weights. The weight is a buffer that no checkpoint stores, for its seed
    makes it again, unless it was loaded (see ``multitask.load_shared_state``).

    Args:
        shape: of the weight, (out, in, height, width).
        options: what every layer of a network is told.
    """

    per_task = ("packed",)
    used_once = True  # its weight, by the layer itself
    packed: Tensor
    scores: nn.Parameter | None

    def __init__(self, shape: Sequence[int], options: LayerOptions):
        super().__init__()
        self.num_tasks = options.num_tasks
        weight = torch.empty(*shape, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)
        # Not zeros: memory that nothing has been written to costs nothing yet.
        packed = torch.empty(self.rows, math.ceil(weight.numel() / 8), dtype=torch.uint8)
        self.register_buffer("packed", packed, persistent=False)
        self.register_superposed()
        self.register_parameter("scores", None)
        self.task: int | None = None  # in training, or trained last
        self.learned: set[int] = set()
        self.census: Census | None = None  # of the tasks that were last superposed with equal coefficients

    @property
    def rows(self) -> int:
        """How many masks the layer keeps."""
        return self.num_tasks

    def row(self, task: int) -> int:
        """Where in ``packed`` the mask of ``task`` lies.

        Raises:
            IndexError: the layer has no such task.
        """
        return self.check_task(task)

    def magnitude(self, scores: Tensor) -> Tensor:
        """What decides on the mask of ``scores`` (..., *weight shape): they themselves, or a function of them."""
        return scores

    @abstractmethod
    def binarise(self, magnitude: Tensor) -> Tensor:
        """The mask of ``magnitude`` (..., out, in, height, width), zeros and ones of its shape and type."""

    def weight_in_use(self) -> Tensor:
        """The weight of the current mode: of the task in training, of the selected task, or superposed.

        Raises:
            RuntimeError: no task was begun or selected, and none superposed.
        """
        if self.effective is not None:
            return self.effective
        if not self.task_parameters():
            raise RuntimeError("a masked layer computes once a task is begun, selected, or tasks are superposed")
        return self.masked_weight(self.scores)

    def masked_weight(self, scores: Tensor | None) -> Tensor:
        """The weight under the mask of ``scores``, (..., *weight shape)."""
        assert scores is not None
        weight: Tensor = masks.MaskedWeight.apply(self.magnitude(scores), self.weight, self.binarise, self.used_once)
        return weight

    def stacked(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"effective": self.masked_weight(state["scores"])}

    def begin_task(self, task: int, generator: torch.Generator) -> None:
        self.task = self.check_task(task)
        self.effective = None
        scores = masks.initial_scores(self.weight.shape, generator)
        self.scores = nn.Parameter(scores.to(self.weight.device))

    def keep_tasks(self, tasks: Sequence[int], state: dict[str, Tensor]) -> None:
        kept = self.binarise(self.magnitude(state["scores"])).flatten(1)
        packed, census = masks.pack(kept), self._recounted(tasks, kept)
        self.packed[multitask.places([self.row(task) for task in tasks], kept.device)] = packed
        self.census = None if census is None else replace(census, of=self._masks)
        self.learned.update(tasks)

    def _recounted(self, tasks: Sequence[int], kept: Tensor) -> Census | None:
        """The census as it is once the masks of ``tasks`` are ``kept`` (tasks, n); None if it has to be made anew."""
        census = self.census
        if census is None or census.of != self._masks or self.rows != self.num_tasks:
            return None
        counts = census.kept
        for task, mask in zip(tasks, kept, strict=True):
            if times := census.tasks.count(task):
                counts = counts + times * (mask.int() - masks.unpack(self.packed[task], len(mask), torch.int32))
        return replace(census, kept=counts)

    def select_task(self, task: int) -> None:
        self.effective = self.superposition([task], torch.ones(1, device=self.weight.device))

    def task_parameters(self) -> dict[str, nn.Parameter]:
        return {} if self.scores is None else {"scores": self.scores}

    def task_state(self, task: int) -> dict[str, Tensor]:
        return {"mask": self.packed[self.row(task)]}

    def load_task_state(self, task: int, state: dict[str, Tensor]) -> None:
        load_into(self.task_state(task), state)
        self.learned.add(task)

    @torch.no_grad()
    def superpose(self, tasks: Sequence[int], alphas: Tensor, alike: bool = False) -> None:
        """As ``SuperposedModule``; with equal coefficients from how many masks keep each weight.

        Among very many masks counting takes longer than the inference of an image, so only masks that came or changed
        are counted.
        """
        if alike:
            self.effective = (self._kept(tuple(tasks)) / len(tasks)).view_as(self.weight).mul_(self.weight)
        else:
            super().superpose(tasks, alphas)

    @property
    def _masks(self) -> tuple[int, int, int]:
        """The address, length and version of the tensor that holds the masks."""
        return self.packed.data_ptr(), len(self.packed), self.packed._version

    def _kept(self, tasks: tuple[int, ...]) -> Tensor:
        """How many masks of ``tasks`` keep each weight, int32 (n,)."""
        census, size = self.census, self.weight.numel()
        if census is None or census.of != self._masks or tasks[: len(census.tasks)] != census.tasks:
            census = Census((), torch.zeros(size, dtype=torch.int32, device=self.packed.device), self._masks)
        if len(tasks) > len(census.tasks):
            together, kept = max(1, masks.tile_bytes(self.packed.device) // (4 * size)), census.kept
            for some in self._rows(tasks[len(census.tasks) :]).split(min(255, together)):  # no more than a byte counts
                kept = kept + masks.unpack(self.packed[some], size, torch.uint8).sum(0, dtype=torch.uint8)
            census = Census(tasks, kept, census.of)
        self.census = census
        return census.kept

    @torch.no_grad()
    def superposition(self, tasks: Sequence[int], alphas: Tensor) -> Tensor:
        weight, rows = self.weight.flatten(), self._rows(tasks)
        mixed = torch.empty(*alphas.shape[:-1], len(weight), device=weight.device)
        # Some weights of all masks at a time, in whole bytes of eight.
        for part in masks.tiles(len(weight), max(1, masks.tile_bytes(weight.device) // (4 * 8 * len(tasks))) * 8):
            packed = self.packed[rows, part.start // 8 : math.ceil(part.stop / 8)]
            mixed[..., part] = alphas @ masks.unpack(packed, part.stop - part.start) * weight[part]
        weights: Tensor = mixed.unflatten(-1, self.weight.shape)
        return weights

    @torch.no_grad()
    def coefficient_gradients(
        self, tasks: Sequence[int], inputs: Tensor, output_gradients: Tensor, coarse: bool = False
    ) -> Tensor:
        rows = self._rows(tasks)
        tabled = masks.tables_pay(len(inputs), len(rows), self.packed.device)
        if inputs.shape[1] == 1 and not coarse and not tabled:
            # G = g xᵀ, so ⟨G, W ⊙ M⟩ = gᵀ (W ⊙ M) x: all losses go through a mask together, one mask at a time where
            # the masked weight and what it gives should stay in a processor's cache.
            x, g = inputs[:, 0].T.contiguous(), output_gradients[:, 0].T.contiguous()  # (n / out, b), (out, b)
            weight = self.weight.flatten(1)  # (out, n / out)
            result = torch.zeros(len(inputs), len(tasks), device=inputs.device)
            together = 1 if x.device.type == "cpu" else max(1, masks.tile_bytes(x.device) // (4 * weight.numel()))
            for some in masks.tiles(len(tasks), together):
                masked = masks.unpack(self.packed[rows[some]], weight.numel()).view(-1, *weight.shape).mul_(weight)
                for batch in masks.tiles(len(inputs), LOSSES):
                    outputs = (masked.flatten(0, 1) @ x[:, batch]).view(-1, *g[:, batch].shape)
                    result[batch, some] = outputs.mul_(g[:, batch]).sum(1).T
            return result

        def gradient(batch: slice, units: slice) -> Tensor:
            return output_gradients[batch, :, units].mT @ inputs[batch]

        return self._mask_products(rows, gradient, len(inputs), coarse)

    @torch.no_grad()
    def whole_coefficient_gradients(self, tasks: Sequence[int], gradients: Tensor) -> Tensor:
        rows, gradients = self._rows(tasks), gradients.flatten(2)
        return self._mask_products(rows, lambda batch, units: gradients[batch, units].clone(), len(gradients))

    def _mask_products(
        self, rows: Tensor, gradient: Callable[[slice, slice], Tensor], losses: int, coarse: bool = False
    ) -> Tensor:
        """``⟨G, W ⊙ M⟩ = ⟨G ⊙ W, M⟩`` for every pair of a loss's ``G = ∂L/∂W_eff`` and a mask: (losses, rows).

        For some units of the layer at a time: their part of ``G ⊙ W`` and of the masks is made once and used for all
        pairs. So many units together that their bits are whole bytes.

        Args:
            rows: where in ``packed`` the masks lie.
            gradient: of some losses and units, ``G`` (losses, units, n / out); it is overwritten.
        """
        if masks.tables_pay(losses, len(rows), self.packed.device):
            return self._tabled_products(rows, gradient, losses)
        weight = self.weight.flatten(1)  # (out, n / out)
        result = torch.zeros(losses, len(rows), device=weight.device)
        whole = 8 // math.gcd(8, weight.shape[1])
        unit_bytes, tile = 4 * whole * weight.shape[1], masks.tile_bytes(weight.device)
        for batch in masks.tiles(losses, max(1, min(LOSSES, tile // unit_bytes))):
            widest = max(len(rows), batch.stop - batch.start)
            for units in masks.tiles(len(weight), max(1, tile // (unit_bytes * widest)) * whole):
                products = gradient(batch, units).mul_(weight[units])
                first, size = units.start * weight.shape[1], (units.stop - units.start) * weight.shape[1]
                bits = self.packed[rows, first // 8 : math.ceil((first + size) / 8)]
                with masks.coarse_products() if coarse else nullcontext():
                    result[batch].addmm_(products.flatten(1), masks.unpack(bits, size).T)
        return result

    def _tabled_products(self, rows: Tensor, gradient: Callable[[slice, slice], Tensor], losses: int) -> Tensor:
        """As ``_mask_products``: for each byte of a mask a table has the sum of what its bits keep."""
        weight = self.weight.flatten(1)
        result = torch.zeros(losses, len(rows), device=weight.device)
        whole, size = 8 // math.gcd(8, weight.shape[1]), weight.shape[1]
        for batch in masks.tiles(losses, TABLES):
            for units in masks.tiles(len(weight), max(1, 8 * TABLED // (whole * size)) * whole):
                products = gradient(batch, units).mul_(weight[units]).flatten(1)
                products = F.pad(products, (0, -products.shape[1] % 8))
                packed = self.packed[:, units.start * size // 8 :][:, : products.shape[1] // 8]
                for part in masks.tiles(packed.shape[1], TABLED):
                    tables = masks.table_sums(products[:, 8 * part.start : 8 * part.stop], wide=True)
                    for some in masks.tiles(len(rows), TOGETHER):
                        places = masks.table_places(packed[:, part].index_select(0, rows[some]), wide=True)
                        result[batch, some] += F.embedding_bag(places, tables, mode="sum").T
        return result

    @torch.no_grad()
    def loss_gradients(self, tasks: Sequence[int], inputs: Tensor, output_gradients: Tensor) -> Tensor:
        """``coefficient_gradients`` of one loss, which reads only units that have a gradient.

        Args:
            inputs, output_gradients: those of the loss, (places, n / out) and (places, out).

        Returns:
            (k,).
        """
        rows, weight = self._rows(tasks), self.weight.flatten(1)
        whole = 8 // math.gcd(8, weight.shape[1])  # units whose bits are whole bytes
        whole, size = len(weight) if len(weight) % whole else whole, weight.shape[1]
        some = output_gradients.any(0).unflatten(0, (-1, whole)).any(1)
        gradients, weight = (x.unflatten(0, (-1, whole))[some].flatten(0, 1) for x in (output_gradients.T, weight))
        products = (gradients @ inputs).mul_(weight).flatten()
        places, packed = some.nonzero().flatten(), self.packed.unflatten(1, (len(some), -1))
        result: Tensor = products.new_empty(len(rows))
        for here in masks.tiles(len(rows), max(1, masks.tile_bytes(weight.device) // (4 * len(products) + 1))):
            kept = masks.unpack(packed[rows[here, None], places], whole * size)
            result[here] = kept.flatten(1) @ products
        return result

    @torch.no_grad()
    def unit_moments(self, inputs: Tensor, output_gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance over the tasks, all superposed alike, of what each unit adds to the derivatives.

        The mean is exact. The variance is what it would be if the bits of a mask were independent. Third comes what a
        single bit of the unit adds at the most.

        Args:
            inputs, output_gradients: as in ``coefficient_gradients``.

        Returns:
            Three of (b, out).
        """
        assert self.effective is not None
        effective, weight = self.effective.flatten(1), self.weight.flatten(1)
        kept = effective * (weight - effective)  # W² p (1 - p), for a share p of the masks that keep the weight
        if inputs.shape[1] == 1:
            x, g = inputs[:, 0], output_gradients[:, 0]
            largest = g.abs() * x.abs().amax(1, keepdim=True) * weight.abs().amax(1)
            return g * (x @ effective.T), g.square() * (x.square() @ kept.T), largest
        moments = output_gradients.new_empty(3, len(inputs), len(weight))
        for unit in range(len(weight)):
            gradient = (output_gradients[:, None, :, unit] @ inputs)[:, 0]  # (b, n / out)
            moments[0, :, unit], moments[1, :, unit] = gradient @ effective[unit], gradient.square() @ kept[unit]
            moments[2, :, unit] = (gradient * weight[unit]).abs().amax(1)
        return moments[0], moments[1], moments[2]

    @torch.no_grad()
    def add_unit_gradients(
        self,
        tasks: Sequence[int],
        inputs: Tensor,
        output_gradients: Tensor,
        chosen: Tensor,
        result: Tensor,
        coarse: bool = False,
    ) -> Tensor:
        """Add to ``result`` (b, k) what some units add to ``coefficient_gradients``.

        For a unit at a time, the losses that chose it have a table of sums for each few bits of a mask: a mask is a
        sum of rows, an eighth or a quarter of the additions and nothing to unpack.

        Args:
            inputs, output_gradients: as in ``coefficient_gradients``.
            chosen: which units of each loss, bool (b, out).
            coarse: whether what bits add may be rounded, so that two losses share a number; half the work.

        Returns:
            The variance that rounding adds to each loss's sums over independent bits, at the most: (b,).
        """
        rows, weight = self._rows(tasks), self.weight.flatten(1)
        size, wide = weight.shape[1], len(rows) >= BYTES
        coarse &= size <= masks.PAIRED // 4
        variance = result.new_zeros(len(result))
        together = 2 * TABLES if coarse else TABLES
        losses = {unit: chosen[:, unit].nonzero().flatten() for unit in chosen.any(0).nonzero().flatten().tolist()}
        for _, near in groupby(losses, lambda unit: unit * size // (8 * NEAR)):
            units = list(near)
            first = units[0] * size // 8
            here = self.packed[:, first : math.ceil((units[-1] + 1) * size / 8)].index_select(0, rows)
            for unit in units:
                begin, lead = divmod(unit * size, 8)
                end = math.ceil((unit * size + size) / 8)
                places = masks.table_places(here[:, begin - first : end - first], wide)
                for some in losses[unit].chunk(math.ceil(len(losses[unit]) / together)):
                    if inputs.shape[1] == 1:
                        products = output_gradients[some, :, unit] * inputs[some, 0]
                    else:
                        products = (output_gradients[some, None, :, unit] @ inputs[some])[:, 0]
                    products = products * weight[unit]
                    if coarse:
                        products, scale, lost = masks.pair(products)
                        variance[some] += lost
                    products = F.pad(products, (lead, 8 * (end - begin) - lead - size))
                    sums = F.embedding_bag(places, masks.table_sums(products, wide), mode="sum")  # (masks, losses)
                    sums = sums.T.contiguous()
                    result.index_add_(0, some, masks.parted(sums, scale) if coarse else sums)
        return variance

    def _rows(self, tasks: Sequence[int]) -> Tensor:
        """Where in ``packed`` the masks of ``tasks`` lie, int64 (k,).

        Raises:
            IndexError: one of them is not learned.
        """
        if unknown := set(tasks) - self.learned:
            self.row(min(unknown))  # it may not even be a task
            raise IndexError(f"task {min(unknown)} is not learned, so it has no mask")
        if self.rows == self.num_tasks:
            return torch.as_tensor(np.asarray(tasks), device=self.packed.device)
        return torch.tensor([self.row(task) for task in tasks], device=self.packed.device)


class Threshold(Masked):
    """Keeps the weights whose score is not negative, ``M = [S >= 0]`` (paper, section 3.2)."""

    def binarise(self, magnitude: Tensor) -> Tensor:
        return masks.threshold(magnitude)


class TopK(Masked):
    """Keeps the fraction ``k`` of the weights with the largest ``|S|`` (paper, section 4.1).

    ``dropped`` is the number of weights that are not kept: ``int((1 - k) * n)`` of ``n``.
    """

    def __init__(self, shape: Sequence[int], options: LayerOptions):
        super().__init__(shape, options)
        self.dropped = masks.dropped_weights(self.weight.shape, options.sparsity, options.er_sparsity)

    def magnitude(self, scores: Tensor) -> Tensor:
        return scores.abs()

    def binarise(self, magnitude: Tensor) -> Tensor:
        return masks.top_k(magnitude, self.dropped)


def mask_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """The shape of the weight of every layer that has a mask for each task, by the layer's name.

    In ``task_state`` the mask of the layer ``name`` is ``name.mask``, bit-packed.
    """
    return {name: module.weight.shape for name, module in multitask.named(model, Masked)}


def only_masks(model: nn.Module) -> bool:
    """Whether masks are all that belongs to a task."""
    return all(isinstance(module, Masked) for _, module in multitask.named(model, multitask.MultitaskModule))


def plain_name(name: str) -> str:
    """What a user calls the weight that a layer masks: ``fc`` or ``fc.weight``, not the way to its parametrization."""
    return name.removesuffix(".0").replace("parametrizations.", "") if ".parametrizations." in f".{name}" else name


def kept_fractions(model: nn.Module, task: int) -> dict[str, float]:
    """The share of its weights that ``task`` keeps in each masked layer, and ``total`` over the network."""
    layers = dict(multitask.named(model, Masked))
    rows = {name: module.packed[module.row(task)].cpu().numpy() for name, module in layers.items()}
    sizes = {name: module.weight.numel() for name, module in layers.items()}
    kept = {name: int(np.unpackbits(row, count=sizes[name]).sum()) for name, row in rows.items()}
    fractions = {plain_name(name): kept[name] / sizes[name] for name in kept}
    if sizes:
        fractions["total"] = math.fsum(kept.values()) / sum(sizes.values())
    return fractions
