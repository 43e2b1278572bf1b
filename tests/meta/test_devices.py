"""Meta-training over a mesh: the same problems and the same φ on any number of devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from l2ljax import checkpoint, learned, meta, tasks
from tests.meta.small import KEY, assert_identical, mesh_of

OPT = learned.lstm((4,))
TASKS = [tasks.quadratic(3), tasks.quadratic(2)]
BATCH, STEPS = 8, 5

ESTIMATORS = {
    "truncated": meta.truncated(horizon=10, truncation=5),
    "several horizons": meta.truncated(horizon=[5, 10], truncation=5, curriculum=1),
    "full": meta.full(horizon=5, meta_loss="log_improvement"),
    "pes": meta.pes(horizon=10, truncation=5, pairs=2, std=0.1),
    "mixture": meta.mixture(meta.truncated(horizon=4, truncation=2), normalize="gradient"),
    "weighted": meta.weighted({"loss": (1.0, meta.truncated(horizon=4, truncation=2))}),
    "es": meta.es(horizon=5, pairs=2, std=0.1),
    "forward": meta.forward(horizon=2),
    "imitation": meta.imitation(optax.sgd(0.01), horizon=4, truncation=2),
    "hypergradient descent": meta.hypergradient_descent(horizon=3),
}

WHOLE = meta.es(horizon=5, pairs=8, std=0.1)
SEGMENTS = meta.es(horizon=10, truncation=5, pairs=16, std=0.1)
PERSISTENT = meta.pes(horizon=10, truncation=5, pairs=16, std=0.1)
PERTURBED = {
    "es": WHOLE,
    "truncated es": SEGMENTS,
    "pes": PERSISTENT,
    "log pes": meta.pes(
        horizon=[5, 10], truncation=5, pairs=8, std=0.1, meta_loss="log_improvement"
    ),
    "weighted": meta.weighted([(1.0, WHOLE), (0.5, PERSISTENT)]),
    "mixture": meta.mixture([SEGMENTS, PERSISTENT]),
}


def train(name, mesh, steps=STEPS, batch=BATCH, estimators=ESTIMATORS, **options):
    task = TASKS if name == "mixture" else TASKS[0]
    return meta.train(
        OPT,
        task,
        key=KEY,
        steps=steps,
        batch=batch,
        estimator=estimators[name],
        mesh=mesh,
        chunk=STEPS,
        **options,
    )


def assert_close(found, expected):
    for name, rows in expected.history.items():
        np.testing.assert_allclose(found.history[name], rows, rtol=2e-5, err_msg=name)
    leaves = jax.tree.leaves(found.last_phi), jax.tree.leaves(expected.last_phi)
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["truncated", *(pytest.param(n, marks=pytest.mark.slow) for n in [*ESTIMATORS][1:])]
)
def test_eight_devices_do_what_one_does(name):
    assert_close(train(name, mesh_of(8)), train(name, None))


def test_devices_wait_for_each_other_once_a_meta_step():
    step, state = meta.make_step(
        OPT, TASKS[0], key=KEY, batch=2, estimator=ESTIMATORS["truncated"], mesh=mesh_of(2)
    )
    program = jax.jit(lambda step, state: step(state, KEY)).lower(step, state).compile().as_text()
    (exchanged,) = re.findall(r" all-reduce(?:-start)?\(([^)]*)\)", program)
    assert "," not in exchanged


def test_the_mean_over_devices_is_that_of_each_array():
    rng = np.random.default_rng(0)
    rows = {
        "kernel": jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=(2, 5)), jnp.bfloat16),
        "steps": jnp.arange(4).reshape(2, 2),
        "loss": jnp.asarray([0.5, 2.0]),
        "none": jnp.zeros((2, 0)),
    }
    one_row = PartitionSpec("problems")
    mesh = mesh_of(2, kind=AxisType.Auto)

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=one_row, out_specs=PartitionSpec())
    def mean(rows):
        return meta.device_mean("problems", jax.tree.map(lambda row: row[0], rows))

    for name, found in mean(rows).items():
        wanted = np.asarray(rows[name], np.float64).mean(axis=0)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-2 if name == "half" else 1e-6)
    assert mean(rows)["half"].dtype == jnp.bfloat16


def train_perturbed(name, mesh, **options):
    return train(name, mesh, batch=1, estimators=PERTURBED, **options)


@pytest.mark.parametrize(
    "name", [*(pytest.param(n, marks=pytest.mark.slow) for n in PERTURBED if n != "pes"), "pes"]
)
def test_eight_devices_share_the_perturbations_of_one_problem(name):
    assert_close(train_perturbed(name, mesh_of(8)), train_perturbed(name, None))


@pytest.mark.slow
def test_devices_share_perturbations_where_the_batch_cannot_be_shared():
    runs = [
        train("pes", mesh, batch=3, estimators=PERTURBED, steps=3) for mesh in (mesh_of(2), None)
    ]
    assert_close(*runs)


def test_the_runs_of_perturbations_are_split_over_the_devices():
    options = {"key": KEY, "batch": 1, "estimator": PERSISTENT}
    _, whole = meta.make_step(OPT, TASKS[0], **options)
    _, state = meta.make_step(OPT, TASKS[0], mesh=mesh_of(8), **options)
    for part, all_of_it in zip(
        jax.tree.leaves(state.estimator.accumulated),
        jax.tree.leaves(whole.estimator.accumulated),
        strict=True,
    ):
        assert part.shape == (8, 2, *all_of_it.shape[1:]) and all_of_it.shape[0] == 16
        assert part.addressable_shards[0].data.shape[0] == 1
    assert state.estimator.segment.episode.params.shape == (8, 4, 1, 3)
    assert whole.estimator.segment.episode.params.shape == (32, 1, 3)


@pytest.mark.slow
def test_a_run_of_shared_perturbations_resumes_bit_for_bit_from_a_file(tmp_path):
    mesh, states = mesh_of(8), []
    # In the middle of an episode, with noise accumulated.
    train_perturbed("pes", mesh, steps=3, callbacks=[lambda p: states.append(p.state)])
    checkpoint.save_state(tmp_path, 3, states[0])
    _, like = meta.make_step(OPT, TASKS[0], key=KEY, batch=1, estimator=PERTURBED["pes"], mesh=mesh)
    state = checkpoint.read_state(tmp_path, like)
    whole, rest = train_perturbed("pes", mesh), train_perturbed("pes", mesh, state=state)
    assert_identical(rest.state, whole.state)
    np.testing.assert_array_equal(rest.history["loss"], whole.history["loss"][3:])


@pytest.mark.parametrize(
    ("estimator", "found"),
    [
        (meta.truncated(horizon=2, truncation=1), "got 3 and an estimator that has none"),
        (meta.es(horizon=2, pairs=12), "got 3 and pairs=12"),
        (meta.pes(horizon=2, truncation=1, pairs=4), "got 3 and pairs=4"),
        (meta.weighted([(1.0, WHOLE), (1.0, meta.es(horizon=2, pairs=2))]), "pairs=8, 2"),
        (meta.weighted([(1.0, WHOLE), (1.0, meta.full(horizon=2))]), "an estimator that has none"),
        (meta.mixture([WHOLE, meta.es(horizon=2, pairs=2)]), "pairs=8, 2"),
        (meta.mixture(meta.full(horizon=2)), "an estimator that has none"),
    ],
)
def test_neither_batch_nor_pairs_that_can_be_shared_is_refused(estimator, found):
    message = f"batch must be a multiple of the 8 devices .* or else the pairs .*{found}"
    with pytest.raises(ValueError, match=message):
        meta.make_step(OPT, TASKS, key=KEY, batch=3, estimator=estimator, mesh=mesh_of(8))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [
        {"devices": 2},
        {"devices": 8, "kind": AxisType.Auto},
        {"devices": 8, "axes": ("problems", "copies"), "shape": (4, 2)},
    ],
    ids=str,
)
def test_any_mesh_will_do(mesh):
    assert_close(train("truncated", mesh_of(**mesh)), train("truncated", None))


def test_the_state_is_split_over_the_devices():
    state = train("truncated", mesh_of(8)).state
    for leaf in jax.tree.leaves(state.estimator):
        assert len(leaf.sharding.device_set) == 8
        assert leaf.addressable_shards[0].data.shape[0] == leaf.shape[0] // 8
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.phi))


def test_a_run_on_a_mesh_goes_on_from_its_state():
    mesh = mesh_of(8)
    half = train("truncated", mesh, steps=2)
    whole, rest = train("truncated", mesh), train("truncated", mesh, state=half.state)
    assert_identical(rest.last_phi, whole.last_phi)


def test_a_step_of_ones_own_loop_takes_a_mesh():
    options = {"key": KEY, "batch": BATCH, "estimator": ESTIMATORS["truncated"]}
    keys = jax.random.split(jax.random.key(1), 3)
    losses = []
    for mesh in (None, mesh_of(8)):
        step, state = meta.make_step(OPT, TASKS[0], mesh=mesh, **options)
        _, metrics = step(state, keys[0])
        # And inside a program of one's own.
        _, many = jax.jit(jax.lax.scan)(step, state, keys)
        np.testing.assert_allclose(many["loss"][0], metrics["loss"], rtol=1e-5)
        losses.append(many["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(
    ("around", "key"),
    [
        (AxisType.Explicit, KEY),
        pytest.param(AxisType.Explicit, jax.random.key_data(KEY), marks=pytest.mark.slow),
        pytest.param(AxisType.Auto, KEY, marks=pytest.mark.slow),
    ],
    ids=["explicit", "explicit, raw key", "auto"],
)
def test_training_takes_its_mesh_inside_a_set_mesh(around, key):
    options = {"key": key, "steps": 4, "batch": BATCH, "estimator": ESTIMATORS["truncated"]}
    expected = meta.train(OPT, TASKS[0], **options)
    mesh, states = mesh_of(8), []
    with jax.set_mesh(mesh_of(8, kind=around)):
        found = meta.train(
            OPT,
            TASKS[0],
            mesh=mesh,
            chunk=2,
            validate=meta.validation(OPT, TASKS[0], key=key, horizon=1, problems=2, window=1),
            callbacks=[lambda progress: states.append(progress.state)],
            **options,
        )
        rest = meta.train(OPT, TASKS[0], mesh=mesh, chunk=2, state=states[0], **options)
        # What comes back is good for operations in here.
        jax.block_until_ready(jax.tree.map(lambda leaf: leaf + 1, found.phi))
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=2e-5)
    np.testing.assert_array_equal(rest.history["loss"], found.history["loss"][2:])


@pytest.mark.parametrize("around", [AxisType.Explicit, AxisType.Auto])
def test_a_step_of_ones_own_loop_works_inside_a_set_mesh(around):
    options = {"key": KEY, "batch": BATCH, "estimator": ESTIMATORS["truncated"]}
    expected, state = meta.make_step(OPT, TASKS[0], **options)
    losses = [expected(state, KEY)[1]["loss"]]
    with jax.set_mesh(mesh_of(8, kind=around)):
        step, state = meta.make_step(OPT, TASKS[0], mesh=mesh_of(8), **options)
        for _ in range(2):
            state, metrics = step(state, KEY)
            losses.append(metrics["loss"] + 0)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
def test_meta_parameters_may_be_on_the_mesh_already(kind):
    phi = OPT.init(KEY)
    found = [
        train("truncated", mesh_of(8), steps=1, phi=jax.device_put(phi, place)).history["loss"]
        for place in (
            jax.devices()[0],
            NamedSharding(mesh_of(8, kind=kind), PartitionSpec()),
            NamedSharding(mesh_of(8, ("others",), kind=kind), PartitionSpec()),
        )
    ]
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_arrays_of_a_validation_may_be_on_one_device():
    on_one = jax.device_put(jnp.float32(3.0), jax.devices()[0])
    validate = jax.tree_util.Partial(lambda target, phi: target + 0 * optax.tree.norm(phi), on_one)
    result = train("truncated", mesh_of(8), steps=1, validate=validate)
    np.testing.assert_allclose(result.history["validation"], [3.0])


def test_a_data_set_in_parts_is_padded_on_the_host():
    split = tasks.Split(jnp.arange(10, dtype=jnp.uint8), np.arange(10))
    parts = split.split_over("problems", 8)
    for found, whole in ((parts.inputs, split.inputs), (parts.labels, split.labels)):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, [*np.asarray(whole), *[0] * 6])
        assert found.dtype == whole.dtype


@pytest.mark.slow
def test_a_data_set_in_parts_has_the_same_minibatches():
    # 21 examples of bytes: the last of 8 devices has none.
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (21, 2, 2, 1), np.uint8)
    split = tasks.Split(images, rng.integers(0, 3, 21, np.int32), maximum=255)
    dataset = tasks.Dataset(train=split, name="small", classes=3)
    task = tasks.mlp_classifier(dataset, (2,), batch_size=6)
    options = {"key": KEY, "batch": BATCH, "estimator": ESTIMATORS["truncated"]}
    losses = []
    for where in ({}, {"mesh": mesh_of(8), "data": "sharded"}):
        step, state = meta.make_step(OPT, task, **options, **where)
        state, metrics = step(state, jax.random.key(1))
        losses.append(metrics["losses"])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    # The estimator names its task in several places, but holds one array.
    (found,) = {
        id(leaf): leaf for leaf in jax.tree.leaves(step) if leaf.dtype == jnp.uint8
    }.values()
    assert found.addressable_shards[0].data.shape == (3, 2, 2, 1)


def test_a_data_set_in_parts_may_be_asked_for_all_of_it():
    split = tasks.Split(np.arange(10.0, dtype=np.float32), np.arange(10))
    whole = jax.shard_map(
        lambda part: part.examples(),
        mesh=mesh_of(8, kind=AxisType.Auto),
        in_specs=PartitionSpec("problems"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )(split.split_over("problems", 8))
    for found, expected in zip(whole, split.examples(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_place_of_data_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="data must be one of .* got 'shared'"):
        meta.make_step(OPT, TASKS[0], key=KEY, mesh=mesh_of(8), batch=8, data="shared")


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="batch must be a multiple of the 8 devices .* got 3"):
        meta.train(OPT, TASKS[0], key=KEY, steps=1, batch=3, mesh=mesh_of(8))


def test_an_estimator_of_ones_own_must_know_of_axes():
    def factory(opt, task, batch=1):
        return meta.truncated(horizon=2, truncation=1)(opt, task, batch)

    settings = {"key": KEY, "batch": BATCH, "estimator": factory}
    meta.make_step(OPT, TASKS[0], **settings)
    with pytest.raises(ValueError, match="estimator must take an argument `axis`"):
        meta.make_step(OPT, TASKS[0], mesh=mesh_of(8), **settings)
