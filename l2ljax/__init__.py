"""Optimizers for JAX, hand-designed and learned, each an optax transformation.

The rooms: `classic` methods, `tasks` to optimize, `learned` optimizers, `meta`-training,
`evaluate` for honest comparison, the `suite` of tasks for it, `hyper` for metaparameters, and the
`gaussian_process` that some of them believe in. `plots` needs matplotlib.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from l2ljax import classic, evaluate, gaussian_process, hyper, learned, meta, suite, tasks
    from l2ljax import plots as plots
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
    "suite",
    "tasks",
]

if not TYPE_CHECKING:
    # A package is imported when it is first used: `l2ljax --help` does without JAX.
    def __getattr__(name: str) -> Any:
        missing = AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name.startswith("_"):
            raise missing
        if name in __all__ and name[0].isupper():
            return getattr(importlib.import_module("l2ljax.core"), name)
        try:
            return importlib.import_module(f"l2ljax.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"l2ljax.{name}":
                raise
            raise missing from None

    def __dir__() -> list[str]:
        # Tools get every attribute that is listed, so none that cannot be had.
        optional = ["plots"] if importlib.util.find_spec("matplotlib") else []
        return sorted({*globals(), *__all__, *optional})
