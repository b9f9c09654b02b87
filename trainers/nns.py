"""Learning with no task identity at all: NNs (paper, section 3.5).

The learner sees a stream of batches. Every so many of them it infers, as at test time, which of its masks explains the
current one; when none stands out the data are new and get a mask of their own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from models import masked, multitask, superposition
from models.multitask import Rng
from trainers.default import DefaultTrainer, Learned
from trainers.inference import alpha_gradients, entropy, uniform
from trainers.options import TrainingOptions
from utils.checkpoint import joined, named_part
from utils.errors import UserError
from utils.optim import load_state_tensors, state_tensors

FEWEST = 5  # masks that a decision compares, unallocated ones among them while there are fewer
FORGETS = 0.05  # the weight of the last batch in the usual loss
ALLOCATE, GO_ON, SKIP = "allocate", "go on", "skipped"
KINDS = (ALLOCATE, GO_ON, SKIP)


@dataclass
class Decision:
    """What was decided at one batch.

    Attributes:
        batch: its number in the stream.
        hidden_task: the task that its data are of, which the learner never sees.
        decision: one of ``KINDS``.
        mask: the allocated or chosen mask; for a skipped batch the one that explains it best.
        strength: ``k * max(nu)``; below ``1 + epsilon`` the data are new.
        right: a hidden task's first decision is right if it allocates; a later one if it goes on with the first mask
            that was allocated for the task. Once the budget is used up, to skip a task without a mask is right.
    """

    batch: int
    hidden_task: int
    decision: str
    mask: int
    strength: float
    right: bool


class NNsTrainer(DefaultTrainer):
    """Trains one mask after the other and decides by itself which, every ``nns_every`` batches.

    With ``k`` masks, ``alpha_i = 1/k`` and ``nu = softmax(-∂H/∂alpha)``, the data are new if
    ``k * max(nu) < 1 + nns_epsilon``, and then a mask is allocated, up to ``num_tasks`` of them; else the mask
    ``argmax nu`` goes on training. With ``nns_surprise`` it decides between these as well: before it trains on a batch
    whose loss is more than so many times the usual one of the mask in training, a running mean of the losses since the
    mask was chosen; the next ``nns_every`` count from there. While fewer than five masks are allocated, others take
    part with their initial scores to make up five; data that one of these explains best are new too. When no mask is
    left, batches that ask for one are skipped until the next decision.

    A hidden task has ``iter_lim`` batches, and with ``stream_jitter`` n up to n more or fewer, drawn for each, so that
    its end need not be where a decision falls.

    The tasks that ``begin_task`` names are the hidden ones: they go into the table of decisions and nowhere else.
    Scores of the masks stay in host memory, so that each can go on training. The optimiser's state stays as long as a
    mask is trained, across hidden tasks too, and starts afresh when another is chosen.
    """

    tasks_known = False
    room = FEWEST

    def __init__(self, model: nn.Module, options: TrainingOptions, rng: Rng):
        super().__init__(model, options, rng)
        self.decisions: list[Decision] = []
        self.budget = options.num_tasks or 1  # of masks
        self._allocated = 0  # masks 0 ... so many - 1
        self._current: int | None = None  # the mask that the last decision chose; None: batches are skipped
        self._batches_seen = 0
        self._scores: dict[int, dict[str, Tensor]] = {}
        self._usual: float | None = None  # the loss of batches in its training; None before the first
        self._optimizer_state: dict[str, Tensor] = {}  # of the current mask, when it is not in training
        self._changed: set[int] = set()  # masks that batches of this hidden task trained
        self._trained: dict[int, Counter] = {}  # for each hidden task, how many of its batches trained which mask
        self._own: dict[int, int] = {}  # the first mask that was allocated for a hidden task

    def check(self, tasks: Iterable[int]) -> None:
        super().check(tasks)
        if not superposition.can_superpose(self.model):
            raise UserError(
                "`conv_type`: trainer nns needs masks that can be superposed, such as FastMultitaskMaskConv's"
            )
        if not masked.only_masks(self.model):
            raise UserError(
                "`conv_type`, `bn_type`: trainer nns keeps masks alone, so no other state may belong to a task"
            )

    def begin_task(self, task: int) -> None:
        self.task = task
        self._changed = set()
        self._count([task])
        self._trained[task] = Counter()
        for mask in range(self._allocated, FEWEST):  # with the bits of their initial scores
            multitask.begin_task(self.model, mask, self.rng)
            multitask.end_task(self.model)
        self._resume()

    def _resume(self) -> None:
        """Go on with the mask that was in training."""
        if self._current is not None:
            self._open(self._current)
        elif self.decisions:  # batches are being skipped: test with the mask that explained the last ones best
            multitask.select_task(self.model, self.decisions[-1].mask)

    def end_task(self) -> Learned:
        if self._current is not None:
            self._close()
        return self._learned(self.task, self._note())

    def step(self, x: Tensor, y: Tensor) -> Tensor | None:
        if self._due() or self._surprises(x, y):
            self._decide(x)
        self._batches_seen += 1
        if self._current is None:
            return None
        self._trained[self.task][self._current] += 1
        self._changed.add(self._current)
        return super().step(x, y)

    @property
    def _limit(self) -> int | None:
        o = self.options
        if not o.stream_jitter or o.iter_lim is None:
            return o.iter_lim
        length = torch.randint(-o.stream_jitter, o.stream_jitter + 1, (), generator=self.rng("length", self.task))
        return o.iter_lim + int(length)

    def _due(self) -> bool:
        """Whether the last decision is ``nns_every`` batches ago, so that a new mask has been trained as long."""
        return not self.decisions or self._batches_seen - self.decisions[-1].batch >= self.options.nns_every

    @torch.no_grad()
    def _surprises(self, x: Tensor, y: Tensor) -> bool:
        """Whether the mask in training does far worse on a batch, as in a test, than it did on those before."""
        if self.options.nns_surprise is None or self._current is None:
            return False
        self.model.eval()  # draws nothing, and leaves statistics as they are
        loss = float(self._losses(x, y))
        self.model.train()
        usual = loss if self._usual is None else self._usual
        self._usual = FORGETS * loss + (1 - FORGETS) * usual
        return loss > self.options.nns_surprise * usual

    def _decide(self, x: Tensor) -> None:
        """Choose the mask that goes on training with the batch ``x`` (batch, channels, height, width)."""
        before = self._current
        if before is not None:
            multitask.keep_task(self.model)
        masks = range(max(self._allocated, FEWEST))
        self.model.eval()
        gradient = alpha_gradients(self.model, masks, uniform(len(masks), x.device), x[None], entropy)[0]
        gradient = gradient.cpu()  # all that is decided hangs on it: a GPU is waited for once
        self.model.train()
        strength, nearest = (len(masks) * (-gradient).softmax(0)).max(dim=0)
        new = bool(strength < 1 + self.options.nns_epsilon) or int(nearest) >= self._allocated
        if not new:
            kind, mask = GO_ON, int(nearest)
        elif self._allocated < self.budget:
            kind, mask = ALLOCATE, self._allocated
            self._allocated += 1
        else:
            kind, mask = SKIP, int(gradient[: self._allocated].argmin())
        self._write_down(kind, mask, float(strength))
        if kind == GO_ON and mask == before:
            superposition.train_again(self.model)
            return
        if before is not None:
            self._close()
        if mask != before:
            self._optimizer_state, self._usual = {}, None
        if kind == SKIP:
            self._current = self._usual = None
            multitask.select_task(self.model, mask)  # for the tests in between
        else:
            self._open(mask)

    def _write_down(self, kind: str, mask: int, strength: float) -> None:
        hidden = self.task
        first = all(decision.hidden_task != hidden for decision in self.decisions[-1:])
        full = self._allocated == self.budget and kind != ALLOCATE
        if hidden in self._own:
            right = kind == GO_ON and mask == self._own[hidden]
        else:
            right = kind == SKIP if full else first and kind == ALLOCATE
        if kind == ALLOCATE:
            self._own.setdefault(hidden, mask)
        self.decisions.append(Decision(self._batches_seen, hidden, kind, mask, strength, right))

    def _open(self, mask: int) -> None:
        """Go on training ``mask`` where it was left; a new one starts from its initial scores."""
        self._prepare(mask)
        multitask.set_task_values(self.model, self._scores.get(mask, {}))
        if self._optimizer_state:
            load_state_tensors(self.optimizer, self._optimizer_state)
        self._current = mask

    def _close(self) -> None:
        """Put the mask in training by: its bits into the model, all that it needs to go on into host memory."""
        assert self._current is not None
        self._scores[self._current] = multitask.task_values(self.model)
        self._optimizer_state = state_tensors(self.optimizer)
        multitask.end_task(self.model)

    def task_record(self, task: int) -> dict[str, Tensor]:
        decisions = [decision for decision in self.decisions if decision.hidden_task == task]
        tensors = {
            "state": torch.tensor(
                [-1 if self._current is None else self._current, self._allocated, self._batches_seen]
            ),
            f"trained.{task}": torch.tensor(list(self._trained[task].items())).reshape(-1, 2),
            f"decisions.{task}": torch.tensor(
                [[d.batch, KINDS.index(d.decision), d.mask, d.strength, d.right] for d in decisions],
                dtype=torch.float64,
            ).reshape(-1, 5),
        }
        if self._usual is not None:
            tensors["usual"] = torch.tensor(self._usual, dtype=torch.float64)
        for mask in self._changed:
            tensors |= {f"scores.{mask}.{name}": scores for name, scores in self._scores[mask].items()}
        return tensors | {f"optimizer.{name}": value for name, value in self._optimizer_state.items()}

    def training_record(self) -> dict[str, Tensor]:
        """As if the hidden task ended here, for to the learner it is nothing when one ends."""
        current = self._current
        if current is not None:
            self._close()
        record = joined({"task": self.task_record(self.task)})
        if current is not None:
            self._open(current)
            self.model.train()
        return record | self._place()

    def load_training_record(self, record: dict[str, Tensor]) -> None:
        task = named_part(record, "task")
        self.load_task_record(self.task, task)
        self._resume()
        self._load_place(record)

    @property
    def rate(self) -> float:
        return self.options.lr

    def _set_rate(self, epoch: int) -> None:
        """Nothing: the learning rate is constant."""

    def check_progress(self, accuracies: Sequence[float]) -> None:
        """Nothing: which mask a hidden task trains is the learner's own choice."""

    def load_task_record(self, task: int, record: dict[str, Tensor]) -> Learned:
        self._optimizer_state, self._usual = {}, None
        loaded: dict[int, dict[str, Tensor]] = {}
        for name, tensor in record.items():
            kind, _, rest = name.partition(".")
            if kind == "scores":
                number, _, parameter = rest.partition(".")
                loaded.setdefault(int(number), {})[parameter] = tensor
            elif kind == "optimizer":
                self._optimizer_state[rest] = tensor
            elif kind == "trained":
                self._trained[task] = Counter(dict(tensor.tolist()))
            elif kind == "decisions":
                for batch, which, mask, strength, right in tensor.tolist():
                    decision = Decision(int(batch), task, KINDS[int(which)], int(mask), strength, bool(right))
                    self.decisions.append(decision)
                    if decision.decision == ALLOCATE:
                        self._own.setdefault(task, decision.mask)
            elif kind == "state":
                current, self._allocated, self._batches_seen = tensor.tolist()
                self._current = None if current < 0 else current
            elif kind == "usual":
                self._usual = float(tensor)
        self._scores |= loaded
        self._changed = set(self._trained.get(task, ()))  # of some a later record has the scores
        for mask in loaded:
            multitask.begin_task(self.model, mask, self.rng)
            multitask.set_task_values(self.model, loaded[mask])
            multitask.end_task(self.model)
        return self._learned(task)

    def _learned(self, task: int, note: str = "") -> Learned:
        """What came of a hidden task: its mask is the one that most of its batches trained."""
        most = self._trained[task].most_common(1)
        rows = [asdict(decision) for decision in self.decisions if decision.hidden_task == task]
        return Learned(task, most[0][0] if most else None, sorted(self._changed), note, {"nns.csv": rows})

    def _note(self) -> str:
        """Which masks the hidden task trained, and the share of right decisions so far."""
        trained = self._trained[self.task]
        text = ", ".join(f"{count} batches trained mask {mask}" for mask, count in trained.most_common())
        if skipped := self.batches_done - trained.total():
            text += f"{', ' if text else ''}{skipped} batches skipped, for they asked for more than the "
            text += f"{self.budget} masks of `num_tasks`"
        right = sum(decision.right for decision in self.decisions)
        return (
            f"hidden task {self.task}: {text}; {self._allocated} masks allocated; "
            f"{right} of {len(self.decisions)} decisions right ({right / len(self.decisions):.1%})"
        )
