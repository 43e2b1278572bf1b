"""The samplers of optuna, asked and told."""

from typing import Any

import jax
import numpy as np

from l2ljax.core import Key
from l2ljax.hyper._methods import Method, Proposer
from l2ljax.hyper._space import Axis, Space


def optuna(sampler: str = "TPESampler", **arguments: Any) -> Method:
    """A sampler of optuna, by ask and tell; needs the extra `search`.

    Trials that are not finite are told as infinite. A search that goes on from disk asks again for
    the trials that it has, so that the sampler is in the state that it was in.

    Args:
        sampler: the name of a class in `optuna.samplers` that takes a `seed`: "TPESampler",
            "GPSampler", "CmaEsSampler", "QMCSampler", ...
        **arguments: its arguments, plain JSON values; its seed comes from the key of the search.

    Returns:
        A method for `search`.

    Raises:
        ImportError: if optuna is not installed.
        ValueError: for a name that `optuna.samplers` does not have, or a `seed`.

    >>> optuna(n_startup_trials=5).settings
    {'sampler': 'TPESampler', 'n_startup_trials': 5}
    """
    try:
        import optuna as library
    except ImportError as error:
        raise ImportError(
            "hyper.optuna needs the extra search: pip install 'l2ljax[search]'"
        ) from error
    if not sampler.endswith("Sampler") or not hasattr(library.samplers, sampler):
        raise ValueError(f"sampler must be the name of a class in optuna.samplers, got {sampler!r}")
    if "seed" in arguments:
        raise ValueError(f"seed must not be given: the key is, got seed={arguments['seed']!r}")
    floats = library.distributions.FloatDistribution
    integers = library.distributions.IntDistribution
    categories = library.distributions.CategoricalDistribution

    def start(space: Space, key: Key, trials: int) -> Proposer:
        del trials
        distributions: dict[str, Any] = {
            name: categories(range(axis.size or 0))
            if axis.kind == "choice"
            else floats(0.0, 1.0)
            if axis.size is None
            else integers(int(axis.low), int(axis.high), log=axis.log, step=axis.step)
            for name, axis in space.items()
        }
        seed = int(jax.random.bits(key, dtype=np.uint32))
        verbosity = library.logging.get_verbosity()
        library.logging.set_verbosity(library.logging.WARNING)
        study = library.create_study(
            sampler=getattr(library.samplers, sampler)(seed=seed, **arguments)
        )
        library.logging.set_verbosity(verbosity)
        asked: list[Any] = []

        def propose(units: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
            del units
            for begin in range(len(study.trials) - len(asked), len(values), count):
                if not asked:
                    asked.extend(study.ask(distributions) for _ in range(count))
                for trial, value in zip(asked, values[begin : begin + count], strict=True):
                    study.tell(trial, float(value) if np.isfinite(value) else np.inf)
                asked.clear()
            asked.extend(study.ask(distributions) for _ in range(count))
            return np.array(
                [
                    [_unit(axis, trial.params[name]) for name, axis in space.items()]
                    for trial in asked
                ],
                np.float64,
            )

        return propose

    return Method("optuna", {"sampler": sampler, **arguments}, start)


def _unit(axis: Axis, parameter: float) -> float:
    return parameter if axis.size is None else axis.unit(np.array([parameter])).item()
