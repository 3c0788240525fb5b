"""Export as the policy's own format."""

from kdsearch.augment.spec import PolicySpec, Snapshot


def source(spec: PolicySpec, which: str) -> str:
    """The whole policy for `final`; for `average` a policy whose only moment is the average."""
    settings = dict(spec.which(which))
    if which == "final":
        return spec.to_json()
    return spec.model_copy(update={"schedule": (Snapshot(progress=1.0, settings=settings),)}).to_json()
