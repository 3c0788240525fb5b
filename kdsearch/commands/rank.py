"""Policies ranked by what they do to the teacher alone, without any student: `kd.rank`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdsearch.analysis.frames import MEASURED, Frame, frames, make_frame
from kdsearch.augment.fixed import FixedTransform
from kdsearch.augment.operations import TABLE as OPERATIONS
from kdsearch.augment.policy import Policy
from kdsearch.augment.presets import trivial
from kdsearch.augment.spec import PolicySpec
from kdsearch.commands.check import announce_training
from kdsearch.commands.display import Display
from kdsearch.core.errors import KdsearchError, problems, unknown_name
from kdsearch.core.files import as_path
from kdsearch.core.maths import generator, own_generators, usual_modes
from kdsearch.core.terminal import format_nats
from kdsearch.data.batches import first_batch, place_data, take_items
from kdsearch.data.items import MapStyle
from kdsearch.probe.scores import Baseline, Score, score_policy
from kdsearch.study.preflight import LOOKED_AT, check_inputs, make_ready
from kdsearch.study.ready import REFERENCES, Ready
from kdsearch.study.run_folder import as_text, trial_folder
from kdsearch.study.study import Study, load_study
from kdsearch.study.wiring import check_kinds

Scored = Policy | FixedTransform | None  # None: a second view identical to the first
Given = Scored | PolicySpec | Path | str
SPLITS = {"train": "training images", "search-validation": "search-validation images"}
TAKEN = {*REFERENCES, *OPERATIONS}  # names
MOST = 5000  # images


@usual_modes()
def rank(
    study: Study | str | Path,
    policies: Mapping[str, Given] | Sequence[Path | str] | Path | str = (),
    *,
    split: str = "train",
    views: int = 2,
    most: int | None = MOST,
    which: str = "final",
    out: Path | str | None = None,
    device: str | None = None,
    storage: str | None = None,
    quiet: bool = False,
) -> Frame:
    """Score policies by what they do to the answers of a study's teacher; no student is made or trained.

    Scored are the references `identity`, `trivial` and `start`, each operation of the study's space alone (always
    applied, its magnitude uniform up to its limit), and the policies given. The order is a proxy: in the paper behind
    the ratio (`kdsearch.probe.scores.stddev_ratio`) it went with the student's test loss on CIFAR-100 and Tiny
    ImageNet, on ImageNet-1k not significantly. A teacher that has been trained on the images answers from memory;
    see `split`.

    The views that are scored are those of a policy alone, over images as they are, whatever the study's base view.

    Args:
        study: A `Study`, the name of a shipped one, or the path of a study file.
        policies: By name, or paths: a policy file, or a run folder for all its finished trials, named `trial 3`.
        split: The images: `train`, what the student will be shown, or `search-validation`.
        views: Draws of each policy for each image.
        most: Images; a random subset of a larger split, fixed by the study's seed. None for all of them.
        which: The `final` policies of policy files or their `average`.
        storage: Database URL of the searches of run folders among the policies that kept their trials elsewhere.
        out: Where a teacher's recipe keeps its weights; the study's run folder by default, `./runs/<study name>`.

    Returns:
        The frame `scores`, declared in `kdsearch.analysis.frames.SCORES`: the policies that keep the study's floor
        first, by ascending `stddev_ratio`, then the others.

    Raises:
        KdsearchError: bad input, before anything is trained.
    """
    if not isinstance(study, Study):
        study = load_study(str(study))[0]
    check_kinds(study)
    if split not in SPLITS:
        raise KdsearchError(unknown_name("split", split, SPLITS))
    if views < 1 or (most is not None and most < 2):
        raise KdsearchError(f"rank: {views} views, at most {most} images; allowed: 1 view or more, 2 images or more")
    given = gather(policies, which, storage)
    if taken := [f"'{name}' is the name of a reference or an operation" for name in given if name in TAKEN]:
        raise problems("policies", taken)
    device = device or study.device
    looked = check_inputs(study, device)
    folder = as_path(out or Path("runs") / study.name)
    with Display(quiet=quiet) as display, own_generators():
        announce_training(study, folder, display)
        whole = study.train if split == "train" else study.search_validation
        train = _some(study.train, most, study.seed)  # the teacher's clean loss is measured on it
        fewer = replace(study, train=train).place_data(device)
        looked = {**looked, "train": first_batch(train, LOOKED_AT)}
        ready, dropped, *_ = make_ready(fewer, looked, folder, device=device)
        data = (
            fewer.train
            if split == "train"
            else place_data(_some(whole, most, study.seed), readers=study.readers, device=device)
        )
        for name, why in dropped.items():
            display.say(f"left out: {name} ({why})")
        scored = _by_default(ready)
        display.say(
            f"{len(scored) + len(given)} policies on {len(data)} of the {len(whole)} {SPLITS[split]} of study "
            f"{study.name}, {views} draw{'s' if views != 1 else ''} for each image"
        )
    baseline = Baseline.of(ready.teacher, data, ready.task, device=device)
    rows = []
    for name, (kind, policy) in {**scored, **{name: ("given", policy) for name, policy in given.items()}}.items():
        result = score_policy(policy, baseline, views=views, floor=ready.space.settings().floor, seed=study.seed)
        rows.append({"study": study.name, "policy": as_text(name), "kind": kind, "split": split, **_row(result)})
    return make_frame("scores", rows).sort_values(
        ["keeps_floor", "stddev_ratio"], ascending=[False, True], ignore_index=True
    )


def explain_ranking(table: Frame) -> str:
    """What the order of a ranking means, in a sentence; and for which policies the floor is not clear."""
    floor = table["floor"].iloc[0]
    kept = "" if floor != floor else (
        f"policies that raise the teacher's cross-entropy by at most the floor of {format_nats(floor)} come first; "
        "among them and among the others, "
    )  # fmt: skip
    said = (
        f"Order: {kept}the smaller T. stddev ratio first, where the teacher is softer on the images or contradicts "
        "itself (1: an identical second view; 0.5: a teacher that sees nothing): a proxy from the teacher alone, no "
        "student was trained."
    )
    close = (table["teacher_loss_rise"] - table["floor"]).abs() < 2 * table["teacher_loss_rise_se"]
    if close.any():
        said += f" Within two standard errors of the floor: {', '.join(table.loc[close, 'policy'])}."
    return said


def gather(
    policies: Mapping[str, Given] | Sequence[Path | str] | Path | str, which: str = "final", storage: str | None = None
) -> dict[str, Scored]:
    """Policies by name out of what `rank` takes.

    Raises:
        KdsearchError: not a policy; a file or run folder that is none; two of one name.
    """
    if isinstance(policies, Mapping):
        return {name: _policy(name, policy, which) for name, policy in policies.items()}
    paths = [as_path(path) for path in ([policies] if isinstance(policies, Path | str) else policies)]
    folders = [path for path in paths if path.is_dir() and not (path / "policy.json").is_file()]
    found: dict[str, Scored] = {}
    for path in paths:
        files = {str(path): path}
        if path in folders:
            files = {
                name if len(folders) == 1 else f"{path} {name}": file for name, file in _trials(path, storage).items()
            }
        for name, file in files.items():
            if name in found:
                raise KdsearchError(f"policies: {name} is given twice")
            found[name] = _policy(name, file, which)
    return found


def _policy(name: str, given: Any, which: str) -> Scored:
    if isinstance(given, Path | str):
        path = as_path(given)
        given = PolicySpec.load(path / "policy.json" if path.is_dir() else path)
    if isinstance(given, PolicySpec):
        return Policy.from_spec(given, which)
    if given is None or isinstance(given, Policy | FixedTransform):
        return given
    raise KdsearchError(
        f"policies: '{name}' is of type {type(given).__name__}; allowed: Policy, PolicySpec, FixedTransform (which "
        "takes any callable on an image), the path of a policy file, or None for an identical view"
    )


def _trials(folder: Path, storage: str | None) -> dict[str, Path]:
    """The policy files of the finished trials of a run folder."""
    finished = frames(folder, storage=storage, only=("trials",))["trials"].query(
        "state == 'COMPLETE' and origin != 'reference'"
    )
    if finished.empty:
        raise KdsearchError(f"{folder}: no trial has finished, so there is no policy")
    numbers = zip(finished["run"], finished["trial"], strict=True)
    return {run: trial_folder(folder, number) / "policy.json" for run, number in numbers}


def _by_default(ready: Ready) -> dict[str, tuple[str, Scored]]:
    """References and single operations with their kind, by name."""
    settings = ready.space.settings()
    scored: dict[str, tuple[str, Scored]] = {
        name: ("reference", ready.reference(name, settings)) for name in ready.references if name != "labels_only"
    }
    alone = {name: trivial({name: limit}, fill=ready.space.fill) for name, limit in ready.space.limits.items()}
    return scored | {name: ("operation", policy) for name, policy in alone.items()}


def _some(data: MapStyle, most: int | None, seed: int) -> MapStyle:
    """A random subset, in the order of the data set."""
    if most is None or len(data) <= most:
        return data
    index = torch.randperm(len(data), generator=generator(seed, "scored images"))[:most].sort().values
    return take_items(data, index)


def _row(result: Score) -> dict[str, Any]:
    measured = {name: getattr(result, name) for name in MEASURED}
    return {
        "images": result.images,
        "views": result.views,
        "floor": result.floor,
        "keeps_floor": result.keeps_floor,
        **{name: number.value for name, number in measured.items()},
        **{f"{name}_se": number.se for name, number in measured.items()},
    }
