"""Optimizers for JAX, hand-designed and learned, each an optax transformation.

The rooms: `classic` methods, `tasks` to optimize, `learned` optimizers, `meta`-training, and
`evaluate` for honest comparison.
"""

__version__ = "0.1.0"

from l2ljax import classic, evaluate, learned, meta, tasks
from l2ljax.core import Estimate, Estimator, LearnedOptimizer, Task

__all__ = [
    "Estimate",
    "Estimator",
    "LearnedOptimizer",
    "Task",
    "__version__",
    "classic",
    "evaluate",
    "learned",
    "meta",
    "tasks",
]
