"""What the preflight makes of a study: everything at hand that a run of it needs."""

from dataclasses import dataclass

from torch import nn

from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import trivial
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.networks.outputs import arrange_network
from kdsearch.networks.teachers import Teacher
from kdsearch.probe.disagreement import Probe
from kdsearch.probe.evaluation import TeacherMeasurement
from kdsearch.study.space import SearchSpace, Settings
from kdsearch.study.study import Study
from kdsearch.tasks import Classification

REFERENCES = ("identity", "trivial", "start")


@dataclass(frozen=True)
class Ready:
    """A study made ready by the preflight: teacher at hand, data looked at, operations without effect dropped."""

    study: Study
    task: Classification
    teacher: Teacher
    space: SearchSpace
    clean: TeacherMeasurement  # by the teacher, of the training images
    probe: Probe
    channels: int  # of the images
    device: str = "cpu"
    labels: tuple[int, ...] = ()  # how often each is on search-validation

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

    def reference(self, name: str, settings: Settings) -> Policy | None:
        """The policy of a reference, never learned: none, TrivialAugment's rule, or the policy at its start."""
        if name == "identity":
            return None
        return trivial(self.space.limits, fill=self.space.fill) if name == "trivial" else self.policy(settings)

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
            batch=self.study.budget.policy_batch,
        )

    @property
    def policy_batch(self) -> int:
        """Images of a policy step."""
        return self.policy_steps(self.space.settings()).images(self.study.budget.batch)

    def phase(self, policy_steps: PolicySteps | None) -> Phase:
        study, budget = self.study, self.study.budget
        return Phase(
            study.losses,
            budget.epochs,
            budget.steps,
            budget.batch,
            policy_steps,
            study.label_weight,
            study.views,
            budget.parts,
        )
