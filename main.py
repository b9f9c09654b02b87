"""From the command line to a run, and what its exit status means. ``python main.py --help`` lists the flags."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

from utils.signals import Signals, end_at_once

if __name__ == "__main__":
    end_at_once("main.py")

from args import parse_arguments, with_flags
from trainers.checks import check_same
from trainers.options import Settings
from utils.cores import sleep_while_waiting
from utils.errors import Stopped, UserError, complain, no_memory, out_of_memory, stopping
from utils.output import is_output, lasting_output

if __name__ == "__main__":
    sleep_while_waiting()
    # help and wrong flags do not wait for torch, which takes seconds to load
    with lasting_output():
        try:
            parse_arguments()
        except UserError as error:
            sys.exit(complain(error))

from trainers import predict
from trainers.entries import began_with, has_imported, settings_beside, settings_of_run
from trainers.export import check_export, read_export
from trainers.fit import check_fit, check_room, without_effect
from trainers.merge import Part, read_part
from trainers.original import as_import, check_trainer, settings_told
from trainers.run import Run, report, told_apart_by_chance
from trainers.setup import build, find_data, join, merge, plan_of, recall, set_up, settle_threads
from utils.checkpoint import Record
from utils.files import write_out
from utils.original import is_original, read_original
from utils.parallel import Group, group_of
from utils.results import Results, to_csv
from utils.run import RunFolder
from utils.settings import NETWORK, OUTCOME

BY_CHANCE = (
    "the tasks of batches are found no more often than by chance; give them (--adaptor gt, or --task-eval with "
    "--predict), or infer in another way: docs/inference.md"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Returns:
        The exit status: 0; 2, with one line, for bad input; 1, with one line, when the run could not go on; 128 + its
        number, with one line, after a signal that asks it to end (130 for SIGINT, 143 for SIGTERM).
    """
    with lasting_output(), Signals() as signals:
        try:
            notes: list[str] = []
            settings = parse_arguments(argv, notes=notes)
            if settings.predict is not None:
                answer(argv, settings)
                return 0
            settings, imported, parts = bring(argv, settings)
            for note in notes:
                print(f"note: {note}", flush=True)
            run(settings, signals, imported, parts)
        except (UserError, Stopped) as error:
            return complain(error, with_flags)
        except (ImportError, MemoryError, OSError, RuntimeError) as error:
            if not no_memory(error):
                raise
            return complain(out_of_memory(error))  # before there was anything to save
    return 0


def say(text: str) -> None:
    """Print a line in which settings are called by their flags."""
    print(with_flags(text), flush=True)


def bring(argv: Sequence[str] | None, settings: Settings) -> tuple[Settings, list[Record], list[Part]]:
    """What a run begins with beside its own checkpoint: settings that need not be given again, and what was learned.

    Returns:
        The settings; the records of what is imported, and the runs to merge, if there are any.

    Raises:
        UserError: a file cannot be read, or the command line wants another network.
    """
    runs = settings.merge or ()
    parts = [read_part(Path(run)) for run in runs]
    imported: list[Record] = []
    path = next((path for path in (settings.resume, settings.import_file) if path), None)
    if settings.resume and settings.import_file and is_original(Path(settings.resume)):
        raise UserError("`import_file` and `resume`: a run starts from one file of the original code")
    if path is not None and is_original(Path(path)):
        original = read_original(Path(path))
        check_trainer(original, settings.trainer, path)
        told = settings_told(original, (NETWORK | OUTCOME) - {"reinit_from"}, path)
        settings, theirs = (parse_arguments(words, told, source=path) for words in (argv, []))
        check_same(path, vars(theirs), vars(settings), NETWORK)
        imported = [as_import(original, settings, path)]
        settings.import_file = path
        if not _goes_on(settings):
            settings.resume = None  # it goes on in a folder of its own
    elif _goes_on(settings) and (told := settings_of_run(settings.checkpoint, settings.set)):
        told = _told_by(parts) | told
        brought = str(told.pop("import_file", "")) or None
        settings = parse_arguments(argv, told, source=str(settings.checkpoint))
        if brought and settings.import_file and os.path.basename(brought) != os.path.basename(settings.import_file):
            why = f"{settings.checkpoint}, which goes on, began with {brought}; leave it out, or give another `name`"
            raise UserError(f"`import_file` {settings.import_file}: {why}")
        settings.import_file = brought or settings.import_file
    elif settings.import_file:
        path = settings.import_file
        told, imported = read_export(Path(path))
        network = {name: value for name, value in told.items() if name in NETWORK}
        settings = parse_arguments(argv, network, source=f"`import_file` {path}")
        check_same(path, network, vars(settings) | {"model": settings.model_name}, NETWORK)
    elif parts:
        settings = parse_arguments(argv, _told_by(parts), source=f"`merge` {runs[0]}")
    if _goes_on(settings):
        if settings.unshared_labels is None:  # as the run began, whatever is usual since
            settings.unshared_labels = began_with(settings.checkpoint, "unshared_labels")
        if settings.import_file and not has_imported(settings.checkpoint):
            why = f"{settings.checkpoint}, which goes on, has nothing of it; leave it out, or give another `name`"
            raise UserError(f"`import_file` {settings.import_file}: {why}")
        imported = []  # the checkpoint has it
    return settings, imported, parts


def _told_by(parts: Sequence[Part]) -> dict[str, Any]:
    """The settings that runs to merge have, of what they learned; none without any."""
    return {name: value for part in parts[:1] for name, value in part.settings.items() if name in NETWORK | OUTCOME}


def _goes_on(settings: Settings) -> bool:
    """Whether a run goes on from a checkpoint of its own."""
    if settings.resume is None or is_original(settings.checkpoint):
        return False
    return os.path.isfile(settings.checkpoint) and os.path.getsize(settings.checkpoint) > 0


def answer(argv: Sequence[str] | None, settings: Settings) -> None:
    """Answer for the images of ``--predict`` with what a run has learned: a CSV.

    Raises:
        UserError: the run, its data or the images are not there, or nothing is learned.
    """
    checkpoint, told = settings_beside(Path(settings.resume or ""))
    settings = parse_arguments(argv, told, source=str(checkpoint.with_name("settings.yaml")))
    rows, notes = predict.rows(settings, told, checkpoint)
    for note in notes:
        print(f"note: {with_flags(note)}", file=sys.stderr)
    text = to_csv(list(rows[0]), rows)
    if settings.out is None or is_output(settings.out):
        sys.stdout.write(text)
        return
    try:
        write_out(settings.out, text)
    except OSError as error:
        raise UserError(f"--out {settings.out}: {error.strerror}") from None


def run(settings: Settings, signals: Signals, imported: Sequence[Record] = (), parts: Sequence[Part] = ()) -> None:
    """Learn the tasks and evaluate.

    Args:
        signals: what may ask the run to stop.
        imported: the records of what is imported.
        parts: the runs to merge.

    Raises:
        UserError: the input is wrong; before anything is written.
        Stopped: the run could not go on.
    """
    if settings.data is None and (told := find_data(settings)):
        say(told)
    devices = set_up(settings)[: 1 if parts else None]
    may_grow = settings.num_tasks is not None  # told how many tasks there are, a run may have more than it began with
    data, model, trainer = build(settings, devices[0], Group(0, len(devices)))
    check_fit(settings, data, model, trainer)
    fingerprint = data.fingerprint()
    may_grow = may_grow and trainer.tasks_known and not data.depend_on_number
    notes = [*data.notes]
    merged = merge(settings, parts, fingerprint, model, notes) if parts else {}
    record = recall(settings, model, trainer, fingerprint, imported, may_grow)
    record.merged = merged
    known = len({*record.learned, *settings.tasks_to_learn})
    check_room(settings, known)
    idle = without_effect(settings, known, model, len(record.learned), record.evaluations)
    for note in [*notes, *idle]:
        say(f"note: {note}")
    threads = settle_threads(settings, data.input_shape, devices, record.identity.threads)
    folder = claim(settings)
    try:
        with stopping(), signals.waiting():
            record.open(folder)
            if folder.path.name != settings.name:
                wanted = settings.folder
                folder.log(
                    f"note: {wanted} is there, so this run is {folder.path.name}; --resume goes on with {wanted}"
                )
            folder.log(threads)
            if classes := data.classes_told():
                folder.log(classes)
            with group_of(devices, join, settings, fingerprint, imported, may_grow, words=with_flags) as group:
                trainer.join(group)
                Run(plan_of(settings), data, model, trainer, record, folder, signals).learn()
            report(record, folder, settings.export)
            if told_apart_by_chance(record):
                folder.log(f"note: {BY_CHANCE}")
            folder.finish()
    except Stopped as error:
        hint = "; --on-nan skip would leave it out" if trainer.failed and settings.on_nan == "stop" else ""
        stopped = Stopped(f"{error}{hint}; {record.saved()}", error.status)
        folder.keep(f"stopped: {stopped}")
        raise stopped from error
    finally:
        folder.close()


def claim(settings: Settings) -> RunFolder:
    """The run's folder, once it is known that what is written beside it can be.

    Raises:
        UserError: something cannot be written, or would take the place of another file.
    """
    folder = settings.folder
    for name, value in (vars(settings) | {"log_dir": os.path.realpath(folder)}).items():
        try:
            str(value).encode()
        except UnicodeEncodeError:  # of the folder that this process works in, or of the project's
            why = "cannot be written down, for a name in it is no UTF-8; rename that folder or say another"
            raise UserError(f"`{name}` {value}: {why}") from None
    Results(folder.parent / "results.csv").check()
    if settings.export is not None:
        check_export(Path(settings.export), folder)
    return RunFolder(folder.parent, folder.name, resume=settings.resume is not None, words=with_flags)


if __name__ == "__main__":
    sys.exit(main())
