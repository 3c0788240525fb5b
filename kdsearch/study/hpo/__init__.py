"""Everything that touches Optuna: the storage, the samplers and pruners, the loop over trials."""

import warnings

with warnings.catch_warnings():  # in a notebook tqdm, which Optuna imports, asks for widgets that nothing uses
    warnings.filterwarnings("ignore", "IProgress not found")
    import tqdm.auto as tqdm

from kdsearch.study.hpo.folder import check_kept, read_kept_trials
from kdsearch.study.hpo.storage import (
    Best,
    TrialRow,
    best_trial,
    check_storage,
    database_file,
    database_url,
    finished_trials,
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
    translate_storage_errors,
)

del tqdm, warnings

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Best",
    "Pruned",
    "Trial",
    "TrialEvent",
    "TrialRow",
    "best_trial",
    "check_kept",
    "check_names",
    "check_storage",
    "database_file",
    "database_url",
    "finished_trials",
    "open_search",
    "read_kept_trials",
    "run_trials",
    "translate_storage_errors",
    "trial_rows",
]
