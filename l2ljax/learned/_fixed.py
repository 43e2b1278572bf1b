"""A transformation in the place of a learned optimizer."""

import optax

from l2ljax.core import Key, LearnedOptimizer, Phi, Transformation, as_pytree, closure


def fixed(tx: Transformation) -> LearnedOptimizer:
    """An optimizer that has nothing to learn, for where only a task's metaparameters are learned.

    Args:
        tx: any optax transformation, also a bound learned one.

    Returns:
        A learned optimizer whose φ is `()` and that binds to `tx`.

    An initial point that gradient descent makes most of:

    >>> import jax
    >>> import l2ljax as l2l
    >>> task = l2l.tasks.learned_init(l2l.tasks.quadratic(dim=2))
    >>> result = l2l.meta.train(fixed(optax.sgd(0.01)), task, key=jax.random.key(0), steps=20,
    ...                         meta_optimizer=optax.adam(0.1), estimator=l2l.meta.full(horizon=5))
    >>> result.phi["optimizer"], result.phi["task"]["init"].shape
    ((), (2,))
    """
    return LearnedOptimizer(init=closure(_nothing), bind=closure(_bind, as_pytree(tx)))


def _nothing(key: Key) -> Phi:
    del key
    return ()


def _bind(tx: optax.GradientTransformation, phi: Phi) -> optax.GradientTransformation:
    del phi
    return tx
