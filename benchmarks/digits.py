"""Does a learned policy help on few-shot digits? The default settings, no Optuna, paired seeds, test accuracy.

Over the study's base view. Rows: plain KD on one view, the references, torchvision's RandAugment and TrivialAugmentWide
(its translation held to half the side), the policy learned beside the student (online), the same with policy steps of
as many images as the student's, twice the default, and the policy that another seed learned online, frozen, with a
fresh student. Same images, steps and seeds for all, and the same losses of each view, of which the first row has one,
the others two.

Run:  python benchmarks/digits.py [--seeds 8] [--json FILE]      (12 minutes on 2 cores)
"""

import json
from dataclasses import replace

import torch
from common import accuracy, interval, made_ready, options
from rich.console import Console
from rich.table import Table
from torchvision.transforms import InterpolationMode, v2

import kdsearch as kd
from kdsearch.study.run import run_trial


def main() -> None:
    arguments = options(__doc__, seeds=8).parse_args()
    ready = made_ready()
    study, settings = ready.study, ready.space.settings()
    default = ready.policy_steps(settings)

    def run(
        seed: int, policy: kd.Policy | kd.FixedTransform | None, steps: kd.PolicySteps | None = None, name: str = ""
    ) -> float:
        return accuracy(ready, run_trial(ready, None, policy=policy, policy_steps=steps, run=name, seed=seed).student)

    def one_view(seed: int) -> float:
        base = replace(ready, study=replace(study, views=kd.Views(labels="base", distillation="base")))
        return accuracy(ready, run_trial(base, None, policy=None, seed=seed).student)

    teacher = accuracy(ready, ready.teacher.network)
    rows, learned = [], []
    for seed in range(arguments.seeds):
        policy = ready.policy(settings)
        rows.append(
            {
                "seed": seed,
                "one view": one_view(seed),
                "identity": run(seed, None),
                "twice": run(seed, ready.reference("twice", settings), name="twice"),
                "trivial": run(seed, kd.presets.trivial(ready.space.limits)),
                "RandAugment": run(seed, kd.FixedTransform(v2.RandAugment(interpolation=InterpolationMode.BILINEAR))),
                "TrivialAugmentWide": run(seed, kd.presets.trivial_augment_wide()),
                "start": run(seed, ready.policy(settings)),
                "learned, online": run(seed, policy, default),
                "learned, twice the images": run(
                    seed, ready.policy(settings), replace(default, batch=study.budget.batch)
                ),
            }
        )
        learned.append(policy)
        print({name: round(value, 1) for name, value in rows[-1].items()}, flush=True)
    for seed, row in enumerate(rows):
        row["learned, frozen"] = run(seed, kd.Policy.from_spec(learned[seed - 1].freeze()))
        print({"seed": seed, "learned, frozen": round(row["learned, frozen"], 1)}, flush=True)
    show(teacher, rows)
    show_policies(learned)
    if arguments.json:
        arguments.json.write_text(json.dumps({"teacher": teacher, "rows": rows}, indent=1) + "\n")


def show(teacher: float, rows: list[dict[str, float]]) -> None:
    """Means with standard errors, and paired differences of the learned policy with 95 % t intervals."""
    names = [name for name in rows[0] if name != "seed"]
    values = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names}
    table = Table("second view", "test accuracy, %", "online minus it", "frozen minus it", box=None)
    for name in names:
        differences = []
        for mine in ("learned, online", "learned, frozen"):
            differences.append("" if mine == name else interval((values[mine] - values[name]).tolist(), digits=1))
        error = values[name].std() / len(rows) ** 0.5
        table.add_row(name, f"{values[name].mean():.1f} ± {error:.1f}", *differences)
    console = Console(width=120, highlight=False)
    console.print(f"\nteacher {teacher:.1f} %; {len(rows)} paired seeds, mean ± standard error; 95 % intervals")
    console.print(table)


def show_policies(learned: list[kd.Policy]) -> None:
    """What the policies ended at: mean and spread over seeds."""
    probability = torch.stack([policy.probability.detach() for policy in learned])
    low, high = (torch.stack([policy.ranges()[i].detach() for policy in learned]) for i in (0, 1))
    table = Table("operation", "probability", "deviation", "low", "high", "limit", "unit", "range", box=None)
    policy = learned[0]
    for i in probability.mean(0).argsort(descending=True).tolist():
        op = kd.operations.TABLE[policy.operations[i]]
        numbers = (
            [f"{low[:, i].mean():.2g}", f"{high[:, i].mean():.2g}", f"{policy.limit[i]:g}"] if op.limit else [""] * 3
        )
        spread = f"{probability[:, i].std():.2f}" if len(learned) > 1 else ""
        table.add_row(op.name, f"{probability[:, i].mean():.2f}", spread, *numbers, op.unit, op.range)
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
