"""Optimizers for JAX, hand-designed and learned, each an optax transformation.

The rooms: `classic` methods, `tasks` to optimize, `learned` optimizers, `meta`-training,
`evaluate` for honest comparison, `hyper` for metaparameters, and the `gaussian_process` that some
of them believe in.
"""

__version__ = "0.1.0"

from l2ljax import classic, evaluate, gaussian_process, hyper, learned, meta, tasks
from l2ljax.core import Estimate, Estimator, LearnedOptimizer, LearnedTask, Task

__all__ = [
    "Estimate",
    "Estimator",
    "LearnedOptimizer",
    "LearnedTask",
    "Task",
    "__version__",
    "classic",
    "evaluate",
    "gaussian_process",
    "hyper",
    "learned",
    "meta",
    "tasks",
]
