"""The test split of a run's study, read for its teacher and all students that it keeps."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from kdsearch.analysis.frames import Frame, frames, make_frame, reading_rows
from kdsearch.commands.check import adapt_study
from kdsearch.commands.display import Display
from kdsearch.core.devices import check_device
from kdsearch.core.errors import KdsearchError, translate_machine_errors
from kdsearch.core.files import as_path
from kdsearch.core.locks import lock_folder
from kdsearch.core.maths import own_generators, usual_modes
from kdsearch.core.terminal import number_of, option
from kdsearch.core.values import Batch
from kdsearch.data.batches import batches_in_order, first_batch, place_data
from kdsearch.data.items import MapStyle, length
from kdsearch.networks.factories import check_network, check_weights
from kdsearch.networks.outputs import arrange_network
from kdsearch.networks.teachers import Recipe
from kdsearch.networks.weights import load_weights
from kdsearch.probe.evaluation import LEAST_BATCH, measure_batches
from kdsearch.study.fingerprint import image_keys
from kdsearch.study.preflight import check_inputs
from kdsearch.study.run_folder import (
    WRITERS,
    check_inside,
    check_readings,
    describe_readings,
    keep_reading,
    read_readings,
    read_result,
    read_study,
    trial_folder,
)
from kdsearch.study.study import Study, load_study
from kdsearch.study.survey import digest_split, shared_items, wrong_images, wrong_targets
from kdsearch.study.wiring import study_task
from kdsearch.tasks import Classification
from kdsearch.tasks.metrics import ACCURACY, metric_name

COMMAND = "kdsearch evaluate"
STUDENT = "student.safetensors"


@dataclass(frozen=True)
class Kept:
    """A student that a run folder keeps."""

    run: str
    path: Path  # of its weights
    seed: int | None
    value: float | None  # of the metric on search-validation
    value_se: float | None
    is_winner: bool | None = False


@usual_modes()
def evaluate_run(
    folder: Path | str,
    *,
    study: Study | str | Path | None = None,
    device: str | None = None,
    storage: str | None = None,
    quiet: bool = False,
) -> Frame:
    """Measure the teacher and all kept students of a run folder on the test split of its study.

    Each network is a line of the folder's `test_readings.jsonl` and a row of the frame `evaluations` as soon as it is
    measured, and whoever reads the split again is told. Nothing is trained, and nothing is selected: the winner is that
    of search-validation.

    Args:
        study: A `Study`, or the name or path of a study file, which is run. Never the folder's copy unless that is
            named.
        device: In place of the study's.
        storage: Database URL of a search that kept its trials outside its folder.

    Returns:
        The rows of this reading, as the frame `evaluations`.

    Raises:
        KdsearchError: no run folder, or one without students; no study named, or one that is not that of the run; no
            test split.
    """
    folder = as_path(folder)
    students = kept_students(folder, storage)
    found = adapt_study(_study_of(folder, study), device=device)
    check_device(found.device)
    task, test = check_own_study(folder, found)
    with (
        Display(metric_name(found.metric), quiet=quiet) as display,
        own_generators(found.device),
        translate_machine_errors(f"the evaluation in {folder}"),
        lock_folder(folder, "search", WRITERS),  # whoever searches in the folder writes into it too
    ):
        shape = check_inputs(found, found.device)["search_validation"].images.shape[1:]
        for student in students:  # all of them, before the split is read
            _load_student(found, student)
        told, teacher = read_study(folder), _teacher(folder, found, display)
        check_readings(folder)
        before = read_readings(folder)
        announce_test(found, test, len(students) + (teacher is not None), display)
        data = place_data(test, readers=found.readers, device=found.device)
        digest = digest_test(found, data, shape, task)
        for line in describe_readings(before, digest):
            display.say(line)
        reading = _Reading(folder, found, task, data, shape, digest, datetime.now(UTC))
        _say_row(display, students, "", "test", "search-validation")
        if teacher is not None:
            result = reading.measure(teacher, "teacher")
            known = told.teacher_accuracy if display.scale.name == ACCURACY else None
            _say_row(display, students, "teacher", _written(display, *result), _written(display, known))
        for student in students:
            result = reading.measure(_load_student(found, student), student.run, student.seed)
            selected = "winner, selected on search-validation" if student.is_winner else ""
            there = _written(display, student.value, student.value_se)
            _say_row(display, students, student.run, _written(display, *result), there, selected)
        for line in _explain(students):
            display.say(line)
        return make_frame("evaluations", reading_rows(told.study, read_readings(folder)[len(before) :]))


@dataclass(frozen=True)
class _Reading:
    """One reading of the test split of a study, of which each network is kept as soon as it is measured."""

    folder: Path
    study: Study
    task: Classification
    test: MapStyle
    shape: torch.Size  # of an image
    digest: str  # of the split
    read_at: datetime

    def measure(self, network: nn.Module, run: str, seed: int | None = None) -> tuple[float, float]:
        """The study's metric, and its standard error."""
        start, place = time.perf_counter(), self.study.device
        arrange_network(network, place, channels=self.shape[0])
        looked_at = checked_batches(self.study, self.test, self.shape, self.task)
        result = measure_batches(network, looked_at, self.task, place, self.study.metric, who=run)
        row = {"run": run, "seed": seed, "value": result.value, "value_se": result.value_se,
               "images": length(self.test), "metric": metric_name(self.study.metric),
               "digest": self.digest, "seconds": time.perf_counter() - start,
               "read_at": self.read_at.isoformat(), "command": COMMAND}  # fmt: skip
        keep_reading(self.folder, row)
        return result.value, result.value_se


def _written(display: Display, value: float | None, error: float | None = None) -> str:
    return "" if value is None else display.scale.text(value, error)


def _say_row(display: Display, students: Iterable[Kept], run: str, *cells: str) -> None:
    """A row of the table, said as soon as it is known."""
    width = max(len("teacher"), *(len(student.run) for student in students))
    display.say("  ".join([f"{run:{width}}", *(f"{cell:17}" for cell in cells)]).rstrip())


def kept_students(folder: Path, storage: str | None = None) -> list[Kept]:
    """The students that a run folder keeps: of references, of trials, and the one trained with the policy.

    Raises:
        KdsearchError: no run folder; none is kept.
    """
    trials = frames(folder, storage=storage, only=("trials",))["trials"].query("state == 'COMPLETE'")
    trials = trials.sort_values("trial", na_position="first", kind="stable")
    found = []
    for row in trials.astype(object).where(trials.notna(), None).to_dict("records"):
        number = row["trial"]
        place = folder / "references" / row["run"] if number is None else trial_folder(folder, number)
        measured = (row[name] for name in ("seed", "value", "value_se", "is_best"))
        found.append(Kept(row["run"], place / STUDENT, *measured))
    if result := read_result(folder, folder / "train"):
        found.append(Kept("train", folder / "train" / STUDENT, None, result.value, result.value_se))
    there = [student for student in found if student.path.is_file()]
    for student in there:
        check_inside(folder, student.path)
    if not there:
        raise KdsearchError(
            f"{folder}: no student is kept there; a search keeps one of each reference and trial it ends"
        )
    return there


def _study_of(folder: Path, study: Study | str | Path | None) -> Study:
    """The study that is given; a file of the run folder is run only where the user names it."""
    if isinstance(study, Study):
        return study
    if study is not None:
        return load_study(str(study))[0]
    kept = folder / "study.py"
    copy = f"; the copy that the search kept is {kept}" if kept.is_file() else ""
    raise KdsearchError(f"{folder}: evaluating runs the study: name it, {option('study', 'STUDY')}{copy}")


def check_own_study(folder: Path, study: Study) -> tuple[Classification, MapStyle]:
    """Task and test split of a study that is the run's.

    Raises:
        KdsearchError: another study, or other classes; no test split.
    """
    told, task = read_study(folder), study_task(study)
    if study.name != told.study:
        raise KdsearchError(f"{folder} is a run of the study {told.study}, not of {study.name}; allowed: its own study")
    if (metric := metric_name(study.metric)) != told.metric:
        raise KdsearchError(
            f"study {study.name} has the metric {metric}, not {told.metric} as when it was searched in {folder}; "
            "allowed: the same one"
        )
    if told.classes and list(task.class_names) != told.classes:
        now, then = len(task.class_names), len(told.classes)
        differ = f"{now} classes, {then}" if now != then else "other names of its classes than"
        raise KdsearchError(f"study {study.name} has {differ} when it was searched in {folder}; allowed: the same ones")
    if study.test is None:
        raise KdsearchError(
            f"study {study.name} has no test split; allowed: Study(test=...), images nobody has looked at"
        )
    return task, study.test


def _load_student(study: Study, student: Kept) -> nn.Module:
    """A student with the weights that are kept.

    Raises:
        KdsearchError: they no longer fit what the study makes.
    """
    network = study.fresh_student(study.device)
    try:
        return load_weights(network, student.path)
    except KdsearchError as error:
        said = "; ".join(line.strip() for line in str(error).splitlines())
        raise KdsearchError(f"{said}; allowed: the study with the student that {student.run} has trained") from None


def _teacher(folder: Path, study: Study, display: Display) -> nn.Module | None:
    """The teacher; none where its recipe would have to train it."""
    network, path = study.teacher, folder / "teacher.safetensors"
    if isinstance(network, Recipe):
        if not path.is_file():
            display.say(f"the teacher is left out: its weights are not kept as {path}")
            return None
        network = network.load(path)
    check_weights(check_network(network, "teacher"), "teacher")
    return network


def announce_test(study: Study, test: MapStyle, networks: int, display: Display) -> None:
    """What is read, and whether its images are new."""
    display.say(f"study {study.name}: {number_of(networks, 'network')} on {number_of(length(test), 'test image')}")
    splits = {"train": study.train, "search-validation": study.search_validation, "confirm": study.confirm}
    for name, data in splits.items():
        if data is not None and (share := shared_items(data, test)):
            display.say(f"warning: {share:.1%} of the test images are in {name} (the same items): they are not new")


def digest_test(study: Study, test: MapStyle, shape: torch.Size, task: Classification) -> str:
    """What tells the test split from another one; it is read once for that, and looked at before any network is."""
    try:
        first = first_batch(test, LEAST_BATCH, study.device)
    except KdsearchError as error:
        raise KdsearchError(f"test: {error}") from None
    parts = [(image_keys(part.images), part.target.cpu()) for part in checked_batches(study, test, shape, task)]
    keys, targets = (torch.cat(column) for column in zip(*parts, strict=True))
    return digest_split("test", study.test or test, first, keys, targets)[0]


def checked_batches(study: Study, test: MapStyle, shape: torch.Size, task: Classification) -> Iterator[Batch]:
    """The test split, each image and target looked at as the preflight does those of the other splits."""
    for part in batches_in_order(test, max(study.budget.batch, LEAST_BATCH), study.device):
        if found := wrong_images(part, shape) or wrong_targets(part, task):
            raise KdsearchError(f"test: {found}")
        yield part


def _explain(students: Iterable[Kept]) -> Iterator[str]:
    """What the numbers are, and what they are not."""
    if any(student.is_winner for student in students):
        yield (
            "The winner is that of search-validation, where the best of several noisy trials looks better than it is; "
            "the test split has selected nothing."
        )
    yield "± is one standard error over the images, of one student each: what another seed would change is not in it."
