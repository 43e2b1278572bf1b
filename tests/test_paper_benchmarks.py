"""The suites of `benchmarks/paper`: that they build, are learnable and are judged as they say."""

import dataclasses
import importlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2ljax import learned, meta, tasks
from l2ljax.core import LearnedOptimizer, Task, closure
from l2ljax.suite import SuiteTask

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


def row(ratio, diverged=0):
    return {"ratio": ratio, "diverged": diverged}


@pytest.mark.parametrize(
    ("rows", "median", "words"),
    [
        ([row(0.5), row(0.8), row(2.0)], 0.8, "lower on 2; reaches the aim 0.9"),
        ([row(0.5), row(1.0), row(2.0)], 1.0, "reaches the floor 1.05, misses the aim 0.9"),
        ([row(0.5), row(1.25), row(2.0)], 1.25, "falls short of the floor 1.05 by 0.200"),
        ([row(0.5), row(0.8), row(2.0, 1)], 0.8, "falls short of the floor: diverges on c"),
        ([row(0.5), row(None, 3), row(None, 3)], None, "median inf over 3 tasks"),
    ],
)
def test_the_verdict_on_general_counts_all_tasks(rows, median, words):
    verdict = general.judge(dict(zip("abc", rows, strict=True)))
    assert verdict["median_ratio"] == median
    assert words in general.say(verdict)


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
SMALL = {
    "parabola": SuiteTask("a parabola", lambda data_dir: PARABOLA, 4, False, 2, 1),
    "image": SuiteTask("an image", lambda data_dir: None, needs_data=True, problems=2),
}


def descend(rate, updates, state, params=None):
    return jax.tree.map(lambda g: -rate * g, updates), state


def test_a_row_has_the_ratio_of_means_and_counts_what_is_not_learned(tmp_path, monkeypatch):
    monkeypatch.setattr(general, "TUNINGS", tmp_path)
    monkeypatch.setattr(general, "WINDOW", 2)

    def row(rate):
        # The rate is a leaf: one program serves all.
        tx = optax.GradientTransformation(closure(lambda p: ()), closure(descend, rate))
        return general.measure(tx, "parabola", SMALL["parabola"], None)

    falling = row(np.float32(0.25))
    tuned = tmp_path / "parabola.json"
    kept = json.loads(tuned.read_text())
    assert kept["points"]["learning_rate"][np.argmin(kept["scores"])] == falling["rate"]
    # Adam is tuned once, whatever it is compared with.
    monkeypatch.setattr(general.evaluate, "tune", None)
    rising, nothing = row(np.float32(-0.5)), row(np.float32("nan"))
    assert (falling["params"], falling["steps"], falling["problems"]) == (2, 4, 2)
    # Each step halves the params, or doubles them; the last two losses are averaged.
    np.testing.assert_allclose(falling["start"], 2.0)
    np.testing.assert_allclose(falling["general"], 2 * (0.25**3 + 0.25**4) / 2, rtol=1e-6)
    np.testing.assert_allclose(rising["general"], 2 * (4**3 + 4**4) / 2, rtol=1e-6)
    np.testing.assert_allclose(falling["ratio"], falling["general"] / falling["adam"], rtol=1e-6)
    assert (falling["diverged"], rising["diverged"]) == (0, 2)
    assert (nothing["diverged"], nothing["general"], nothing["ratio"]) == (2, None, None)
    assert "inf [inf, inf]" in general.line("parabola", nothing)
    # What was tuned for another task is not taken for this one.
    longer = dataclasses.replace(SMALL["parabola"], steps=5)
    with pytest.raises(ValueError, match=r"parabola\.json was tuned with .* remove it"):
        general.measure(optax.sgd(0.1), "parabola", longer, None)
    assert "diverged on 2 of 2" in general.line("parabola", nothing)


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


def test_a_run_keeps_what_is_done_and_writes_the_table_when_all_is(tmp_path, monkeypatch, capsys):
    done = []

    def measure(tx, name, entry, data_dir):
        done.append(entry.description)
        lost = entry.needs_data
        return {
            "ratio": None if lost else 0.5,
            "low": 2.0 if lost else 0.4,
            "high": None if lost else 0.7,
            "general": 1.0,
            "adam": 2.0,
            "rate": 0.1,
            "on_edge": False,
            "problems": 2,
            "diverged": 0,
            "seconds": 3.0,
        }

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(general, "SUITE", SMALL)
    monkeypatch.setattr(general, "measure", measure)
    monkeypatch.setattr(general._report, "RESULTS", tmp_path / "results")
    opt = learned.lstm(hidden=(2,))
    phi = random_like(jax.eval_shape(opt.init, first_key()))
    learned.save("first", opt, phi, {"trained_on": "nothing"})
    learned.save("second", opt, jax.tree.map(np.negative, phi), {})

    def run(*words):
        general.main(["--weights", *words])
        return capsys.readouterr().out

    with pytest.raises(SystemExit):
        run("first")
    assert "--data-dir is needed by image" in capsys.readouterr().err
    assert "not written: image not done yet" in run("first", "--tasks", "parabola")
    assert not (tmp_path / "runs" / "paper").exists()
    assert "not written" in run("second", "--tasks", "parabola")  # other weights, another row
    assert done == 2 * ["a parabola"]
    said = run("first", "--data-dir", "data")
    assert "median inf over 2 tasks, lower on 1; falls short" in said
    assert done == [*2 * ["a parabola"], "an image"]
    run("first")  # all is there: neither work nor data are needed
    run("first", "--tasks", "parabola", "--force")
    assert done[3:] == ["a parabola"]
    results = tmp_path / "runs" / "paper"
    table = json.loads((results / "general.json").read_text())
    assert list(table["rows"]) == ["parabola", "image"] and table["seconds"] == 6
    assert table["verdict"]["won"] == 1 and table["weights"]["trained_on"] == "nothing"
    assert (results / "general.png").exists()
    assert not (tmp_path / "results").exists()  # that is for the weights that ship
    more = dataclasses.replace(SMALL["parabola"], problems=3)
    monkeypatch.setattr(general, "SUITE", {**SMALL, "parabola": more})
    run("first", "--tasks", "parabola")  # two problems are not three
    assert done[4:] == ["a parabola"]


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
