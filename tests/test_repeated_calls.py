"""What is called again with equal arguments compiles nothing: from the third call on, for all."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2ljax as l2l
from l2ljax import classic, evaluate, gaussian_process, hyper, learned, meta, networks, tasks
from tests.meta.small import ridge
from tests.methods_table import LEARNED, METHODS

KEY = jax.random.key(0)
UNIT = jnp.linspace(0, 1, 8)[:, None]
PARAMS = {"weight": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([0.5, -0.5])}
IMAGES = jnp.ones((2, 8, 8, 1))
EPISODE = {"horizon": 2, "truncation": 1}

compilations = 0


def _count(name, duration, **_):
    global compilations
    compilations += name == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)


def calls(function, times=4):
    """The compilations of each call."""
    found = []
    for _ in range(times):
        before = compilations
        function()
        found.append(compilations - before)
    return found


def bowl(w):
    return sum(jnp.sum((leaf - 1) ** 2 * (1 + leaf**2)) for leaf in jax.tree.leaves(w))


class Steps:
    """One update a call, outside `jit`."""

    def __init__(self, make, params=PARAMS):
        self.make, self.params = make, params
        self.state = make().init(params)
        self.value_and_grad = jax.jit(jax.value_and_grad(bowl))

    def __call__(self):
        # Made anew, as a function does that makes its own optimizer.
        tx, extra = self.make(), {}
        value, grad = self.value_and_grad(self.params)
        if isinstance(tx, optax.GradientTransformationExtraArgs):
            extra = {"value": value, "grad": grad, "value_fn": lambda w: bowl(w)}
        updates, self.state = tx.update(grad, self.state, self.params, **extra)
        self.params = optax.apply_updates(self.params, updates)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_an_update_outside_jit(method):
    assert calls(Steps(method.make))[2:] == [0, 0]


TRANSFORMATIONS = {
    **{
        name: functools.partial(getattr(classic, name))
        for name in classic.__all__
        if name.startswith("scale_by_")
    },
    "with_snapshots": lambda: classic.with_snapshots(classic.lbfgs(), steps=9, cycles=3),
    "fixed": lambda: learned.fixed(classic.lbfgs()).bind(()),
    "hyperparameters": lambda: bound(learned.hyperparameters("lbfgs", learning_rate=0.5)),
    "reversible_momentum": lambda: bound(learned.reversible_momentum(horizon=3)),
    "load": lambda: learned.load("general"),
    "scaled": lambda: learned.scaled(classic.lbfgs(), num_steps=9),
    "guarded": lambda: learned.guarded(classic.adam(0.1)),
    "tensorwise": lambda: bound(learned.tensorwise()),
}


def bound(opt):
    return opt.bind(opt.init(KEY))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_an_update_of_what_is_made_of_others(name):
    assert calls(Steps(TRANSFORMATIONS[name]))[2:] == [0, 0]


def quadratic():
    return tasks.quadratic(2)


def train(opt=None, task=None, **settings):
    settings = {"key": KEY, "steps": 2, "batch": 2, "chunk": 2, **settings}
    settings.setdefault("estimator", meta.truncated(**EPISODE))
    return meta.train(opt or learned.lstm((2,)), task or quadratic(), **settings)


def make_step():
    step, state = meta.make_step(
        learned.lstm((2,)), quadratic(), key=KEY, estimator=meta.truncated(**EPISODE)
    )
    step(state, KEY)


def by_hyperparameters(estimator):
    return train(learned.hyperparameters("adam", learning_rate=0.1), estimator=estimator)


def compare():
    return evaluate.compare(
        {
            "adam": classic.adam(0.1),
            "chain": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
            "sgd": evaluate.Tunable(classic.gradient_descent, [0.01, 0.1, 1.0]),
            "momentum": evaluate.Tunable(
                lambda learning_rate: optax.sgd(learning_rate, momentum=0.5), [0.01, 0.1]
            ),
        },
        quadratic(),
        key=KEY,
        steps=3,
        problems=2,
        window=1,
    )


def ask_and_tell(name="surrogate-2d"):
    optimizer = hyper.ask_tell(learned.load(name), [(-1.0, 1.0)] * 2)
    state = optimizer.tell(optimizer.init(), 1.0)
    return optimizer.ask(optimizer.tell(state, 0.5))


def episodes_of_a_stream():
    opt = hyper.self_referential(inputs=1, outputs=1)
    task = l2l.Task(
        lambda key: {"inputs": jnp.ones((3, 1)), "targets": jnp.ones((3, 1))},
        lambda key, problem: (),
        lambda params, problem, key: 0.0,
    )
    estimator = hyper.stream()(opt, task)
    phi = opt.init(KEY)
    estimator.estimate(phi, (), KEY)
    return hyper.run_stream(opt.bind(phi), *task.sample(KEY).values())


def hypernetwork():
    return hyper.mlp_hypernetwork(lambda key: jnp.zeros(()), size=1, hidden=(2,))


def apply_network(network, lam=()):
    return network.apply(network.init(KEY), lam)


def draw_and_measure(task):
    problem = task.sample(KEY)
    return task.loss(task.init(KEY, problem), problem, KEY)


def measure_at_psi(task):
    return draw_and_measure(task.bind(task.init(KEY)))


def process():
    known = gaussian_process.Hyperparameters(jnp.ones(1), jnp.array(1.0), jnp.array(1e-4))
    return gaussian_process.condition(UNIT, jnp.sin(6 * UNIT[:, 0]), known)


def search(method):
    space = {"x": hyper.uniform(0, 1), "y": hyper.log_uniform(0.1, 1)}
    return hyper.search(
        lambda settings, key: (settings["x"] - 0.3) ** 2 + settings["y"],
        space,
        key=KEY,
        method=method,
        trials=4,
    )


def search_of_an_optimizer():
    loss = hyper.objective(classic.adam, quadratic(), steps=2, problems=2, window=1)
    space = {"learning_rate": hyper.log_uniform(0.1, 1)}
    return hyper.search(loss, space, key=KEY, method="random", trials=3)


def digits():
    return tasks.digits()


def lstm_of_coordinates():
    phi = networks.lstm_init(KEY, features=2, hidden=(3,))
    carry = networks.lstm_carry((4,), jnp.float32, hidden=(3,))
    networks.lstm_sequence(phi, carry, jnp.ones((3, 2, 4)), hidden=(3,))
    notes = networks.lstm_notes([carry], 1)
    if notes is not None:
        networks.lstm_noting(phi, carry, jnp.ones((2, 4)), notes[0], hidden=(3,))
    return networks.lstm_apply(phi, carry, jnp.ones((2, 4)), hidden=(3,))


def network(kind, *inputs, **settings):
    init, apply = (getattr(networks, f"{kind}_{name}") for name in ("init", "apply"))
    params = init(KEY, *inputs[:1], **settings)
    return apply(params, *inputs, **settings)


def recurrent():
    phi = networks.recurrent_init(KEY, features=2, units=3, outputs=1)
    return networks.recurrent_apply(phi, (jnp.zeros(3), jnp.zeros(3)), jnp.ones(2))


def coordinate(kind, **settings):
    init, apply = (getattr(networks, f"coordinate_{kind}_{name}") for name in ("init", "apply"))
    return apply(init(KEY, features=2, **settings), jnp.ones((2, 4)))


CALLS = {
    "minimize": lambda: classic.minimize(
        classic.adam(0.1), lambda w, batch: jnp.sum(w**2), jnp.ones(2), steps=3, tolerance=0.0
    ),
    "average_predictions": lambda: classic.average_predictions(
        lambda w, x: w * x, jnp.ones(3), 2.0
    ),
    "nesterov_iterate": lambda: classic.nesterov_iterate(
        jnp.ones(2), classic.nesterov(0.1).init(jnp.ones(2))
    ),
    "triangular": lambda: classic.triangular(0.1, 0.5, 2)(3),
    "triangular2": lambda: classic.triangular2(0.1, 0.5, 2)(3),
    "exp_range": lambda: classic.exp_range(0.1, 0.5, 2, 0.9)(3),
    "snapshot_cosine": lambda: classic.snapshot_cosine(0.1, 4, 2)(3),
    "train": train,
    "train with a chain": lambda: train(
        meta_optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(lambda t: 0.1 / (t + 1))
        )
    ),
    "train with a classic method": lambda: train(meta_optimizer=classic.adam(0.1)),
    "train by MultiSteps": lambda: train(meta_optimizer=optax.MultiSteps(optax.adam(0.1), 2)),
    "make_step": make_step,
    "validation": lambda: train(
        validate=meta.validation(
            learned.lstm((2,)), quadratic(), key=KEY, horizon=2, problems=2, window=1
        )
    ),
    "es": lambda: train(estimator=meta.es(**EPISODE)),
    "pes": lambda: train(estimator=meta.pes(**EPISODE)),
    "full": lambda: by_hyperparameters(meta.full(horizon=2)),
    "forward": lambda: by_hyperparameters(meta.forward(horizon=2)),
    "imitation": lambda: train(estimator=meta.imitation(classic.adam(0.1), **EPISODE)),
    "mixture": lambda: train(
        task=[quadratic(), quadratic()], estimator=meta.mixture(meta.truncated(**EPISODE))
    ),
    "weighted": lambda: train(
        estimator=meta.weighted(
            [(1.0, meta.truncated(**EPISODE)), (lambda n: 0.5, meta.es(**EPISODE))]
        )
    ),
    "reversible": lambda: train(
        learned.reversible_momentum(horizon=2), estimator=meta.reversible(horizon=2)
    ),
    "hypergradient_descent": lambda: train(
        l2l.LearnedOptimizer(init=lambda key: jnp.float32(0.001), bind=optax.sgd),
        estimator=meta.hypergradient_descent(horizon=2),
    ),
    "polynomial_weights": lambda: meta.polynomial_weights(3),
    "final_weights": lambda: meta.final_weights(3),
    "unroll": lambda: meta.unroll(
        classic.adam(0.1), quadratic(), quadratic().sample(KEY), KEY, horizon=3
    ),
    "unroll by a line search": lambda: meta.unroll(
        classic.lbfgs(), quadratic(), quadratic().sample(KEY), KEY, horizon=3
    ),
    "unroll_batch": lambda: meta.unroll_batch(
        optax.adam(0.1), quadratic(), KEY, horizon=3, problems=2
    ),
    "begin_episode": lambda: meta.begin_episode(quadratic(), KEY),
    "begin_episodes": lambda: meta.begin_episodes(quadratic(), KEY, 2),
    "episode_keys": lambda: meta.episode_keys(KEY, 2),
    "final_loss": lambda: meta.final_loss(jnp.ones(3), 1),
    "device_mean": lambda: meta.device_mean(None, jnp.ones(3)),
    "compare": compare,
    "curves": lambda: evaluate.curves(classic.adam(0.1), quadratic(), key=KEY, steps=3, problems=2),
    "tune": lambda: evaluate.tune(
        lambda rate: optax.sgd(rate),
        quadratic(),
        [0.01, 0.1],
        key=KEY,
        steps=3,
        problems=2,
        window=1,
    ),
    "baselines": lambda: evaluate.baselines(["Adam"])["Adam"].factory(0.1),
    "range_test": lambda: evaluate.range_test(
        classic.adam, quadratic(), key=KEY, steps=5, problems=2
    ),
    "ask_tell": ask_and_tell,
    "ask_tell by an LSTM": lambda: ask_and_tell("black-box-2d"),
    "minimize_black_box": lambda: hyper.minimize_black_box(
        learned.load("black-box-2d"), lambda x: jnp.sum(x**2), [(-1.0, 1.0)] * 2, horizon=3
    ),
    "black_box": lambda: train(
        learned.black_box_lstm(dim=1, hidden=2),
        tasks.gp_samples(dim=1),
        estimator=hyper.black_box(horizon=2),
    ),
    "self_referential": episodes_of_a_stream,
    "search": lambda: search("random"),
    "grid": lambda: search(hyper.grid(2)),
    "quasi_random": lambda: search(hyper.quasi_random()),
    "bayesian": lambda: search(hyper.bayesian(initial=2)),
    "objective": search_of_an_optimizer,
    "implicit_gradient": lambda: hyper.implicit_gradient(
        lambda w, psi: (w - 2) ** 2 + psi * w**2,
        lambda w, psi: (w - 1) ** 2,
        jnp.ones(()),
        jnp.ones(()),
    ),
    "neumann": lambda: hyper.neumann(3)(lambda x: 2 * x, jnp.ones(())),
    "conjugate_gradients": lambda: hyper.conjugate_gradients()(lambda x: 2 * x, jnp.ones(2)),
    "tune_implicit": lambda: hyper.tune_implicit(ridge(), key=KEY, steps=2),
    "tune_global": lambda: hyper.tune_global(
        ridge(), hypernetwork(), jax.random.normal, key=KEY, steps=2, tuning_steps=2
    ),
    "tune_local": lambda: hyper.tune_local(ridge(), hypernetwork(), key=KEY, steps=2, std=1.0),
    "response_task": lambda: draw_and_measure(
        hyper.response_task(ridge(), hypernetwork(), jax.random.normal)
    ),
    "mlp_hypernetwork": lambda: apply_network(hypernetwork(), jnp.ones(())),
    "interpolating_hypernetwork": lambda: apply_network(
        hyper.interpolating_hypernetwork(lambda key: jnp.zeros(2), 0.0, 1.0), jnp.ones(())
    ),
    "self_tuning_hypernetwork": lambda: apply_network(
        hyper.self_tuning_hypernetwork(lambda key: {"kernel": jnp.ones((3, 2))}, size=1),
        jnp.ones(()),
    ),
    "static_hypernetwork": lambda: apply_network(
        hyper.static_hypernetwork(lambda key: jnp.zeros((20, 20)))
    ),
    "generated": lambda: draw_and_measure(
        hyper.generated(quadratic(), hyper.static_hypernetwork(lambda key: jnp.zeros(2)))
    ),
    "complexity_control": lambda: measure_at_psi(
        hyper.complexity_control(
            l2l.Task(
                lambda key: (), lambda key, problem: jnp.ones(3), lambda w, problem, key: jnp.sum(w)
            ),
            examples=10,
            kind="base",
        )
    ),
    "prune": lambda: hyper.prune(jnp.ones((2, 2)), 0.5),
    "condition": process,
    "posterior": lambda: gaussian_process.posterior(process(), UNIT),
    "sample": lambda: gaussian_process.sample(process(), UNIT, KEY),
    "log_marginal_likelihood": lambda: gaussian_process.log_marginal_likelihood(process()),
    "matern": lambda: gaussian_process.matern(UNIT, UNIT, process().hyperparameters),
    "fit": lambda: gaussian_process.fit(UNIT, jnp.sin(6 * UNIT[:, 0])),
    "fit_lengths": lambda: gaussian_process.fit_lengths(
        UNIT, jnp.sin(6 * UNIT[:, 0]), jnp.array([[0.1], [1.0]])
    ),
    "propose": lambda: gaussian_process.propose(process(), KEY),
    "expected_improvement": lambda: gaussian_process.expected_improvement(
        jnp.ones(2), jnp.ones(2), jnp.array(0.5)
    ),
    "probability_of_improvement": lambda: gaussian_process.probability_of_improvement(
        jnp.ones(2), jnp.ones(2), jnp.array(0.5)
    ),
    "lower_confidence_bound": lambda: gaussian_process.lower_confidence_bound(
        jnp.ones(2), jnp.ones(2)
    ),
    "quadratic": lambda: draw_and_measure(quadratic()),
    "augment": lambda: draw_and_measure(tasks.augment(quadratic(), coordinate=1.0)),
    "warm_start": lambda: draw_and_measure(
        tasks.warm_start(quadratic(), classic.gradient_descent(0.05), steps=3)
    ),
    "learned_init": lambda: measure_at_psi(tasks.learned_init(quadratic())),
    "learned_init_scale": lambda: measure_at_psi(tasks.learned_init_scale(quadratic(), 2.0)),
    "learned_l2": lambda: measure_at_psi(tasks.learned_l2(quadratic(), 0.5)),
    "learned_data": lambda: measure_at_psi(
        tasks.learned_data(
            tasks.mlp_classifier(
                tasks.Dataset(tasks.Split(jnp.zeros((10, 8, 8, 1)), jnp.arange(10)), classes=10),
                (),
                batch_size=None,
            ),
            tasks.mlp_classifier(digits(), (), split="validation"),
        )
    ),
    "gp_samples": lambda: draw_and_measure(tasks.gp_samples(dim=1)),
    "dixon_szego": lambda: draw_and_measure(tasks.dixon_szego("branin", vary=True)),
    "digits": lambda: digits().train.examples(jnp.arange(2)),
    "mlp_classifier": lambda: draw_and_measure(tasks.mlp_classifier(digits(), (4,))),
    "convnet_classifier": lambda: draw_and_measure(
        tasks.convnet_classifier(digits(), channels=(2,), kernel=3, hidden=(4,), batch_size=4)
    ),
    "supervised": lambda: draw_and_measure(
        tasks.supervised(
            lambda key, x: jnp.zeros(x.shape[-1]),
            lambda w, x: x @ w,
            "squared_error",
            tasks.Dataset(tasks.Split(np.asarray(UNIT), np.asarray(UNIT)[:, 0])),
            batch_size=2,
        )
    ),
    "cross_entropy": lambda: tasks.cross_entropy(jnp.ones((2, 3)), jnp.array([0, 1])),
    "squared_error": lambda: tasks.squared_error(jnp.ones((2, 3)), jnp.ones((2, 3))),
    "neural_art": lambda: draw_and_measure(
        tasks.neural_art(
            np.zeros((1, 16, 16, 3)), np.indices((16, 16)).sum(0)[..., None] % 3 / [2, 3, 4]
        )
    ),
    "random_features": lambda: tasks.random_features()(jnp.zeros((1, 16, 16, 3))),
    "lstm": lstm_of_coordinates,
    "recurrent": recurrent,
    "coordinate_dense": lambda: coordinate("dense", units=3),
    "coordinate_mlp": lambda: coordinate("mlp", hidden=(3,), outputs=1),
    "mlp": lambda: network("mlp", IMAGES, hidden=(3,), outputs=2),
    "convnet": lambda: network("convnet", IMAGES, channels=(2,), kernel=3, hidden=(3,), outputs=2),
    "convolve_patches": lambda: networks.convolve_patches(IMAGES, jnp.ones((3, 3, 1, 2))),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call(name):
    assert calls(CALLS[name])[2:] == [0, 0]


OTHERS = {
    "what they make is what other tests call": (
        "adadelta adagrad adam adam_l2 adamw amsgrad bfgs gradient_descent lbfgs momentum nesterov "
        "newton rmsprop saddle_free_newton adaptive_lstm black_box_lstm mlp partition rnnprop "
        "surrogate_lstm celo celo_adam truncated stream run_stream uniform log_uniform integer "
        "choice random rivals cosine"
    ),
    "reads and writes files, or pictures of another package": (
        "cifar10 mnist image vgg_features sample_images sample_art sample_pictures crops "
        "restore restore_state save save_state shipped published read_card hyperparameter_values"
    ),
    "calls a package that is not ours": "optuna",
    "calls `tune`, `curves` and `compare`, for minutes": "benchmark",
}


def test_no_public_function_is_left_out():
    rooms = (classic, evaluate, gaussian_process, hyper, learned, meta, networks, tasks)
    public = {
        name
        for room in rooms
        for name in room.__all__
        if inspect.isfunction(inspect.unwrap(getattr(room, name)))
    }
    named = {*CALLS, *TRANSFORMATIONS, *(name for text in OTHERS.values() for name in text.split())}
    parts = {
        f"{name}_{part}"
        for name in CALLS
        for part in "init apply carry notes noting sequence".split()
    }
    assert public - named - parts - {f"coordinate_{p}" for p in parts} == set()
    assert {str(method) for method in LEARNED} <= {str(method) for method in METHODS}
