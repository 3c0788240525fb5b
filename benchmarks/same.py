"""Do runs of one phase come out bit for bit as at another commit? Both are run here, one after the other.

Each case names all its numbers, so that defaults may change: no base view, the teacher as it is given and asked at each
step, as its answers by a fused copy or in other batches differ in their last digits; between commits that have base
views some cases have one. Compared are hashes of the student's weights, the policy and the records, without seconds; of
the records the fields that both commits have. No hash is kept anywhere: they differ by processor and number of threads.
Exit code 1 where a case differs.

Run:  python benchmarks/same.py REV [--json FILE]      (a minute on one core)
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SPACE = """
[policy]
learning_rate = 0.1
prior_strength = 0.3
operations_per_image = 2
interval = 2
[operations.rotate]
[operations.brightness]
[operations.solarize]
"""
BARE = {"asked": "None", "policy": None, "said": "", "fused": False, "answers_looked_up": False, "loss_rise": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rev", metavar="REV")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", arguments.rev], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        old, new = (hashes_of(tree) for tree in (Path(folder), ROOT))
    rows = list(compared(old, new))
    for row in rows:
        print(f"{row['case']:24} {row['what']:10} {row['old'][:12]:14} {row['new'][:12]:14} {row['same']}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(row["same"] for row in rows) else 1)


def hashes_of(tree: Path) -> dict[str, dict[str, Any]]:
    """The hashes of all cases, with the package of a tree, in a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r}); import same; same.run_cases()"
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert Path(told.pop("package")).is_relative_to(tree.resolve()), "another kdsearch was imported"
    return told


def compared(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each case and each thing that is compared."""
    for case, before in old.items():
        after = new[case]
        common = sorted(before["records"].keys() & after["records"].keys())
        for what in ("student", "policy", "records"):
            one, other = before[what], after[what]
            if what == "records":
                one, other = (digest(json.dumps([side[name] for name in common])) for side in (one, other))
            yield {"case": case, "what": what, "old": one, "new": other, "same": one == other}


def run_cases() -> None:
    """Print the hashes of all cases, as JSON in one line."""
    import torch

    kd = named()

    torch.set_num_threads(1)
    pauses = "pauses" if hasattr(kd.PolicySteps, "pause_epochs") else "phases"
    found: dict[str, Any] = {"package": str(Path(kd.__file__).resolve())}
    steps: dict[str, Any] = {
        "batch": 16, "warm_up": 0.1, "learning_rate": 0.1, "prior_strength": 0.3, "floor": 0.1, "floor_rate": 0.1,
        "passes": 1, "objective": {"teacher_right": 1.0, "student_wrong": 1.0}, "gates": "flip",
    }  # fmt: skip
    operations = ["rotate", "translate_x", "brightness", "solarize", "noise", "erase"]
    jitter = kd.FixedTransform(lambda image: (image + 0.1 * torch.rand(())).clamp(0, 1), takes="float")
    cases: dict[str, tuple[Any, Any, Callable[[], torch.nn.Module]]] = {
        "policy steps": (kd.Policy(operations, 2), kd.PolicySteps(interval=2, **steps), plain_student),
        "pauses": (
            kd.Policy(operations, 2),
            kd.PolicySteps(interval=1, **{pauses: (0.25, 0.5)}, **steps),
            plain_student,
        ),
        "a policy that stays": (kd.Policy(operations, 2), None, plain_student),
        "fixed transform": (jitter, None, plain_student),
        "identity": (None, None, plain_student),
        "dropout": (kd.Policy(operations, 2), kd.PolicySteps(interval=2, **steps), with_dropout),
    }
    for name, (policy, policy_steps, student) in cases.items():
        found[name] = run_case(policy, policy_steps, student)
    if hasattr(kd.Phase, "base"):  # a commit with base views
        learned = kd.PolicySteps(interval=2, **steps)
        spins, fills = kd.Policy(["rotate", "translate_x"], 2, fill="reflect"), kd.Policy(["scale", "brightness"], 2)
        for name, base in {"one warp": spins, "pixels": fills}.items():
            policy = kd.Policy(operations, 2, fill="reflect")
            found[f"base, {name}"] = run_case(policy, learned, plain_student, base=base)
        found["base, identity"] = run_case(None, None, plain_student, base=spins, base_versions=2)
    found.update(run_references())
    print(json.dumps(found))


def named() -> Any:
    """The package under test, by names that both commits know."""
    import kdsearch

    warnings.simplefilter("ignore", FutureWarning)
    return kdsearch


def plain_student() -> Any:
    kd = named()

    return kd.small_convnet(4)


def with_dropout() -> Any:
    import torch

    *body, last = plain_student()
    return torch.nn.Sequential(*body, torch.nn.Dropout(0.3), last)


def run_case(policy: Any, policy_steps: Any, student: Callable[[], Any], **base: Any) -> dict[str, Any]:
    """One run of four epochs on digits."""
    import torch

    kd = named()

    train, validation, _ = kd.digits()
    torch.manual_seed(1)
    teacher = kd.Teacher(kd.small_convnet(8))
    made = kd.Distiller(teacher, student(), policy, kd.Classification.of(10), seed=7)
    losses = (kd.LOSSES["kd"](), kd.LOSSES["hint"]("0"))
    views = kd.VIEWS["default"]
    phase = kd.Phase(
        losses, epochs=4, steps=6, batch=32, policy_steps=policy_steps, label_weight=1.0, views=views, parts=1, **base
    )
    some = torch.arange(200)
    records = [asdict(record) for record in made.run(phase, train.subset(some), validation.subset(some))]
    learned = policy.state_dict() if isinstance(policy, kd.Policy) else {}
    return {"student": of_tensors(made.student.state_dict()), "policy": of_tensors(learned), "records": fields(records)}


def run_references() -> dict[str, dict[str, Any]]:
    """The references of a small search, as its run folder keeps them."""
    import torch
    from safetensors.torch import load_file

    kd = named()

    train, validation, _ = kd.digits()
    some, found = torch.arange(150), {}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "few.toml").write_text(SPACE)
        (Path(folder) / "run").mkdir()
        (Path(folder) / "run" / "base.json").write_text(json.dumps(BARE))  # commits without base views read none
        torch.manual_seed(2)
        network = kd.small_convnet(8)
        adam = torch.optim.Adam(network.parameters(), lr=0.01)
        for batch in kd.shuffled(train, 64, 60, 0):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(network(batch.images), batch.target).backward()
            adam.step()
        study = kd.Study(
            name="same",
            train=train.subset(some),
            search_validation=validation.subset(some),
            teacher=network,
            student=plain_student,
            classes=10,
            teacher_saw="train",
            space=str(Path(folder) / "few.toml"),
            budget=kd.Budget(trials=1, epochs=2, steps=4, batch=16, confirmation=0, policy_batch=8),
            floor=0.1,
            **({"base": None} if hasattr(kd.Study, "base") else {}),
        )
        kd.search(study, out=Path(folder) / "run", quiet=True, seed=5)
        for name in ("identity", "trivial", "start"):
            place = Path(folder) / "run" / "references" / name
            records = [json.loads(line) for line in (place / "epochs.jsonl").read_text().splitlines()]
            policy = place / "policy.json"
            spec = json.loads(policy.read_text()) if policy.exists() else {}
            spec = {key: value for key, value in spec.items() if key not in ("version", "base", "provenance")}
            weights = of_tensors(load_file(place / "student.safetensors"))
            found[f"search: {name}"] = {
                "student": weights,
                "policy": digest(json.dumps(spec, sort_keys=True)),
                "records": fields(records),
            }
    return found


def fields(records: list[dict[str, Any]]) -> dict[str, str]:
    """A hash of each field over all epochs."""
    names = [name for name in records[0] if name != "seconds"]
    return {name: digest(repr([record[name] for record in records])) for name in names}


def of_tensors(tensors: Mapping[str, Any]) -> str:
    parts = [f"{name} {value.detach().cpu().contiguous().numpy().tobytes().hex()}" for name, value in tensors.items()]
    return digest("\n".join(sorted(parts)))


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    main()
