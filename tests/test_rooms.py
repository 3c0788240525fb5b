"""The rooms of ARCHITECTURE.md, as they are walked: a call goes to a room below, or stays in its own."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import kdsearch as kd
from kdsearch.distill.distiller import Distiller
from kdsearch.distill.phase import Phase, PolicySteps
from kdsearch.networks.teachers import Teacher
from kdsearch.study.wiring import study_task

HERE = Path(kd.__file__).parent
PROJECT = HERE.parent / "pyproject.toml"


def heights() -> dict[str, int]:
    """Each room of the import contract, the lowest 0."""
    contracts = tomllib.loads(PROJECT.read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {room.strip(): height for height, line in enumerate(reversed(layers)) for room in line.split("|")}


def test_each_room_has_a_sentence_and_there_are_at_most_eleven() -> None:
    rooms = [path.name for path in HERE.iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) <= 11 and {*rooms} == {*heights()} - {"__main__"}
    for room in rooms:
        said = (HERE / room / "__init__.py").read_text().removeprefix('"""').partition('"""')[0]
        assert said.startswith(said[:1].upper()) and said.partition("\n")[0].endswith("."), room


def test_from_run_to_pixels_and_back_no_call_climbs(tiny_study) -> None:
    """One epoch of student and policy steps: which function of kdsearch called which, foreign ones left out."""
    calls: dict[tuple[str, str], None] = {}

    def place(frame) -> str | None:
        path = Path(frame.f_code.co_filename)
        return path.relative_to(HERE).as_posix() if path.is_relative_to(HERE) else None

    def note(frame, event, _) -> None:
        if event == "call" and (callee := place(frame)):
            while (frame := frame.f_back) and not (caller := place(frame)):
                pass
            if frame and caller != callee:
                calls[caller, callee] = None

    study = replace(tiny_study, train=tiny_study.train.subset(slice(0, 32)))
    policy = kd.Policy(["rotate", "brightness", "solarize"], 2)
    d = Distiller(Teacher(study.teacher), study.fresh_student(), policy, study_task(study))
    phase = Phase(study.losses, 1, 2, 16, PolicySteps(interval=1, floor=0.3))
    sys.setprofile(note)
    try:
        (_,) = d.run(phase, study.train, study.train)
    finally:
        sys.setprofile(None)
    height = heights()
    assert not [pair for pair in calls if height[pair[1].split("/")[0]] > height[pair[0].split("/")[0]]]
    walk = [  # what ARCHITECTURE.md tells, in its order
        ("distill/distiller.py", "data/batches.py"),
        ("distill/distiller.py", "augment/policy.py"),
        ("distill/distiller.py", "distill/steps.py"),
        ("distill/steps.py", "augment/policy.py"),
        ("augment/policy.py", "augment/operations/__init__.py"),
        ("augment/operations/__init__.py", "augment/operations/warp.py"),
        ("distill/steps.py", "tasks/classification.py"),
        ("distill/distiller.py", "networks/teachers.py"),
        ("networks/teachers.py", "networks/outputs.py"),
        ("distill/steps.py", "losses/loss.py"),
        ("distill/distiller.py", "distill/estimators.py"),
        ("distill/estimators.py", "augment/policy.py"),
        ("distill/estimators.py", "augment/operations/__init__.py"),
        ("tasks/classification.py", "losses/objectives.py"),
        ("distill/distiller.py", "probe/evaluation.py"),
        ("probe/evaluation.py", "networks/outputs.py"),
    ]
    assert not [pair for pair in walk if pair not in calls]
