"""What the preflight makes of a study: everything at hand that a run of it needs."""

from dataclasses import dataclass, field, replace

from torch import nn

from kdsearch.augment.bases import Base
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import FIXED
from kdsearch.distill.answers import AnswerTables
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.networks.outputs import arrange_network
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.disagreement import Probe
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.probe.inheritance import Ruler
from kdsearch.study.base_view import BARE, BaseView
from kdsearch.study.space import SearchSpace, Settings
from kdsearch.study.study import Study
from kdsearch.tasks import Classification

REFERENCES = ("identity", "twice", "trivial", "rand_augment", "labels_only", "start", "bare")


def reference_names(study: Study, base: Base | None) -> tuple[str, ...]:
    """The references of a study, in the order in which they are run.

    Without a base view there is none to draw twice, and all runs are bare. Nobody knows where a transform moves pixels:
    where the teacher sees the geometry of the second view alone, no transform makes it.
    """
    weak = study.views.teacher == "weak" and isinstance(base, FixedTransform)
    run = {"twice": base is not None and not weak, "bare": base is not None and study.bare_reference}
    return tuple(name for name in REFERENCES if run.get(name, True))


def _weight_of_labels(study: Study) -> float:
    """Of the labels of all views, where they stand for the distillation losses too: all weights together, midway."""
    views, losses = study.views, sum(loss.weight_at(0.5) for loss in study.losses)
    whole = study.label_weight * views.factor(views.labels) + losses * views.factor(views.distillation)
    return whole / views.factor(views.used)


@dataclass(frozen=True)
class Ready:
    """A study made ready by the preflight: teacher at hand, data looked at, operations without effect dropped."""

    study: Study
    task: Classification
    teacher: Teacher
    space: SearchSpace
    clean: TeacherMeasurement  # by the teacher, of the training images as they are
    probe: Probe
    channels: int  # of the images
    device: str = "cpu"
    labels: tuple[int, ...] = ()  # how often each is on search-validation
    base_view: BaseView = BARE
    ruler: Ruler | None = None  # of inherited competence
    confirm_ruler: Ruler | None = None  # the same on the images that the winner is confirmed on
    tables: AnswerTables = field(default_factory=AnswerTables, repr=False)

    @property
    def references(self) -> tuple[str, ...]:
        """Their names, in the order in which they are run."""
        return reference_names(self.study, self.base_view.base)

    @property
    def answers_looked_up(self) -> bool | None:
        """Are the teacher's answers on base views of trials looked up? None: none come back, or nobody decided."""
        return self.tables.allowed if self.phase(None).bases_come_back else None

    def student(self) -> nn.Module:
        """A fresh student on the device, laid out and compiled as the teacher is."""
        study = self.study
        return arrange_network(
            study.fresh_student(self.device), self.device, channels=self.channels, compiled=study.compiled
        )

    def policy(self, settings: Settings) -> Policy:
        """A policy at its start."""
        return Policy(
            self.space.limits,
            settings.operations_per_image,
            probability=settings.probability,
            extent=settings.extent,
            fill=self.space.fill,
        )

    def reference(self, name: str, settings: Settings) -> Base | None:
        """What makes the second view of a reference, never learned.

        Nothing (`identity`: both views are one draw of the base; `bare`: both are the image), another draw of the base
        (`twice`, of the image), TrivialAugment's rule, RandAugment's kind (`labels_only` too, which has no teacher), or
        the policy at its start.
        """
        if name == "labels_only":
            name = "rand_augment"
        if name in ("identity", "bare"):
            return None
        if name == "twice":
            return self.base_view.base
        return FIXED[name](self.space.limits, fill=self.space.fill) if name in FIXED else self.policy(settings)

    def policy_steps(self, settings: Settings) -> PolicySteps:
        return PolicySteps(
            interval=settings.interval or 1,  # no part where there are pauses
            pauses=settings.pauses,
            passes=settings.passes or 1,
            warm_up=settings.warm_up,
            learning_rate=settings.learning_rate,
            prior_strength=settings.prior_strength,
            objective=settings.objective,
            floor=settings.floor,
            flips=settings.flips,
            batch=self.study.budget.policy_batch,
        )

    @property
    def policy_batch(self) -> int:
        """Images of a policy step."""
        return self.policy_steps(self.space.settings()).images(self.study.budget.batch)

    def phase(self, policy_steps: PolicySteps | None, *, run: str = "", base_seed: int | None = None) -> Phase:
        """The training of a run.

        Args:
            run: Its name, where it is a reference with a base view or a second view of its own.
            base_seed: Of the versions of base views; the study's where None.
        """
        study, budget = self.study, self.study.budget
        base = None if run == "bare" else self.base_view.base
        losses, label_weight, views = study.losses, study.label_weight, study.views
        if run == "twice":
            views = replace(views, second_from="image")
        if run == "labels_only":
            losses, label_weight = (), _weight_of_labels(study)
            views = replace(views, labels=views.used, distillation=views.used)
        return Phase(
            losses,
            budget.epochs,
            budget.steps,
            budget.batch,
            policy_steps,
            label_weight,
            views,
            budget.parts,
            base,
            study.base_versions if base is not None else None,
            study.seed if base_seed is None else base_seed,
        )
