"""What goes wrong for a user: one class, one clear message, exit code 2."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


class KdsearchError(Exception):
    """A mistake in what kdsearch was given: the message names the place, what is allowed and the nearest name."""


def not_whole(numbers: Mapping[str, object], least: Mapping[str, int]) -> list[str]:
    """What is to be said of numbers that are not whole, or less than they may be.

    >>> not_whole({"epochs": 0, "steps": 30}, {"epochs": 1, "steps": 1})
    ['epochs is 0; allowed: whole numbers, 1 or more']
    """
    found = []
    for name, lowest in least.items():
        value = numbers[name]
        if not isinstance(value, int) or value < lowest:
            found.append(f"{name} is {value}; allowed: whole numbers, {lowest} or more")
    return found


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not in a table, with the nearest name or else all of them.

    >>> unknown("operation", "rotat", ["rotate", "scale"])
    "unknown operation 'rotat'; did you mean 'rotate'?"
    >>> unknown("study", "x", ["digits"])
    "unknown study 'x'; known: digits"
    """
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} '{name}'; {hint}"


def problems(place: str, found: list[str]) -> KdsearchError:
    """One error that lists every problem of one file or object, the first forty in full."""
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    rest = [f"  and {len(found) - 40} more"] if len(found) > 40 else []
    return KdsearchError("\n".join([f"{place}: {count}", *(f"  {line}" for line in found[:40]), *rest]))


class Diverged(Exception):
    """A loss or weight that is no longer finite: the trial ends, the search learns from it."""
