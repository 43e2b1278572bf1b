"""The outer loop: meta-gradients from an estimator, handed to an optax optimizer."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Int

from l2ljax import _checks
from l2ljax._programs import program
from l2ljax.core import (
    Estimator,
    Key,
    LearnedOptimizer,
    LearnedTask,
    Phi,
    Scalar,
    Task,
    Transformation,
    as_pytree,
)
from l2ljax.meta._arguments import (
    functions,
    require_kinds,
    require_phi,
    require_segment,
    require_state,
)
from l2ljax.meta._binding import drawing, tasks_of
from l2ljax.meta._devices import handed_out, on, over_devices, replicate
from l2ljax.meta._history import History
from l2ljax.meta._mixture import Mixture, mixture
from l2ljax.meta._progress import (
    Callback,
    Progress,
    ProgressBar,
    TrainResult,
    TrainState,
    asks_to_end,
    keeping,
)
from l2ljax.meta._reversible import raise_faults
from l2ljax.meta._segments import EstimatorFactory, make_estimator
from l2ljax.meta._truncated import truncated
from l2ljax.meta._validation import consider


def make_step(
    opt: LearnedOptimizer,
    task: Task | LearnedTask | Sequence[Task | LearnedTask],
    *,
    key: Key,
    batch: int = 1,
    meta_optimizer: Transformation | None = None,
    estimator: EstimatorFactory | None = None,
    phi: Phi | None = None,
    mesh: Mesh | None = None,
    data: str = "replicated",
) -> tuple[Callable[[TrainState, Key], tuple[TrainState, dict[str, Array]]], TrainState]:
    """The pure piece of meta-training, for a loop of your own.

    A meta-gradient that is not finite leaves φ and the meta-optimizer as they are, and the step's
    metrics say `skipped`.

    Args:
        opt: the learned optimizer.
        task: what it is trained on; a learned task and several tasks as in `train`.
        key: draws the first φ and the estimator's first state.
        batch: problems of one meta-gradient.
        meta_optimizer: any optax transformation; default `optax.adam(1e-3)`.
        estimator: an estimator factory; default `truncated(horizon=100, truncation=20)`.
        phi: the first φ; default: drawn by `opt.init`, and ψ by `task.init`.
        mesh: devices that share the batch, or perturbations, as in `train`. Where `step` is part of
            a jitted program of your own, the axes of a `jax.set_mesh` around it must be Auto.
        data: where data sets are on a mesh, as in `train`.

    Returns:
        `step` and the first state; `step(state, key) -> (state, metrics)` is jitted, and `metrics`
        holds `loss`, `grad_norm`, `skipped` and the estimator's `aux`.

    Raises:
        ValueError: for a batch below 1, what is no key, and as `train` does for these arguments.

    >>> import l2ljax as l2l
    >>> key = jax.random.key(0)
    >>> step, state = make_step(l2l.learned.lstm(), l2l.tasks.quadratic(), key=key, batch=8,
    ...                         estimator=truncated(horizon=20, truncation=10))
    >>> state, metrics = step(state, jax.random.key(1))
    >>> int(state.step), sorted(metrics)
    (1, ['grad_norm', 'loss', 'losses', 'skipped', 'step'])
    """
    _checks.key("key", key)
    estimates, meta = _prepare(opt, task, batch, meta_optimizer, estimator, mesh, data)
    draw = drawing(opt, task)
    require_phi(draw, key, phi)
    if mesh is not None:
        draw, estimates, meta, key, phi = replicate((draw, estimates, meta, key, phi), mesh)
    step = Partial(_jitted_step if mesh is None else partial(_step_on, mesh), estimates, meta)
    return step, handed_out(mesh, on(mesh, _jitted_start, draw, estimates, meta, key, phi))


def train(
    opt: LearnedOptimizer,
    task: Task | LearnedTask | Sequence[Task | LearnedTask],
    *,
    key: Key,
    steps: int,
    batch: int = 1,
    meta_optimizer: Transformation | None = None,
    estimator: EstimatorFactory | None = None,
    validate: Callable[[Phi], Scalar] | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    phi: Phi | None = None,
    state: TrainState | TrainResult | None = None,
    mesh: Mesh | None = None,
    data: str = "replicated",
    callbacks: Iterable[Callback] = (),
    progress: bool = False,
    chunk: int = 25,
) -> TrainResult:
    r"""Meta-trains a learned optimizer.

    $$\phi \leftarrow \phi + \text{meta-optimizer}(\widehat{\nabla}_\phi L(\phi))$$

    Chunks of meta-steps run as one compiled loop. Step i draws its problems with
    `fold_in(key, i)`, so a run does not depend on how it is cut into chunks, and the same key gives
    the same φ.

    Gradient clipping and schedules belong to the meta-optimizer:
    `optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))`.

    What makes a learned optimizer work beyond the problems and the horizon that it saw:

    | it fails | a remedy |
    |---|---|
    | after more steps than it was trained for | `truncated(horizon=[100, 200, 500])` |
    | so, and long episodes explode at first | `truncated(horizon=..., curriculum=50)` |
    | late in a run, where losses are small | `truncated(meta_loss="log")`, `step_weights=` |
    | to beat a plain method, or to start at all | `imitation(teacher)` in a `weighted` sum |
    | on other architectures | several tasks, see `mixture` |
    | on some of those tasks: one rules the gradient | `mixture(normalize="gradient")` |
    | on fresh problems, after too many meta-steps | `validate=validation(...)` |

    Args:
        opt: the learned optimizer.
        task: what it is trained on; or several tasks, of which every meta-step draws one (see
            `mixture`, whose `estimator=mixture(...)` has weights and an estimator for each). With
            a `LearnedTask` its metaparameters ψ are trained too, and φ is
            `{"optimizer": φ, "task": ψ}`; the estimator must be exact in second derivatives.
        key: PRNG key of the whole run.
        steps: meta-updates (with truncation 20 and horizon 100, five to an episode).
        batch: problems of one meta-gradient.
        meta_optimizer: any optax transformation; default `optax.adam(1e-3)`.
        estimator: an estimator factory; default `truncated(horizon=100, truncation=20)`.
        validate: a score of φ to be minimised, see `validation`; turns on early stopping and makes
            `result.phi` the best φ seen. It is compiled; one that holds arrays is best a `Partial`.
        validate_every: meta-steps between validations.
        patience: validations without a new best after which training stops; None: never.
        phi: the first φ, such as that of an earlier run; default: drawn by `opt.init`, and ψ by
            `task.init`.
        state: what to go on from, with the same `key` and settings, but no `phi`; `steps` then
            counts from the beginning of the run. A `TrainResult` gives its history too, and the
            new one is that of the whole run; a `TrainState`, as `restore_state` reads it, none.
        mesh: devices along whose first axis the batch is split, such as
            `jax.make_mesh((jax.device_count(),), ("problems",))`; default: the first device has it
            all. Where they cannot share the batch evenly, and the estimator is `es` or `pes` (or a
            `mixture` or `weighted` sum of nothing else), its pairs are split instead, which they
            must be able to share. Problems and perturbations are the same on any number of devices,
            and φ up to rounding.
        data: where the examples of data sets (`tasks.Dataset`) are on a mesh. "replicated": all on
            each device; "sharded": a part on each, and devices send each other the examples of
            every batch, for data that one device has no room for. Problems and minibatches are the
            same. Other arrays that a task carries are on each device.
        callbacks: called with `Progress` after every chunk. One that returns True ends the run
            after this chunk, and what was reached is returned.
        progress: whether to show a bar with meta-step, loss per step, meta-loss and time left.
        chunk: meta-steps of one compiled call; results do not depend on it.

    Returns:
        A `TrainResult`.

    Raises:
        Exception: that of a callback, as it is. It, those below that end a run and Ctrl-C have the
            `TrainResult` of the chunks before as their attribute `result`.
        ValueError: for sizes below 1, an argument of another kind than it must be, no key, no task,
            an unknown `data`, `patience` without `validate`, a `validate` that does not return one
            number, `phi` of other shapes than `opt` draws, a `state` past `steps` or of other
            settings, `phi` and `state` together, or a batch and pairs of perturbations that the
            devices of `mesh` cannot share evenly.
        RuntimeError: if `meta.reversible` could not run an episode back to its beginning.
        FloatingPointError: if no meta-gradient was finite in 25 meta-steps one after the other, or
            in a whole run.

    Reference:
        Andrychowicz et al. (2016), section 2; early stopping on fresh problems as in section 3.

    >>> import l2ljax as l2l
    >>> result = train(l2l.learned.lstm(), l2l.tasks.quadratic(), key=jax.random.key(0), steps=30,
    ...                batch=8, estimator=truncated(horizon=20, truncation=20))
    >>> bool(result.history["loss"][-5:].mean() < result.history["loss"][:5].mean())
    True
    """
    _checks.key("key", key)
    for name, value in [("steps", steps), ("validate_every", validate_every), ("chunk", chunk)]:
        _checks.count(name, value)
    if patience is not None:
        _checks.count("patience", patience)
        if validate is None:
            raise ValueError(f"validate must be given for patience={patience} to count, got None")
    if phi is not None and state is not None:
        raise ValueError("phi must be None with a state, which has its own, got both")
    validate, callbacks = functions(validate, callbacks)
    estimates, meta = _prepare(opt, task, batch, meta_optimizer, estimator, mesh, data)
    draw = drawing(opt, task)
    require_phi(draw, key, phi)
    if mesh is not None:
        draw, estimates, meta, key, phi, validate = replicate(
            (draw, estimates, meta, key, phi, validate), mesh
        )
    start = partial(_jitted_start, draw, estimates, meta, key)
    before = state.history if isinstance(state, TrainResult) else None
    if state is None:
        now = on(mesh, start, phi)
    else:
        now = state.state if isinstance(state, TrainResult) else state
        on(mesh, require_state, now, start, draw, key)
        now = now if mesh is None else replicate(now, mesh)
        on(mesh, require_segment, now, estimates)
    if validate is not None:
        # An error in it comes now, and not after many meta-steps.
        on(mesh, jax.eval_shape, consider, validate, now)
    done = int(now.step)
    if done > steps:
        raise ValueError(f"steps must be at least the {done} that state has done, got {steps}")

    history = History(done, before)

    def result() -> TrainResult:
        state = handed_out(mesh, now)
        selected = validate is not None and np.isfinite(float(state.best_score))
        chosen = state.best_phi if selected else state.phi
        return TrainResult(chosen, state.phi, history.arrays(), state)

    with keeping(result), contextlib.ExitStack() as stack:
        if progress:
            callbacks.append(stack.enter_context(ProgressBar(done, steps)))
        ended = False
        while done < steps and not ended and (patience is None or int(now.stale) < patience):
            size = min(chunk, steps - done, validate_every - done % validate_every)
            new, metrics = on(mesh, _jitted_chunk, estimates, meta, now, key, size, capacity=chunk)
            # Waits for the chunk: an interrupt until then leaves state and history as they were.
            measured = {name: _first(rows, size) for name, rows in metrics.items()}
            raise_faults(measured)
            now, done = new, done + size
            history.add(measured)
            score = None
            if validate is not None and (done % validate_every == 0 or done == steps):
                now, scored = on(mesh, consider, validate, now)
                score = float(scored)
                history.add_score(score)
            report = Progress(handed_out(mesh, now), steps, measured, score)
            # Each of them is called, whichever asks for the end.
            ended = any([asks_to_end(callback(report)) for callback in callbacks])
        history.finish()
    return result()


def _prepare(
    opt: LearnedOptimizer,
    task: Task | LearnedTask | Sequence[Task | LearnedTask],
    batch: int,
    meta_optimizer: Transformation | None,
    estimator: EstimatorFactory | None,
    mesh: Mesh | None,
    data: str = "replicated",
) -> tuple[Estimator, optax.GradientTransformation]:
    require_kinds(opt, meta_optimizer, estimator, mesh, data)
    tasks_of(task)
    estimator = truncated() if estimator is None else estimator
    if not isinstance(task, Task | LearnedTask) and not isinstance(estimator, Mixture):
        estimator = mixture(estimator)
    if mesh is None:
        estimates = make_estimator(estimator, opt, task, batch, None)
    else:
        estimates = over_devices(estimator, opt, task, batch, mesh, data)
    meta = optax.adam(1e-3) if meta_optimizer is None else meta_optimizer
    return estimates, as_pytree(meta)


def _first(rows: Array, size: int) -> np.ndarray:
    """The rows that a chunk filled; a part is copied, so that the rest is not kept."""
    found = np.asarray(rows)
    return found if len(found) == size else found[:size].copy()


@program()
def _jitted_start(
    draw: Partial,
    estimates: Estimator,
    meta: optax.GradientTransformation,
    key: Key,
    phi: Phi | None,
) -> TrainState:
    phi_key, state_key = jax.random.split(key)
    phi = draw(phi_key) if phi is None else phi
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        phi=phi,
        opt_state=meta.init(phi),
        estimator=estimates.init(state_key, phi),
        best_phi=phi,
        best_score=jnp.asarray(jnp.inf, jnp.result_type(float)),
        stale=zero,
    )


def _step(
    estimates: Estimator, meta: optax.GradientTransformation, state: TrainState, key: Key
) -> tuple[TrainState, dict[str, Array]]:
    estimate, estimator_state = estimates.estimate(state.phi, state.estimator, key)
    updates, opt_state = optax.with_extra_args_support(meta).update(
        estimate.grad, state.opt_state, state.phi, value=estimate.loss, grad=estimate.grad
    )
    norm = optax.tree.norm(estimate.grad)
    usable = jnp.isfinite(norm) & jnp.isfinite(estimate.loss)
    moved = (optax.apply_updates(state.phi, updates), opt_state)
    phi, opt_state = jax.tree.map(
        lambda new, old: jnp.where(usable, new, old), moved, (state.phi, state.opt_state)
    )
    metrics = {"loss": estimate.loss, "grad_norm": norm, "skipped": ~usable, **estimate.aux}
    state = state._replace(
        step=state.step + 1, phi=phi, opt_state=opt_state, estimator=estimator_state
    )
    return state, metrics


_jitted_step = program()(_step)


def _step_on(
    mesh: Mesh,
    estimates: Estimator,
    meta: optax.GradientTransformation,
    state: TrainState,
    key: Key,
) -> tuple[TrainState, dict[str, Array]]:
    state, key = replicate((state, key), mesh)
    return handed_out(mesh, on(mesh, _jitted_step, estimates, meta, state, key))


@program("capacity")
def _jitted_chunk(
    estimates: Estimator,
    meta: optax.GradientTransformation,
    state: TrainState,
    key: Key,
    size: Int[Array, ""],
    *,
    capacity: int,
) -> tuple[TrainState, dict[str, Array]]:
    """`size` meta-steps; their metrics fill the first rows of arrays of `capacity` rows."""

    def body(i: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
        state, rows = carry
        state, metrics = _step(estimates, meta, state, jax.random.fold_in(key, state.step))
        return state, jax.tree.map(lambda row, value: row.at[i].set(value), rows, metrics)

    shapes = jax.eval_shape(_step, estimates, meta, state, key)[1]
    rows = jax.tree.map(lambda shape: jnp.zeros((capacity, *shape.shape), shape.dtype), shapes)
    # A loop with a traced bound, so that a shorter last chunk is the same program.
    return jax.lax.fori_loop(0, size, body, (state, rows))
