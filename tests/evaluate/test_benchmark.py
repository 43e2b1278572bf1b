"""Benchmarks over tasks: the yardstick, what is kept, what is reported, what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import classic, evaluate, learned, meta, suite, tasks
from l2ljax.core import Task, as_pytree
from l2ljax.evaluate import _measure
from l2ljax.suite import SuiteTask

BOWL = tasks.quadratic(2)
FACTORS = suite.SUITE["low-rank"].make(None)


def every_second_step(learning_rate):
    """Adam that sleeps at every second step."""
    adam = classic.adam(learning_rate)

    def init(params):
        return jnp.zeros((), jnp.int32), adam.init(params)

    def update(updates, state, params=None):
        count, inner = state
        moved, new = adam.update(updates, inner, params)
        awake = count % 2 == 0
        updates, inner = jax.tree.map(
            lambda a, b: jnp.where(awake, a, b),
            (moved, new),
            (jax.tree.map(jnp.zeros_like, updates), inner),
        )
        return updates, (count + 1, inner)

    return optax.GradientTransformation(init, update)


def stopped(learning_rate, after):
    """Adam whose rate is zero after some steps."""
    return classic.adam(lambda count: jnp.where(count < after, learning_rate, 0.0))


def by_task(result, optimizer):
    return {row.task: row for row in result.rows if row.optimizer == optimizer}


@pytest.fixture(scope="module")
def speeds():
    task = SuiteTask("", lambda data_dir: FACTORS, problems=16, tuning_problems=16)
    slow = evaluate.Tunable(every_second_step, _measure.RATES)
    early = evaluate.Tunable(functools.partial(stopped, after=60), _measure.RATES)
    return evaluate.benchmark({"slow": slow, "early": early}, {"factors": task}, rivals={})


def test_tuned_adam_is_about_as_fast_as_itself_and_a_slow_copy_half_as_fast(speeds):
    itself, slow = (by_task(speeds, name)["factors"] for name in ("Adam", "slow"))
    assert itself.ratio == itself.ratio_low == itself.ratio_high == 1
    assert 0.75 < itself.speedup < 1.2
    # Smoothing makes the curve that they are compared with some steps late.
    assert slow.speedup / itself.speedup == pytest.approx(0.5, abs=0.15)
    assert slow.ratio > 1.05 and slow.ratio_low > 1


def test_the_speedup_of_a_known_schedule_is_where_adams_best_curve_has_its_loss(speeds):
    result = speeds.results["factors"]
    key = jax.random.fold_in(jax.random.key(2_000_000), 2**32 - 1)

    @jax.jit
    def mean_curve(rate):
        adam = as_pytree(classic.adam(rate))
        return meta.unroll_batch(adam, FACTORS, key, horizon=400, problems=16).mean(axis=0)

    best = np.full(401, np.inf)
    for rate in _measure.RATES:
        losses = np.asarray(mean_curve(rate), np.float64)
        for t in range(401):
            level = np.average(losses[: t + 1], weights=0.95 ** np.arange(t, -1, -1))
            best[t] = min(best[t], level)
    rate = result.measurements["early"].setting["learning_rate"]
    final = np.asarray(
        evaluate.curves(
            stopped(rate, 60), FACTORS, key=jax.random.key(2_000_000), steps=200, problems=16
        )
    )[:, -10:].mean()
    reached = next(t for t in range(401) if best[: t + 1].min() <= final)
    row = by_task(speeds, "early")["factors"]
    np.testing.assert_allclose(row.final, final, rtol=1e-5)
    assert row.speedup == pytest.approx(reached / 200, abs=0.011)
    assert row.speedup < 0.6


def test_tuning_problems_are_never_those_that_are_compared():
    seen = []

    def sample(key):
        problem = jax.random.uniform(key)
        jax.debug.callback(lambda problem: seen.append(float(problem)), problem)
        return problem

    task = Task(
        sample,
        lambda key, problem: jnp.ones(2),
        lambda params, problem, key: jnp.sum(problem * params**2),
    )
    entry = SuiteTask("", lambda data_dir: task, steps=3, problems=5, tuning_problems=3)
    evaluate.benchmark(
        {
            "tuned": evaluate.Tunable(optax.sgd, [0.1, 0.2, 0.3]),
            "planned": evaluate.cosine(optax.sgd, [0.1, 0.2, 0.3]),
            "plain": optax.sgd(0.1),
        },
        {"mine": entry},
        rivals={},
    )
    jax.effects_barrier()
    # Two sets, the same ones for all optimizers, without a problem in common.
    assert len(set(seen)) == 5 + 3


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    run = functools.partial(
        evaluate.benchmark,
        suite={"bowl": BOWL, "wide": tasks.quadratic(3)},
        rivals={},
        resume=folder,
        steps=12,
        problems=4,
    )
    optimizers = {
        "sgd": optax.sgd(0.02),
        "tuned": evaluate.Tunable(optax.sgd, [1e-3, 1e-2, 1e-1]),
        "lost": optax.sgd(1e30),
    }
    ticks = iter(range(1000))
    return folder, run, optimizers, run(optimizers, clock=lambda: next(ticks))


def test_what_is_kept_is_read_and_not_run_again(kept, monkeypatch):
    folder, run, optimizers, first = kept
    names = {path.name.rsplit("-", 1)[0] for path in (folder / "bowl").iterdir()}
    assert names == {"Adam", "Adam-rates", "sgd", "tuned", "lost"}
    monkeypatch.setattr(_measure, "_run", None)
    monkeypatch.setattr(_measure, "explore", None)
    again = run({**optimizers, "sgd": optax.sgd(0.02)})
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": optax.sgd(0.03)},
        {"steps": 13},
        {"problems": 5},
        {"key": jax.random.key(1)},
        {"suite": {"bowl": tasks.quadratic(2, "uniform")}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_nothing_is_taken_for_the_result_of_something_else(kept, change, monkeypatch):
    _, run, optimizers, _ = kept
    optimizer = change.pop("optimizer", optimizers["sgd"])

    class Again(Exception):
        pass

    def stop(*arguments):
        raise Again

    monkeypatch.setattr(_measure, "_run", stop)
    with pytest.raises(Again):
        run({"sgd": optimizer}, **change)


def test_weights_tell_results_apart(kept, monkeypatch):
    _, run, _, _ = kept
    opt = learned.lstm(hidden=(2,))
    phi = opt.init(jax.random.key(0))
    run({"mine": opt.bind(phi)}, suite={"bowl": BOWL})
    monkeypatch.setattr(_measure, "_run", None)
    run({"mine": opt.bind(phi)}, suite={"bowl": BOWL})
    with pytest.raises(TypeError):
        run({"mine": opt.bind(jax.tree.map(lambda w: w + 1e-4, phi))}, suite={"bowl": BOWL})


def test_a_damaged_file_is_named(kept):
    folder, run, optimizers, _ = kept
    run({"other": optimizers["sgd"]}, suite={"bowl": BOWL})
    (file,) = (folder / "bowl").glob("other-*")
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"other-.*\.json is damaged, remove it"):
        run({"other": optimizers["sgd"]}, suite={"bowl": BOWL})


def test_a_run_that_diverges_is_infinite_and_shows(kept):
    *_, result = kept
    row = by_task(result, "lost")["bowl"]
    assert (row.final, row.ratio, row.speedup, row.diverged) == (np.inf, np.inf, 0, 4)
    lost = next(row for row in result.summary if row.optimizer == "lost")
    assert (lost.median_ratio, lost.iqm, lost.worse, lost.diverged) == (np.inf, 0, 2, 2)
    json.dumps(result.to_dict(), allow_nan=False)
    assert "inf (bowl)" in str(result)


def test_rows_are_those_of_the_losses(kept):
    *_, result = kept
    assert result.optimizers == ["sgd", "tuned", "lost", "Adam"] and result.tasks == [
        "bowl",
        "wide",
    ]
    key = jax.random.key(2_000_000)
    losses = np.asarray(evaluate.curves(optax.sgd(0.02), BOWL, key=key, steps=12, problems=4))
    final = losses[:, -10:].astype(np.float64).mean(axis=1)
    row, adam = by_task(result, "sgd")["bowl"], by_task(result, "Adam")["bowl"]
    np.testing.assert_allclose(row.final, final.mean(), rtol=1e-6)
    np.testing.assert_allclose(row.median, np.median(final), rtol=1e-6)
    np.testing.assert_allclose(row.ratio, row.final / adam.final, rtol=1e-12)
    assert row.final_low < row.final < row.final_high and row.ratio_low <= row.ratio_high
    assert row.setting is None and adam.setting["learning_rate"] in _measure.RATES
    # One tick a run, of 12 steps of 4 problems; Adam has a count and two means of a float.
    assert row.seconds == adam.seconds == 1 / 48
    assert row.state_bytes == 0 and adam.state_bytes == 8 + 4 / 2
    summary = {row.optimizer: row for row in result.summary}
    ratios = [by_task(result, "sgd")[task].ratio for task in result.tasks]
    assert summary["sgd"].median_ratio == pytest.approx(np.mean(ratios))
    assert summary["sgd"].iqm == pytest.approx(np.mean(1 / np.array(ratios)))
    assert summary["sgd"].worst == max(ratios) and summary["sgd"].time == 1
    assert summary["sgd"].speedup_by_time == pytest.approx(summary["sgd"].speedup)
    assert result.profile(np.array([1.0, np.inf]))["tuned"][1] == 1


def test_ratios_may_be_to_another_optimizer(kept):
    *_, result = kept
    other = result.against("sgd")
    row, before = by_task(other, "Adam")["bowl"], by_task(result, "sgd")["bowl"]
    assert row.ratio == pytest.approx(1 / before.ratio) and "sgd / this" in str(other)
    assert by_task(other, "sgd")["bowl"].ratio == 1
    with pytest.raises(ValueError, match="reference must be one of"):
        result.against("nobody")


def test_tables_are_frames_and_html(kept):
    *_, result = kept
    frame = result.to_frame()
    assert frame.loc[("bowl", "sgd"), "ratio"] == by_task(result, "sgd")["bowl"].ratio
    assert "<th>sgd</th>" in result._repr_html_()
    assert [line[0] for line in result.table()][-1] == "lost"


def test_a_plan_is_told_the_number_of_steps(monkeypatch):
    told = []

    def mine(steps):
        told.append(steps)
        return optax.sgd(optax.linear_schedule(0.02, 0.0, steps))

    evaluate.benchmark({"mine": mine}, {"bowl": BOWL}, rivals={}, steps=7, problems=2)
    assert set(told) == {7}


@pytest.mark.parametrize(
    ("optimizers", "options", "words"),
    [
        ({}, {}, "optimizers must have at least one entry"),
        ({"Adam": optax.adam(1e-3)}, {}, "'Adam' must be the yardstick"),
        ({"mine": optax.adam}, {}, r"optimizers\['mine'\] must be .*Tunable\(it, rates\)"),
        ({"mine": 0.1}, {}, r"optimizers\['mine'\] must be an optax transformation, a Tunable or"),
        ({"mine": lambda steps: None}, {}, r"optimizers\['mine'\]\(200\) must be an optax"),
        ({"mine": learned.mlp()}, {}, r"its `bind\(phi\)` is a transformation"),
        ({"mine": optax.sgd(0.1)}, {"suite": "large"}, "suite must be one of"),
        ({"mine": optax.sgd(0.1)}, {"steps": 0}, "steps must be a whole number of at least 1"),
        ({"mine": optax.sgd(0.1)}, {"problems": 0}, "problems must be a whole number"),
        ({"mine": optax.sgd(0.1)}, {"confidence": 1.0}, "confidence must be"),
        ({"mine": optax.sgd(0.1)}, {"key": 3}, "key must be a PRNG key"),
        (
            {"mine": optax.sgd(0.1)},
            {"rivals": {"mine": optax.sgd(0.1)}},
            "other names than rivals, got 'mine'",
        ),
    ],
)
def test_bad_input_is_refused_before_the_first_run(optimizers, options, words, unchecked):
    with pytest.raises(ValueError, match=words):
        evaluate.benchmark(optimizers, **({"suite": {"bowl": BOWL}} | options))


def test_rivals_have_names_and_a_folder_of_weights(tmp_path):
    assert [*evaluate.rivals()] == ["Adam cosine"]
    assert len(evaluate.rivals("all")) == 21
    with pytest.raises(ValueError, match="did you mean 'Muon'"):
        evaluate.rivals(["muon"])
    with pytest.raises(FileNotFoundError, match="weights_dir must be a folder with safetensors"):
        evaluate.rivals(weights_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("name", evaluate.rivals("all"))
def test_a_rival_updates_any_params(name):
    tx = _measure.plan(name, evaluate.rivals("all")[name], 100)
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2), "scale": jnp.ones(())}

    def step(rate, params):
        made = tx.factory(rate) if isinstance(tx, evaluate.Tunable) else tx
        made = optax.with_extra_args_support(made)
        return made.update(params, made.init(params), params, value=jnp.ones(()))[0]

    found = jax.eval_shape(step, jnp.float32(1e-3), params)
    assert jax.tree.map(lambda a, b: a.shape == b.shape, found, params) == dict.fromkeys(
        params, True
    )


def test_pretrained_rivals_are_told_the_steps(rivals_dir):
    found = evaluate.rivals(weights_dir=rivals_dir)
    assert {"Adam cosine", "celo", "celo_adam", "l2o_rnnprop", "l2o_dm"} <= set(found)
    assert isinstance(found["celo"](30), optax.GradientTransformationExtraArgs)
