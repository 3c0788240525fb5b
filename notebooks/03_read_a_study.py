# %% [markdown]
# # Read a study in pandas
#
# Whatever a search found lies in its run folder, as files. Here that of the first notebook; any other one will do.

# %%
from pathlib import Path

import kdsearch as kd

folder = Path("runs/first")
tables = kd.frames(folder)
{name: len(table) for name, table in tables.items()}

# %% [markdown]
# Tidy frames: a row a run, an epoch, an operation, a region; `study`, `run` and `trial` tell where it belongs. Values
# are fractions, as in all frames; the terminal and the report write an accuracy in percent.

# %%
tables["trials"][["run", "state", "value", "value_se", "origin", "seconds"]]

# %% [markdown]
# What Optuna chose, beside what came of it:

# %%
chosen = tables["params"].pivot_table(index="run", columns="name", values="value")
chosen.join(tables["trials"].set_index("run")["value"])

# %% [markdown]
# The confirmation: the searched policy less each reference, on fresh seeds and images that no trial saw, with an
# interval over both.

# %%
tables["comparisons"].query("run == 'learned'")[["against", "of", "difference", "low", "high", "p_holm"]].round(4)

# %% [markdown]
# Where teacher and student disagree, strongest first. It is a plain frame, to be filtered and grouped:
# `teacher_only_rate` is how often the teacher alone is right, with the ends of an interval that holds for all regions
# at once.

# %%
regions = kd.regions(folder)
along = regions[regions["kind"] == "operation"]
along[["operation", "low", "high", "unit", "n", "teacher_only_rate", "teacher_only_low", "clean_rate"]].head(8).round(3)

# %% [markdown]
# Beside the operations stand the clean images and those of the policy, of each class:

# %%
rates = regions[regions["class_name"].notna()].pivot_table(
    index="class_name", columns="kind", values="teacher_only_rate"
)
rates.round(3)

# %% [markdown]
# The policy of the best trial, and what it does to images that the run has kept, one of each class first:

# %%
best = folder / "trials" / f"{tables['studies']['best_trial'].iloc[0]:04d}"
policy = kd.PolicySpec.load(best / "policy.json")
policy

# %%
kd.analysis.policy_sheet(policy, kd.data.load_images(best / "samples.npz"), most=4)

# %% [markdown]
# Two policies operation by operation, the largest change first: here the one that was learned against where it began.

# %%
start = kd.PolicySpec.load(folder / "references" / "start" / "policy.json")
difference = kd.analysis.policy_diff(start, policy)
difference[["operation", "rate_a", "rate_b", "high_a", "high_b", "unit", "change"]].head()

# %% [markdown]
# The numbers behind the run: how the student got better, epoch by epoch.

# %%
tables["epochs"].pivot_table(index="epoch", columns="run", values="value").round(3)
