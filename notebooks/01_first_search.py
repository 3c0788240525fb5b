# %% [markdown]
# # A first search
#
# Which augmentation makes this student learn most from this teacher? Handwritten digits, which scikit-learn ships: a
# teacher that saw 797 of them, a student that sees 200. A search trains one student after another, each beside a
# policy that learns with it, and asks on fresh seeds whether the best policy helped. About 2 minutes on 2 cores.

# %%
import os

import torch

import kdsearch as kd

SHORT = os.environ.get("KDSEARCH_SHORT") == "1"  # a few seconds, to see that all of it runs
torch.set_num_threads(1)  # networks this small gain nothing from more
train, search_validation, test = kd.data.digits()
train

# %% [markdown]
# The teacher: any network from images in [0, 1] to logits. Here one is trained on the spot, on all training images.

# %%
torch.manual_seed(0)
teacher = kd.networks.small_convnet(16)
optimizer = torch.optim.AdamW(teacher.parameters(), lr=5e-3)
for batch in kd.data.shuffled(train, 64, 40 if SHORT else 300):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(teacher(batch.images), batch.target).backward()
    optimizer.step()

# %% [markdown]
# The study says what is asked. `search_validation` is what students are compared on while searching; the test images
# are never touched. A budget of 4 trials is small: more find better policies.

# %%
study = kd.Study(
    name="first",
    train=train.subset(torch.arange(200)),
    search_validation=search_validation,
    test=test,
    teacher=teacher,
    student=lambda: kd.networks.small_convnet(4),
    classes=10,
    teacher_saw="train",
    optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-2),
    budget=kd.Budget(1, 1, 4, 32, 1, look_operations=1) if SHORT else kd.Budget(4, 10, 30, 64, 2),
)
study

# %% [markdown]
# The search keeps all it finds in `runs/first`; run again, it goes on where it ended. `on_record` is called after
# each epoch, with the name of the run and what the epoch measured: in the same way a line writes to TensorBoard or
# another log, `lambda run, record: writer.add_scalar(run, record.value, record.epoch)`.

# %%
values: dict[str, list[float]] = {}


def keep(run, record):
    values.setdefault(run, []).append(record.value)


result = kd.search(study, on_record=keep)
{run: f"{curve[-1]:.1%} after {len(curve)} epochs" for run, curve in values.items()}

# %%
result

# %% [markdown]
# The sentence above is the answer: by how much the student that learned beside the policy beats, or misses, one that
# saw one base view of every image twice (identity), two base views of it (twice, where the study has a base view), one
# augmented by TrivialAugment's rule, and the policy as it was before it learned.
#
# What the policy does to images:

# %%
kd.analysis.policy_sheet(result.best, study.train.images[:2], most=4)

# %% [markdown]
# Train with it elsewhere: one readable file, for torchvision here.

# %%
print(kd.export(result.best, "torchvision")[:1200])
