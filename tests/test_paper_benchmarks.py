"""The suites of `benchmarks/paper`: that they build, are learnable and are judged as they say."""

import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_benchmark import result_of

from l2ljax import evaluate, learned, meta, tasks
from l2ljax.core import LearnedOptimizer, Task, closure

# The scripts import each other by name, as they do when they are run.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks" / "paper"))
general, panels, paper, lengths, parts, weights = map(
    importlib.import_module,
    ["general", "panels", "run", "recipes.lengths", "recipes.parts", "weights"],
)


def first_key():
    """Of the generator that compiles fastest."""
    return jax.random.key(0, impl="unsafe_rbg")


def random_like(shapes):
    """Params of these shapes. Compiling their initializers would take most of the time here."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


# Judgements.


def three_tasks(**finals):
    """With these final losses of each optimizer on their one problem."""
    return result_of(
        {
            str(i): {name.replace("_", " "): [losses[i]] for name, losses in finals.items()}
            for i in range(3)
        }
    )


def test_the_verdict_on_general_has_a_bar_for_each_rival_that_ran():
    found = three_tasks(
        general=[1, 2, 3],
        Adam_cosine=[1, 1, 3],
        celo=[2, 1, 4],
        DoWG=[9, 9, 9],
        Prodigy_cosine=[2, 2, 2],
        Adam=[2, 2, 2],
    )
    bars = {bar.what: bar for bar in general.judge(found)}
    assert {what: bar.value for what, bar in bars.items()} == {
        "median ratio to tuned Adam": 1,
        "worst ratio to tuned Adam": 1.5,
        "interquartile mean of tuned Adam / ours": pytest.approx((2 + 1 + 2 / 3) / 3),
        "interquartile mean of speedup": pytest.approx((1.5 + 1 + 1) / 3),
        "median ratio to tuned cosine Adam": 1,
        "tasks worse than 1.1 of tuned cosine Adam": 1,
        "lower than Celo, of 3 tasks": 2,
        "lower than Prodigy cosine, of 3 tasks": 1,
    }
    assert str(bars["worst ratio to tuned Adam"]).endswith("1.5 (floor 1.6, aim 1.2): floor")
    assert str(bars["lower than Celo, of 3 tasks"]).endswith("neither")
    assert str(bars["tasks worse than 1.1 of tuned cosine Adam"]).endswith("aim")
    alone = general.judge(three_tasks(general=[1, 1, 1], Adam=[2, 2, 2]))
    assert len(alone) == 4 and str(alone[0]).endswith("0.5 (floor 0.85, aim 0.75): aim")


@pytest.mark.parametrize("panel", panels.PANELS.values(), ids=panels.PANELS)
def test_a_panel_asks_for_less_than_it_aims_at(panel):
    assert panel.floor >= panel.aim > 0
    assert panel.window <= panel.steps and panel.weights


@pytest.mark.parametrize(
    ("ratio", "diverged", "words"),
    [
        (0.75, 0, "paper 0.76, here 0.750 [0.700, 0.900]"),
        (0.75, 0, "reaches the aim 0.8"),
        (0.9, 0, "reaches the floor 1.0, misses the aim 0.8"),
        (1.25, 0, "falls short of the floor 1.0 by 0.250"),
        (0.75, 1, "falls short"),
    ],
)
def test_a_panel_says_whether_its_ratio_is_enough(ratio, diverged, words):
    verdict = {"ratio": ratio, "low": 0.7, "high": 0.9, "diverged": diverged, "paper": 0.76}
    verdict |= {"floor": 1.0, "aim": 0.8, "learned": "LSTM", "final": 0.3}
    verdict |= {"best_of_four": "Adam", "baseline": 0.4}
    assert words in paper.say("mnist", verdict)


# The run.


PARABOLA = Task(
    sample=lambda key: (),
    init=lambda key, problem: jnp.ones(2),
    loss=lambda params, problem, key: jnp.sum(params**2),
)


def descend(rate, updates, state, params=None):
    return jax.tree.map(lambda g: -rate * g, updates), state


@pytest.mark.parametrize(("rate", "length"), [(0.4, 1.0), (1.05, 0.85), (1.3, 0.7)])
def test_the_best_length_of_steps_is_the_longest_that_learns(rate, length):
    def bind(phi):
        return optax.GradientTransformation(
            closure(lambda p: ()), closure(descend, phi["output_kernel"])
        )

    opt = LearnedOptimizer(closure(lambda key: {}), closure(bind))
    phi = {"output_kernel": jnp.float32(rate), "output_bias": 1.0, "other": jnp.float32(2.0)}
    found = lengths.best_length(
        opt,
        [PARABOLA],
        phi,
        jax.random.key(0),
        lengths=(0.6, 0.7, 0.85, 1.0),
        runs=((40, 2), (100, 1)),
        windows=(1,),
    )
    np.testing.assert_allclose(found["output_kernel"], length * rate, rtol=1e-6)
    np.testing.assert_allclose(found["output_bias"], length, rtol=1e-6)
    assert found["other"] == 2


def test_a_run_on_some_tasks_writes_no_table_and_one_on_all_does(tmp_path, monkeypatch, capsys):
    asked = []

    def benchmark(optimizers, tasks, *, rivals, data_dir, **options):
        asked.append((tasks, list(rivals), optimizers["general"](70).init(jnp.ones(2))))
        return three_tasks(general=[1, 2, 3], Adam=[2, 2, 2])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "benchmark", benchmark)
    general.main(["--tasks", "iris", "--rivals", "Prodigy"])
    assert asked[0][:2] == (["iris"], ["Prodigy"]) and isinstance(asked[0][2], learned.ScaledState)
    assert "not written" in capsys.readouterr().out
    opt = learned.lstm(hidden=(2,))
    phi = random_like(jax.eval_shape(opt.init, first_key()))
    learned.save("mine", opt, phi, {"trained_on": "nothing"})
    general.main(["--weights", "mine"])
    assert asked[1][0] == "full" and len(asked[1][1]) == 21
    table = json.loads((tmp_path / "runs" / "paper" / "general.json").read_text())
    assert table["weights"]["trained_on"] == "nothing" and len(table["verdict"]) == 4
    assert (tmp_path / "runs" / "paper" / "general.png").exists()
    with pytest.raises(SystemExit):
        general.main(["--rival-weights", "gone"])
    assert "weights_dir must be a folder" in capsys.readouterr().err


def small_recipe(start, steps, **options):
    """Of two coordinates; `steps`: of each part, all of which have these options."""
    opt, task = learned.lstm((2,)), tasks.quadratic(2)
    estimator = meta.truncated(horizon=2, truncation=2)
    return parts.Recipe(
        opt=opt,
        task=task,
        parts=[parts.Part(count, 1e-3, estimator, **options) for count in steps],
        validate=lambda key: meta.validation(opt, task, key=key, horizon=2, problems=2, window=1),
        trained_on="two coordinates",
        limits="all",
        start=start,
    )


@pytest.mark.parametrize("steps", [[], [2, 1]])
def test_a_recipe_leaves_weights_and_a_card_and_goes_on_from_what_is_done(steps, tmp_path):
    begun = []

    def start(folder, key):
        assert folder == tmp_path
        begun.append(learned.lstm((2,)).init(key))
        return begun[-1]

    recipe = small_recipe(start, steps)
    weights.meta_train(recipe, tmp_path, seed=0, command="python this")
    _, phi, card = learned.restore(tmp_path)
    assert card["meta_steps"] == steps
    assert (card["command"], card["trained_on"]) == ("python this", "two coordinates")
    assert np.isfinite(card["scores"]["validation"])
    moved = jax.tree.map(lambda new, old: bool(jnp.any(new != old)), phi, begun[0])
    assert any(jax.tree.leaves(moved)) == bool(steps)
    weights.meta_train(recipe, tmp_path, seed=0, command="python this")
    jax.tree.map(np.testing.assert_array_equal, learned.restore(tmp_path)[1], phi)


def test_a_part_leaves_a_share_of_what_it_finds_and_what_its_end_makes_of_that(tmp_path):
    first = learned.lstm((2,)).init(jax.random.key(7))
    ends = {
        "all": {},
        "share": {"share": 0.25},
        "twice": {"share": 0.25, "finish": lambda phi, key: jax.tree.map(lambda x: 2 * x, phi)},
    }
    left = {}
    for name, end in ends.items():
        recipe = small_recipe(lambda folder, key: first, [2], **end)
        weights.meta_train(recipe, tmp_path / name, seed=0, command="python this")
        # The part's own folder has it already, for parts and recipes that begin there.
        left[name] = learned.restore(tmp_path / name / "part-1")[1]
        jax.tree.map(np.testing.assert_array_equal, learned.restore(tmp_path / name)[1], left[name])
    jax.tree.map(
        lambda whole, part, old: np.testing.assert_allclose(part, old + (whole - old) / 4, 1e-6),
        left["all"],
        left["share"],
        first,
    )
    assert np.any(left["all"]["output_kernel"] != first["output_kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), left["twice"], left["share"])
