"""Where a run stands after an epoch, in one file that is written whole or not at all."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdsearch.augment.spec import Snapshot
from kdsearch.core.archives import check_zip
from kdsearch.core.files import check_file, write_bytes
from kdsearch.distill.records import EpochRecord


@dataclass(frozen=True)
class Checkpoint:
    """What an interrupted run needs to go on as if it had never ended."""

    run: str  # which run it is: with another seed, start or setting it is of no use
    state: Mapping[str, Any]  # `Distiller.state()`
    records: tuple[EpochRecord, ...]
    schedule: tuple[Snapshot, ...]  # of the policy, so far
    seconds: float  # spent

    def save(self, path: Path) -> None:
        """Write it in one step: a process killed meanwhile leaves the one before."""
        content = io.BytesIO()
        torch.save(
            {
                "run": self.run,
                "state": _python(dict(self.state)),
                "records": [asdict(record) for record in self.records],
                "schedule": [moment.model_dump() for moment in self.schedule],
                "seconds": self.seconds,
            },
            content,
        )
        write_bytes(path, content.getvalue())

    @staticmethod
    def load(path: Path, run: str) -> "Checkpoint | None":
        """What a file keeps of this run; None where there is none, or that of another run.

        A file that is torn or holds more than weights and numbers is put aside, with a warning.
        """
        if not path.exists():
            return None
        try:
            check_file(path)
            check_zip(path, "a checkpoint")
            kept = torch.load(path, map_location="cpu", weights_only=True)
            if kept["run"] != run:
                return None
            records = tuple(EpochRecord(**record) for record in kept["records"])
            schedule = tuple(Snapshot.model_validate(moment) for moment in kept["schedule"])
            return Checkpoint(run, kept["state"], records, schedule, kept["seconds"])
        except Exception as error:  # whatever a reader makes of a torn file
            aside = path.with_name(path.name + ".unreadable")
            path.replace(aside)
            warnings.warn(
                f"{path} cannot be read as a checkpoint ({type(error).__name__}) and is kept as {aside.name}; the run "
                "begins anew",
                stacklevel=2,
            )
            return None


def _python(value: Any) -> Any:
    """NumPy's numbers, which optimisers are given at times, as Python's: `weights_only` reads no others."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _python(item) for key, item in value.items()}
    return type(value)(map(_python, value)) if type(value) in (list, tuple) else value
