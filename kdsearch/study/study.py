"""One question, its budget, and the file that asks it."""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from kdsearch.core.errors import KdsearchError
from kdsearch.core.html import html_facts, html_paragraph
from kdsearch.core.old_names import old_names
from kdsearch.core.terminal import escape_unprintable, number_of
from kdsearch.data.batches import ArrayData, first_batch, place_data
from kdsearch.data.folders import ImageFolder
from kdsearch.data.items import MapStyle
from kdsearch.data.loading import run_file
from kdsearch.distill.phase import OptimizerFactory, Precision, adamw
from kdsearch.distill.views import Views
from kdsearch.losses.logits import kd
from kdsearch.losses.loss import Loss
from kdsearch.losses.objectives import TST
from kdsearch.networks.factories import build_lazy, fresh_network, is_unbuilt
from kdsearch.networks.teachers import Recipe
from kdsearch.study.catalogue import find_shipped
from kdsearch.tasks.metrics import Metric

Saw = Literal["unknown", "none", "train", "both"]


@dataclass(frozen=True)
class Budget:
    """How much a search may spend: `epochs * steps` student steps a run, of `batch` images in two views each.

    Run are the references once, each trial, and on each seed of the confirmation the winner, its frozen policy and the
    references again: with a base view 6 references and 8 students a seed, without one 5 and 7, and 1 more of both with
    `bare_reference`.

    Args:
        trials: COMPLETE + PRUNED in all.
        epochs: Of a run; after each the student is measured on search-validation.
        steps: Student steps of an epoch: one batch, forward, backward and the optimizer.
        batch: Images of a student step.
        confirmation: At most so many fresh seeds for the winner and the references, with a look at the first 4 and 7 of
            10 or more; 0 leaves the confirmation out.
        policy_batch: Images of a policy step; half as many as of a student step where None.
        parts: Of a batch, one after another, for batches that do not fit into memory at once.
        look_images: Of search-validation, that each bin of the look for disagreement at a run's end sees, at random.
            Where this and the next two are None, they are as many as keep the student's forwards there at a quarter of
            the images of its training; a given number stays as it is.
        look_bins: Of each magnitude; 5 where they fit.
        look_operations: That are looked along, taken at random; 0 for none.
    """

    trials: int = 8
    epochs: int = 10
    steps: int = 30
    batch: int = 64
    confirmation: int = 4
    policy_batch: int | None = None
    parts: int = 1
    look_images: int | None = None
    look_bins: int | None = None
    look_operations: int | None = None


@old_names(workers="readers")
@dataclass(frozen=True)
class Study:
    """One question: which augmentation makes this student learn most from this teacher on these images?

    Args:
        name: Of the run folder.
        train: What the student and the policy learn from: any map-style data set of (image, label) items; images are
            float tensors (C, H, W) in [0, 1], uint8 tensors or PIL images, all of one size.
        search_validation: What trials are compared on.
        teacher: Any network from images in [0, 1] to logits, or a `Recipe` that trains one on the spot.
        student: Makes a fresh student.
        classes: How many, or their names.
        confirm: What the winner is confirmed on, images that no trial is compared on; a third of search_validation,
            which is then smaller, where None.
        test: Never touched by a search; for your own last measurement.
        space: Name of a shipped search space, or path of a TOML file.
        base: The base view that every image goes through before the policy, drawn afresh at each visit: "auto" for
            small shifts, flips, turns and scalings as far as the teacher tolerates them; None for images as they are;
            "shift", "flip_shift" or "turn_shift"; a `Policy`, a `PolicySpec` or its file; a `FixedTransform` or any
            callable on one image, which is not kept in the files of policies. Students are measured on images as they
            are, whatever the base.
        base_versions: As many base views of each image, drawn once for all runs (for each seed of the confirmation
            anew), so that the teacher is asked about each once; None draws afresh.
        paired: Trials and references share the student's start, the batches and, where as many operations are drawn,
            the draws, so that their differences are the policy's; False gives each trial its own.
        bare_reference: Run the reference `bare` too: neither a base view nor a policy.
        loss: A distillation loss out of `kdsearch.losses` or your own, or several; `loss.times(2)` weighs it twice.
        label_weight: Of the cross-entropy with the labels, beside the distillation loss of each view.
        views: Which views get cross-entropy, which distillation, and what each network sees; `Views.named("tst")` is
            that of TST.
        optimizer: From the student's parameters; its rate warms up over a tenth of the steps and falls as a cosine.
        teacher_saw: Which of these images the teacher was trained on: "none", "train", or "both". What it gets right on
            images it has seen is memory, and marked so; where it is "unknown", the preflight guesses and says so.
        metric: What trials are compared by, in place of the accuracy: a function of logits (N, K) and labels (N,) of
            search-validation; larger is better.
        precision: "float32", or "bfloat16" for what torch.autocast computes in it during training steps.
        compiled: Run both networks through `torch.compile`, which takes a while at first; not with losses on features,
            which are tapped while a network runs.
        device: Where all of it runs unless a search is told otherwise: "cpu", "cuda", "cuda:1", "mps".
        readers: Processes that read the items of data sets which are not in memory; with 0 they are read in this one.
        objective: Weights of the terms that a policy step minimises, out of `kdsearch.objectives`; those that the space
            names are the space's.
        floor: How many nats the teacher's cross-entropy may rise on augmented images, unless the space names it; None
            for no floor.
    """

    name: str
    train: MapStyle
    search_validation: MapStyle
    teacher: nn.Module | Recipe
    student: Callable[[], nn.Module]
    classes: int | Sequence[str]
    confirm: MapStyle | None = None
    test: MapStyle | None = None
    space: str = "default"
    base: Any = "auto"
    base_versions: int | None = None
    bare_reference: bool = False
    paired: bool = True
    budget: Budget = Budget()
    loss: Loss | Sequence[Loss] = field(default_factory=kd)
    label_weight: float = 1.0
    views: Views = field(default_factory=Views)
    optimizer: OptimizerFactory = adamw
    teacher_saw: Saw = "unknown"
    metric: Metric | None = None
    precision: Precision = "float32"
    compiled: bool = False
    device: str = "cpu"
    readers: int = 0
    objective: Mapping[str, float] = field(default_factory=lambda: dict(TST))
    floor: float | None = 1.0
    seed: int = 0

    def __repr__(self) -> str:
        said = f"Study({', '.join(f'{name}={text}' for name, text in self._facts().items())})"
        return escape_unprintable(said)

    def _repr_html_(self) -> str:
        return html_paragraph("A Study:") + html_facts(self._facts())

    def _facts(self) -> dict[str, str]:
        """What it is made of, in short; of a user's objects what they are called, and nothing is read."""
        return {
            "name": repr(self.name),
            "train": describe_object(self.train),
            "search_validation": describe_object(self.search_validation),
            "confirm": describe_object(self.confirm),
            "test": describe_object(self.test),
            "teacher": describe_object(self.teacher),
            "student": describe_object(self.student),
            "classes": reprlib.repr(self.classes),
            "loss": ", ".join(describe_object(loss) for loss in self.losses),
            "space": repr(self.space),
            "base": repr(self.base) if isinstance(self.base, str) else describe_object(self.base),
            "budget": describe_object(self.budget),
            "device": str(self.device),
        }

    @property
    def student_images(self) -> int:
        """Images that the student is trained on in a run, each of its views counted."""
        budget = self.budget
        return budget.epochs * budget.steps * budget.batch * (2 if self.views.used == "both" else 1)

    @property
    def losses(self) -> tuple[Loss, ...]:
        return tuple(self.loss) if isinstance(self.loss, Sequence) and not isinstance(self.loss, str) else (self.loss,)

    def fresh_student(self, device: torch.device | str = "cpu") -> nn.Module:
        """What the factory makes, on a device, all its weights there.

        Raises:
            KdsearchError: it makes nothing that can be trained.
        """
        network = fresh_network(self.student).to(device)
        if is_unbuilt(network):
            build_lazy(network, first_batch(self.train, 2, device).images)
        return network

    def place_data(self, device: str) -> "Study":
        """The same study, its images in the device's memory, or read by its reader processes."""
        splits = {"train": self.train, "search_validation": self.search_validation}
        if self.confirm is not None:
            splits["confirm"] = self.confirm
        placed = {name: place_data(data, readers=self.readers, device=device) for name, data in splits.items()}
        return replace(self, **placed)  # type: ignore[arg-type]


def describe_object(thing: object) -> str:
    """What an object is called, where it may be a user's and its `repr` anything: data of ours, names, classes."""
    if isinstance(thing, ArrayData | ImageFolder):
        return repr(thing)
    if isinstance(thing, Budget):
        trials, epochs = number_of(thing.trials, "trial"), number_of(thing.epochs, "epoch")
        return f"{trials} of {epochs}, {thing.steps} steps of {thing.batch} images each"
    if isinstance(thing, Loss):
        return thing.name
    inner = thing.func if isinstance(thing, partial) else thing
    return str(getattr(inner, "__name__", None if thing is None else type(inner).__name__))


def load_study(name: str) -> tuple[Study, Path]:
    """The `study` of a shipped study by its bare name, or of a Python file by its path; and where the file lies.

    The file is executed from where it is, its folder on `sys.path`, as a module named `kdsearch_study`.

    Raises:
        KdsearchError: no such study; the file does not run; it defines no `study`.
    """
    path = find_shipped("studies", name).resolve()
    study = vars(run_file(path)).get("study")
    if not isinstance(study, Study):
        found = "no name `study`" if study is None else type(study).__name__
        raise KdsearchError(f"{path}: it has to define `study = kdsearch.Study(...)`; found {found}")
    return study, path
