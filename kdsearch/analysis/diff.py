"""Two policies side by side: which operations one applies more, or further, than the other."""

import math

import pandas as pd

from kdsearch.augment.spec import PolicySpec

NUMBERS = ("probability", "rate", "low", "high")


def policy_diff(a: PolicySpec, b: PolicySpec, *, which: str = "final") -> pd.DataFrame:
    """Every operation of two policies, the largest change first.

    Args:
        which: The `final` policies or their `average`.

    Returns:
        `operation`; `only_in`: "a", "b" or missing; `probability_a`, `probability_b`, `probability_difference` (b minus
        a), the same of `rate`, `low` and `high`; `limit`: the larger of the two; `unit`; `change`: the largest of the
        differences of probability, rate and, where both apply the operation, of low and high as shares of the limit.
        Numbers of an operation that a policy does not have are missing; its differences of probability and rate are
        those to 0.
    """
    rows = []
    for name in [*a.operations, *(name for name in b.operations if name not in a.operations)]:
        row: dict[str, object] = {"operation": name, "only_in": None}
        if name not in a.operations or name not in b.operations:
            row["only_in"] = "a" if name in a.operations else "b"
        for side, spec in (("a", a), ("b", b)):
            setting = spec.which(which).get(name)
            row[f"probability_{side}"] = setting.probability if setting else None
            row[f"rate_{side}"] = spec.rate(name, which) if setting else None
            row[f"low_{side}"] = setting.low if setting else None
            row[f"high_{side}"] = setting.high if setting else None
        limits = [spec.operations[name] for spec in (a, b) if name in spec.operations]
        row["limit"] = max((limit.limit for limit in limits if limit.limit is not None), default=None)
        row["unit"] = limits[0].unit
        rows.append(row)
    columns = ["operation", "only_in", *(f"{n}_{side}" for n in NUMBERS for side in "ab"), "limit", "unit"]
    types = {column: "str" if column in ("operation", "only_in", "unit") else "float64" for column in columns}
    frame = pd.DataFrame(rows, columns=columns).astype(types)
    for n in reversed(NUMBERS):
        missing = 0.0 if n in ("probability", "rate") else math.nan  # what is not there is not applied
        frame.insert(2, f"{n}_difference", frame[f"{n}_b"].fillna(missing) - frame[f"{n}_a"].fillna(missing))
    both = (frame["probability_a"] > 0) & (frame["probability_b"] > 0)
    shares = frame[["low_difference", "high_difference"]].div(frame["limit"], axis=0).where(both)
    frame["change"] = frame[["probability_difference", "rate_difference"]].join(shares).abs().max(axis=1)
    order = ["operation", "only_in", *(f"{n}_{part}" for n in NUMBERS for part in ("a", "b", "difference"))]
    return frame[[*order, "limit", "unit", "change"]].sort_values(
        "change", ascending=False, ignore_index=True, kind="stable"
    )


def other_differences(a: PolicySpec, b: PolicySpec) -> list[str]:
    """In what the two differ beside their settings, one line each; their base views operation by operation."""
    found = []
    n = [f"{spec.operations_per_image} of {len(spec.operations)}" for spec in (a, b)]
    for what, (one, other) in {"operations per image": n, "fill": (a.fill, b.fill)}.items():
        if one != other:
            found.append(f"{what}: {one} → {other}")
    for name in (name for name in a.operations if name in b.operations):
        limits = a.operations[name].limit, b.operations[name].limit
        if limits[0] != limits[1]:
            found.append(f"limit of {name}: {limits[0]:g} → {limits[1]:g} {a.operations[name].unit}")
    if a.base and b.base:
        found += [f"base view, {line}" for line in other_differences(a.base, b.base)]
        changed = policy_diff(a.base, b.base).query("change > 0")["operation"]
        found += [f"base view, {name}: {a.base.in_words(name)} → {b.base.in_words(name)}" for name in changed]
    elif a.base or b.base:
        one, other = (spec.base.in_short() if spec.base else "none" for spec in (a, b))
        found.append(f"base view: {one} → {other}")
    return found
