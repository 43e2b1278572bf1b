"""The learning-rate range test: one run whose rate grows shows which rates are worth using."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax._shown import one_line
from l2ljax.core import Key, Task, as_partial, as_pytree
from l2ljax.evaluate._arguments import require_factory, require_task
from l2ljax.meta import unroll_batch

_SPACINGS: dict[str, Callable[..., np.ndarray]] = {"linear": np.linspace, "log": np.geomspace}


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """What a sweep of the rate shows; `range_test` says how the two bounds are found.

    Attributes:
        rates: the rate of each update, f64[steps].
        losses: the loss after each update, f32[problems, steps]; not finite where a run diverged.
        smoothed: the mean over problems, smoothed over steps, f64[steps]; infinite near steps at
            which a run had diverged.
        base: the rate at which the loss starts to fall, or None if it never does.
        maximum: the rate of the lowest smoothed loss before it first rises again, or None if the
            loss never falls.
        reached: whether the loss rises again within the sweep. If not, `maximum` is only the best
            rate that was seen: sweep higher.
        spacing: "linear" or "log".
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    base: float | None
    maximum: float | None
    reached: bool
    spacing: str

    __repr__ = one_line


def range_test(
    factory: Callable[..., optax.GradientTransformation],
    task: Task,
    *,
    key: Key,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 200,
    problems: int = 16,
    spacing: str = "log",
) -> RangeTest:
    r"""Runs an optimizer while its rate grows, and reads off the bounds of a cyclical rate.

    $$\eta_t = \eta_{low} + (\eta_{high} - \eta_{low}) \frac{t}{T-1} \quad \text{(linear)}, \qquad
      \eta_t = \eta_{low} \left( \frac{\eta_{high}}{\eta_{low}} \right)^{t/(T-1)} \quad
      \text{(log)}$$

    Let $s_t$ be the mean loss over problems after update t, averaged over the steps around it, a
    twentieth of all; $D = s_0 - \min_t s_t$ the whole fall; $e$ the median change of the unsmoothed
    mean loss from one step to the next, up to the lowest $s_t$; and $d = \max(D/10, 2e)$ what
    counts as a change.

    - The loss falls if $D > 4e$; noise about a level falls by less.
    - `maximum` is the rate of the first minimum of $s_t$ that lies below $s_0 - d$ and is followed
      by a rise to more than d above it, before any lower loss.
    - `base` is the last rate before it at which $s_t \ge s_0 - d$.

    A direction that diverges shows only when it dominates the loss. The noise of minibatches
    brings it up at once, and `maximum` lies near the edge of stability; without noise smaller rates
    have hidden the direction, and `maximum` may be several times too large: fewer steps help.

    Args:
        factory: `factory(schedule)` makes the optimizer, as `classic.adam` does.
        task: the family that problems are drawn from.
        key: draws the problems, as in `curves`.
        lowest: $\eta_{low} > 0$, the rate of the first update. Default 1e-5.
        highest: $\eta_{high} > \eta_{low}$, the rate of the last one. Default 1.
        steps: T, at least 2. Default 200.
        problems: number of problems; their mean is what is looked at. Default 16.
        spacing: "linear" as in the paper, where the size of the maximum is known, or "log", which
            spans decades. Default "log".

    Returns:
        A `RangeTest`. A good cycle is `classic.triangular(base, maximum, ...)`.

    Raises:
        ValueError: rates that are not positive numbers or not ascending, sizes that are too small,
            an unknown spacing, or what is no factory, no task or no key.

    Reference:
        Smith, *Cyclical learning rates for training neural networks*, 2017, section 3.3, which
        reads the bounds off a plot by eye.

    Gradient descent on $10 x^2$ is stable below a rate of 0.1:

    >>> import jax, optax
    >>> task = Task(sample=lambda key: (), init=lambda key, problem: jnp.ones(()),
    ...             loss=lambda x, problem, key: 10 * x**2)
    >>> found = range_test(optax.sgd, task, key=jax.random.key(0), problems=1)
    >>> print(f"{found.base:.3f} {found.maximum:.3f}")
    0.000 0.099
    """
    require_factory("factory", factory)
    require_task("task", task)
    _checks.key("key", key)
    for name, rate in [("lowest", lowest), ("highest", highest)]:
        _checks.positive(name, rate)
        _checks.number(name, rate)
    if highest <= lowest:
        raise ValueError(f"highest must be more than lowest={lowest}, got {highest}")
    _checks.count("steps", steps, least=2)
    _checks.count("problems", problems)
    _checks.choice("spacing", spacing, _SPACINGS)
    rates = _SPACINGS[spacing](lowest, highest, steps)
    losses = np.asarray(_sweep(as_partial(factory), task, key, jnp.asarray(rates), problems))
    level = np.where(np.isfinite(losses), losses, np.inf).mean(axis=0, dtype=np.float64)
    smoothed = _smooth(level)
    bounds = _bounds(level, smoothed)
    base, maximum = (None, None) if bounds is None else rates[list(bounds[:2])].tolist()
    reached = bounds is not None and bounds[2]
    return RangeTest(rates, losses, smoothed, base, maximum, reached, spacing)


@program("problems")
def _sweep(
    make: Callable[..., optax.GradientTransformation],
    task: Task,
    key: Key,
    rates: Float[Array, " steps"],
    problems: int,
) -> Float[Array, "{problems} steps"]:
    tx = as_pytree(make(lambda count: rates[count]), "what factory makes")
    return unroll_batch(tx, task, key, horizon=len(rates), problems=problems)[:, 1:]


def _smooth(level: np.ndarray) -> np.ndarray:
    """The mean over a twentieth of all steps, three at least, about each one."""
    half = max(1, len(level) // 40)
    return np.array([level[max(0, t - half) : t + half + 1].mean() for t in range(len(level))])


def _bounds(level: np.ndarray, smoothed: np.ndarray) -> tuple[int, int, bool] | None:
    """The steps of base and maximum, and whether a rise follows; None if the loss never falls."""
    start, lowest = smoothed[0], int(np.argmin(smoothed))
    if lowest == 0 or not np.isfinite(start):
        return None
    before = level[: lowest + 1]
    noise = np.median(np.abs(np.diff(before[np.isfinite(before)])))
    fall = start - smoothed[lowest]
    if fall <= 4 * noise:
        return None
    change = max(fall / 10, 2 * noise)
    least = np.minimum.accumulate(smoothed)
    risen = (least <= start - change) & (smoothed > least + change)
    end = int(np.argmax(risen)) if risen.any() else len(smoothed)
    maximum = int(np.argmin(smoothed[:end]))
    base = int(np.flatnonzero(smoothed[:maximum] >= start - change)[-1])
    return base, maximum, bool(risen.any())
