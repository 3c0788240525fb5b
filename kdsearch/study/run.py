"""One run of a study: a fresh student, one policy, and what they leave in a folder."""

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.policy import Policy
from kdsearch.augment.spec import PolicySpec, Snapshot
from kdsearch.core.errors import Diverged
from kdsearch.core.files import make_folder, to_json_values, write_bytes, write_json, write_text
from kdsearch.core.maths import derive_seed, own_generators, seed_everything
from kdsearch.data.batches import varied_batch
from kdsearch.distill.checkpoint import Checkpoint
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.guards import chance_evidence, policy_warnings
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.distill.records import EpochRecord
from kdsearch.networks.state import state_tensors
from kdsearch.networks.teachers import weights_hash
from kdsearch.probe.disagreement import DisagreementReport, Watch
from kdsearch.probe.inheritance import Inheritance
from kdsearch.study.fingerprint import describe_base, describe_transform
from kdsearch.study.ready import Ready

CHECKPOINT = "checkpoint.pt"  # of the run that a folder holds, while it is not finished
SHOWN = 4  # images kept for the pictures of a policy
STATES = 2  # version of what a checkpoint holds: one of another version is not gone on from
NETWORKS = ("student", "teacher")
MOMENTS = 16  # of a policy's schedule, at most


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    value: float  # of the study's metric, for the student on search-validation after the last epoch
    value_se: float  # standard error
    seconds: float
    warnings: tuple[str, ...] = ()  # of a student at chance, and of a policy that was to learn
    at_chance: str | None = None  # what shows that the student has learned nothing
    inheritance: Inheritance | None = None  # what it is worth on shifted images
    student_images: int = 0  # that each network answered on in training steps, those of policy steps too
    teacher_images: int = 0
    disagreement: DisagreementReport | None = None
    student: nn.Module | None = field(default=None, compare=False, repr=False)


def run_trial(
    ready: Ready,
    folder: Path | None,
    *,
    policy: Policy | FixedTransform | None = None,
    policy_steps: PolicySteps | None = None,
    replayed: PolicySpec | None = None,
    run: str = "",
    seed: int = 0,
    base_seed: int | None = None,
    provenance: Mapping[str, str | int | float | None] | None = None,
    checkpoint: Path | None = None,
    on_record: Callable[[EpochRecord], None] = lambda record: None,
    on_look: Watch = lambda done, total: None,
) -> Outcome:
    """Train one fresh student with one policy.

    Args:
        folder: Where records, policy, student and a few images go; None keeps nothing and looks for no disagreement.
        policy: Of the second view; None for a second view that is the base view. A fixed transform leaves no
            policy.json and no pictures.
        policy_steps: How the policy learns meanwhile; None holds it as it is.
        replayed: In place of `policy` one whose moments are replayed: each epoch has the numbers of the last moment
            before it.
        run: The name of a reference, for those with views of their own.
        seed: Of the student's start, the batches and the draws.
        base_seed: Of the versions of base views, where the study has them; the study's where None.
        checkpoint: A file that keeps where the run stands after each epoch; where there is one of this run, it goes on
            from there, bit for bit on the CPU. Gone when the run ends by an error; otherwise it is the caller's to
            delete, once the outcome has been kept.
        on_record: Told each epoch, those before a checkpoint first; an exception from it ends the run.
        on_look: Told while the student is compared with the teacher: images done, of how many.

    Raises:
        Diverged: a loss is not finite.
    """
    start = time.perf_counter()
    study = ready.study
    with own_generators(ready.device):
        seed_everything(derive_seed(seed, "student"))
        student = ready.student()
    if replayed is not None:
        policy = Policy.from_spec(replayed)
        policy.hold(replayed.at(0.0))
    distiller = Distiller(
        ready.teacher,
        student,
        policy,
        ready.task,
        optimizer=study.optimizer,
        device=ready.device,
        seed=seed,
        clean_loss=ready.clean.loss,
        metric=study.metric,
        precision=study.precision,
        tables=ready.tables,
        ruler=ready.ruler,
    )
    phase = ready.phase(policy_steps, run=run, base_seed=base_seed)
    schedule = [policy.snapshot(0.0)] if isinstance(policy, Policy) else []
    records: list[EpochRecord] = []
    named = run_name(ready, phase, distiller)
    if replayed is not None:
        named += repr(replayed.schedule)
    kept = Checkpoint.load(checkpoint, named) if checkpoint else None
    if kept:
        records, schedule, start = list(kept.records), list(kept.schedule), start - kept.seconds
        if replayed is not None and isinstance(policy, Policy):
            policy.hold(replayed.at(records[-1].progress))
    if folder:
        make_folder(folder)
        (folder / "result.json").unlink(missing_ok=True)
        _write_epochs(folder, records)
    try:
        for record in records:
            on_record(record)
        state = kept.state if kept else None
        for record in distiller.run(phase, study.train, study.search_validation, state=state):
            if isinstance(policy, Policy):
                schedule.append(policy.snapshot(record.progress))
            if replayed is not None and isinstance(policy, Policy):
                policy.hold(replayed.at(record.progress))
            records.append(record)
            if folder:
                _write_epochs(folder, records)
            if checkpoint:
                spent = time.perf_counter() - start
                Checkpoint(named, distiller.state(), tuple(records), tuple(schedule), spent).save(checkpoint)
            on_record(record)
        found = (
            policy_warnings(records, policy, ready.clean.accuracy)
            if policy_steps and isinstance(policy, Policy)
            else ()
        )
        names, by_accuracy = ready.task.class_names, study.metric is None
        nothing = chance_evidence(record, ready.labels, names, by_accuracy=by_accuracy)
        found = (*([f"the student {nothing}"] if nothing else []), *found)
        inheritance = ready.ruler.measure(student) if ready.ruler else None
        spent = time.perf_counter() - start
        student_images, teacher_images = (sum(getattr(one, f"{who}_images") for one in records) for who in NETWORKS)
        outcome = Outcome(
            record.value,
            record.value_se,
            spent,
            found,
            nothing,
            inheritance,
            student_images,
            teacher_images,
            student=student,
        )
        if folder:
            outcome = _keep(ready, folder, outcome, policy, phase, _thin(schedule), provenance or {}, on_look)
    except Diverged:  # it would end in the same way again; whatever else ends it may not
        if checkpoint:
            checkpoint.unlink(missing_ok=True)
        raise
    return outcome


def run_name(ready: Ready, phase: Phase, distiller: Distiller) -> str:
    """What tells a run from every other: what it starts from, its settings and its seed."""
    student, policy = distiller.student, distiller.policy
    losses = [(loss.name, str(loss.weight)) for loss in phase.losses]
    how = (policy.operations_per_image, policy.fill) if isinstance(policy, Policy) else describe_transform(policy)
    start = [weights_hash(network) for network in (student, policy) if isinstance(network, nn.Module)]
    steps = phase.policy_steps and replace(phase.policy_steps, batch=phase.policy_steps.images(phase.batch))
    rest = (phase.epochs, phase.steps, phase.batch, phase.parts, steps, phase.label_weight, phase.views)
    where = (ready.device, distiller.precision, ready.study.compiled)
    optimizer = str(distiller.optimizer)
    base = () if ready.base_view.before else (_described(ready, phase),)
    named = repr((STATES, distiller.seed, ready.clean.loss, where, losses, start, how, optimizer, rest, *base))
    for later in (f", second_from={phase.views.second_from!r}", ", flips=None"):
        named = named.replace(later, "")  # what checkpoints of before have not in their names, or elsewhere
    return named


def _described(ready: Ready, phase: Phase) -> tuple[object, ...]:
    """What tells the base views of a run from others', and how the teacher is asked."""
    how = ready.teacher.is_fused, ready.tables.allowed if phase.bases_come_back else None
    return describe_base(phase.base), phase.base_versions, phase.base_seed, phase.views.second_from, *how


def _write_epochs(folder: Path, records: Sequence[EpochRecord]) -> None:
    lines = [json.dumps(to_json_values(asdict(record))) + "\n" for record in records]
    write_text(folder / "epochs.jsonl", "".join(lines))


def _keep(
    ready: Ready,
    folder: Path,
    outcome: Outcome,
    policy: Policy | FixedTransform | None,
    phase: Phase,
    schedule: list[Snapshot],
    provenance: Mapping[str, str | int | float | None],
    on_look: Watch,
) -> Outcome:
    """Write what a finished run leaves; `result.json` last, which makes it finished."""
    assert outcome.student is not None
    start = time.perf_counter()
    write_bytes(folder / "student.safetensors", save(state_tensors(outcome.student)))
    report = ready.probe.report(outcome.student, policy, on_look)
    write_json(folder / "regions.json", [asdict(region) for region in report.regions])
    if isinstance(policy, Policy):
        base = phase.base if isinstance(phase.base, Policy) and phase.views.second_from == "base" else None
        spec = policy.freeze(schedule, {**provenance, "value": round(outcome.value, 6)}, base)
        write_text(folder / "policy.json", spec.to_json())
        images = varied_batch(ready.study.train, SHOWN).images  # what the pictures of the policy show
        shown = (images.movedim(1, -1) * 255).round().to(torch.uint8)
        samples = io.BytesIO()
        np.savez_compressed(samples, original=shown.numpy())
        write_bytes(folder / "samples.npz", samples.getvalue())
    seconds = outcome.seconds + time.perf_counter() - start
    outcome = replace(outcome, seconds=seconds, disagreement=report)
    kept = {name: getattr(outcome, name) for name in ("value", "value_se", "seconds", "warnings", "at_chance")}
    write_json(folder / "result.json", {**kept, "inheritance": outcome.inheritance and asdict(outcome.inheritance)})
    return outcome


def _thin(schedule: list[Snapshot]) -> list[Snapshot]:
    """At most 16 moments, evenly spaced, the last one kept."""
    if len(schedule) <= MOMENTS:
        return schedule
    return [schedule[round(i * (len(schedule) - 1) / (MOMENTS - 1))] for i in range(MOMENTS)]
