"""What the outer loop is given: all that is not what it should be has an error that names it."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from l2ljax import learned, tasks
from l2ljax.core import Estimator
from l2ljax.meta import (
    es,
    full,
    imitation,
    make_step,
    mixture,
    pes,
    reversible,
    train,
    truncated,
    weighted,
)
from tests.meta.small import KEY, OPT, PHI, TASK, mesh_of

ESTIMATOR = truncated(horizon=4, truncation=2)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """As users have it: without the checks of annotations that tests run with."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def call(function, opt=OPT, task=TASK, **options):
    options = {"key": KEY, "estimator": ESTIMATOR} | options
    if function is train:
        options = {"steps": 2} | options
    return function(opt, task, **options)


@pytest.mark.parametrize("function", [train, make_step])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opt": learned.lstm}, "opt must be a LearnedOptimizer .*lstm.*; was it to be called?"),
        ({"opt": optax.adam(1e-3)}, "opt must be a LearnedOptimizer .*learned.fixed"),
        ({"task": tasks.quadratic}, "task must be a Task.*function quadratic.*was it to be called"),
        ({"task": 3}, "task must be a Task, a LearnedTask or a sequence of them, got 3"),
        ({"task": [TASK, tasks.quadratic]}, "task must be a Task, a LearnedTask or a sequence"),
        ({"task": tasks.load("quadratic")}, "the `train` of a family, got Family"),
        ({"estimator": truncated}, "estimator must be a factory .*truncated.*was it to be called"),
        ({"estimator": mixture}, "estimator must be a factory .*was it to be called"),
        ({"estimator": imitation}, "estimator must be a factory .*was it to be called"),
        ({"estimator": ESTIMATOR(OPT, TASK)}, r"estimator must be a factory .*got SegmentEst"),
        ({"estimator": lambda opt, task, batch: 3}, "factory returns must be an Estimator, got 3"),
        ({"meta_optimizer": 0.1}, "meta_optimizer must be an optax transformation .*got 0.1"),
        ({"meta_optimizer": optax.adam}, "meta_optimizer must be .*was it to be called"),
        ({"mesh": 8}, "mesh must be a jax.sharding.Mesh such as .* got 8"),
        ({"mesh": jax.devices()}, r"mesh must be a jax.sharding.Mesh such as .* got \[CpuDevice"),
        ({"data": "sharded"}, "mesh must be given for data='sharded', got None"),
        ({"phi": jnp.zeros(2, int)}, "phi must have floating-point leaves, got int"),
        ({"phi": jnp.zeros(3)}, r"phi must be like .*only leaf\) is float32\[3\] and not .*\[2\]"),
        ({"phi": {"rate": PHI}}, r"phi must be like .*only leaf\) is missing"),
    ],
)
def test_an_argument_of_another_kind_is_named(function, options, message):
    with pytest.raises(ValueError, match=message):
        call(function, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validate": 3}, "validate must be a function of phi .* got 3"),
        ({"validate": lambda phi: phi}, r"validate must return one .* number, got float32\[2\]"),
        ({"validate": lambda phi: jnp.int32(1)}, r"validate must return one .* got int32\[\]"),
        ({"callbacks": print}, "callbacks must be a sequence of functions .* got <built-in"),
        ({"callbacks": [print, 3]}, "callbacks must be a sequence of functions .* 3"),
        ({"state": 3}, "state must be a TrainResult, or a TrainState such as .* got 3"),
    ],
)
def test_an_argument_of_the_loop_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        call(train, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: weighted([ESTIMATOR]), "term '0' must be a pair of a weight and an estimator"),
        (lambda: weighted({"a": (1.0, 2.0)}), "term 'a' must be a pair .* got .1.0, 2.0."),
        (lambda: es(std=np.ones(2)), r"std must be one positive number, got array\(\[1., 1.\]\)"),
        (lambda: pes(std=[0.1]), r"std must be one positive number, got \[0.1\]"),
        (lambda: mixture()(OPT, tasks.load("quadratic")), "task must be .* got Family"),
    ],
)
def test_an_argument_of_an_estimator_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


RUN = {"batch": 8, "meta_optimizer": optax.adam(0.1)}


@pytest.mark.parametrize(
    ("began", "goes_on", "message"),
    [
        ({"meta_optimizer": optax.sgd(0.1)}, {}, "opt_state/0/count is missing"),
        ({}, {"meta_optimizer": optax.sgd(0.1)}, "opt_state/0/count is not expected"),
        ({"batch": 4}, {}, r"estimator/episode/.*\[4.* and not .*\[8.*the batch"),
        ({"mesh": mesh_of(8)}, {}, r"estimator/step is int32\[8\] and not int32\[\].*the devices"),
        ({"mesh": mesh_of(4)}, {"mesh": mesh_of(8)}, "the batch, the pairs and the devices"),
        ({"estimator": full(horizon=2)}, {"estimator": pes(horizon=4, truncation=2)}, "estimator/"),
        ({"task": tasks.quadratic(3)}, {}, "estimator/episode/problem"),
        (
            {"opt": learned.hyperparameters(optax.sgd, learning_rate=0.1)},
            {},
            "phi.* is not expected|phi.* is missing",
        ),
        ({}, {"key": jax.random.PRNGKey(0)}, "estimator/episode/loss_key is key"),
        (
            {"estimator": truncated(horizon=4, truncation=2)},
            {"estimator": truncated(horizon=12, truncation=3)},
            "at inner step 2, where no segment of truncation=3 and horizon=12 ends",
        ),
        (
            {"estimator": truncated(horizon=8, truncation=2), "steps": 3},
            {"estimator": truncated(horizon=4, truncation=2), "steps": 4},
            "at inner step 6, where no segment of truncation=2 and horizon=4 ends",
        ),
        (
            {"estimator": weighted([(1.0, full(horizon=2)), (1.0, ESTIMATOR)]), "mesh": mesh_of(8)},
            {
                "estimator": weighted([(1.0, full(horizon=2)), (1.0, full(horizon=3))]),
                "mesh": mesh_of(8),
            },
            "at inner step 2, where no segment of truncation=3 and horizon=3 ends",
        ),
    ],
)
def test_a_state_of_other_settings_is_refused(began, goes_on, message):
    state = call(train, **{**RUN, "steps": 1, **began}).state
    with pytest.raises(ValueError, match=f"state must be of this run's settings: .*(?:{message})"):
        call(train, **{**RUN, "steps": 4, **goes_on}, state=state)


def test_phi_with_a_state_is_refused():
    state = call(train, steps=1).state
    with pytest.raises(ValueError, match="phi must be None with a state, which has its own"):
        call(train, state=state, phi=PHI)


def test_a_state_of_a_phi_in_other_precision_goes_on():
    options = {**RUN, "steps": 2}
    half = call(train, **{**options, "steps": 1}, phi=PHI.astype(jnp.bfloat16))
    assert call(train, **options, state=half.state).phi.dtype == jnp.bfloat16


def test_an_estimator_around_others_judges_its_own_state():
    def factory(opt, task, batch):
        inner = ESTIMATOR(opt, task, batch)
        return Estimator(
            init=lambda key, phi: (inner.init(key, phi), inner.init(key, phi)),
            estimate=lambda phi, state, key: (
                inner.estimate(phi, state[0], key)[0],
                (inner.estimate(phi, state[0], key)[1], state[1]),
            ),
        )

    half = call(train, estimator=factory, steps=1)
    assert int(call(train, estimator=factory, state=half.state).state.step) == 2


def test_a_reversible_estimator_not_called_is_refused():
    opt = learned.reversible_momentum(horizon=2)
    with pytest.raises(ValueError, match="estimator must be a factory .*reversible"):
        call(train, opt=opt, estimator=reversible)
