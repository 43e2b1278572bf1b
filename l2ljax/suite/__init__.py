"""The tasks that optimizers are compared on, which nothing here was trained on or chosen by.

Seventeen small tasks with other data, models or losses than meta-training has: `SUITE`. The
learned optimizer `general` was meta-trained on digits and MNIST at 14x14 pixels by MLPs, a small
ConvNet and a recurrent network, and on quadratics, over 1,000 steps at the most; where a task here
has digits or MNIST, its examples are others, and so is its model or loss.

`select` gives a part of them. A task of your own is a `SuiteTask`, or any `Task`:
`evaluate.benchmark(optimizers, {**select("small"), "mine": task})`.
"""

from l2ljax.suite._select import Tasks, select
from l2ljax.suite._tasks import SUITE, SuiteTask

__all__ = ["SUITE", "SuiteTask", "Tasks", "select"]
