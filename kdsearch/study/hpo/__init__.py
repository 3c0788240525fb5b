"""Everything that touches Optuna: the storage, the samplers and pruners, the loop over trials."""

from kdsearch.study.hpo.kept import check_kept, kept_rows
from kdsearch.study.hpo.storage import (
    Best,
    TrialRow,
    best_of,
    check_storage,
    database,
    database_file,
    done_of,
    trial_rows,
)
from kdsearch.study.hpo.trials import (
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
    "Best",
    "Pruned",
    "Trial",
    "TrialEvent",
    "TrialRow",
    "best_of",
    "check_kept",
    "check_names",
    "check_storage",
    "database",
    "database_file",
    "done_of",
    "kept_rows",
    "open_search",
    "run_trials",
    "storage_in_words",
    "trial_rows",
]
