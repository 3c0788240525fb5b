"""Everything that touches Optuna: the storage, the samplers and pruners, the loop over trials."""

from kdsearch.hpo.storage import TrialRow, check_storage, database, rows_of, trial_rows
from kdsearch.hpo.trials import (
    PRUNERS,
    SAMPLERS,
    Pruned,
    Trial,
    TrialEvent,
    check_names,
    open_search,
    run_trials,
    storage_in_words,
)

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Pruned",
    "Trial",
    "TrialEvent",
    "TrialRow",
    "check_names",
    "check_storage",
    "database",
    "open_search",
    "rows_of",
    "run_trials",
    "storage_in_words",
    "trial_rows",
]
