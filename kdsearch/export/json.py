"""Export as the policy's own format."""

from kdsearch.spec import PolicySpec, Setting, Snapshot


def source(spec: PolicySpec, which: str) -> str:
    """The whole policy for `final`; for `average` a policy whose only moment is the average."""
    settings = spec.which(which)
    if which == "final":
        return spec.to_json()
    kept = {name: _within(setting, spec.operations[name].limit) for name, setting in settings.items()}
    return spec.model_copy(update={"schedule": (Snapshot(progress=1.0, settings=kept),)}).to_json()


def _within(setting: Setting, limit: float | None) -> Setting:
    # A mean of numbers at the limit may round to just above it, which the format refuses.
    if limit is None or setting.low is None or setting.high is None:
        return setting
    return setting.model_copy(update={"low": min(setting.low, limit), "high": min(setting.high, limit)})
