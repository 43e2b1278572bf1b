"""Meta-training: the inner loop, estimators of the meta-gradient, and the outer loop.

An estimator is made by a factory `(opt, task, batch=1)`:

| factory | gradient | memory of T steps | for |
|---|---|---|---|
| `truncated` | backwards through segments; biased by their length | K | networks |
| `full` | backwards through whole episodes, exact | √T | networks, hyperparameters |
| `forward` | forwards through whole episodes, exact | 1 | a few hyperparameters |
| `es` | from perturbed φ; of segments biased | 1 | rough meta-losses |
| `pes` | from perturbed φ, of segments without bias | 1 | long episodes |
| `hypergradient_descent` | one step | 1 | rates, while training |
| `reversible` | exact, of momentum run backwards | T log₂(1/γ) bits a param | long schedules |
| `imitation` | of the distance to a teacher | K | a start |

In the place of a task each takes a `LearnedTask`, except `imitation`: φ is then
`{"optimizer": φ, "task": ψ}`, and the gradient that to both. Gradients of the loss depend on ψ
directly, so they must not be held constant: `second_derivatives=True`, or an error. To a segment of
`truncated` that does not begin an episode, what ψ did to θ₀ is a constant; `pes` counts it.
`learned.fixed(tx)` stands for an optimizer with nothing to learn.

`weighted` makes one of several on one task, and `mixture` one of several tasks. They nest: a
mixture of weighted sums is an estimator too. `train` says which of them helps against what.

An estimator of one's own is any `core.Estimator`. With `begin_episodes` it draws the same problems
as these, and `device_mean` is what it lacks to run on several devices.
"""

from l2ljax.meta._episodes import Episode, begin_episode, begin_episodes, episode_keys
from l2ljax.meta._es import es
from l2ljax.meta._forward import forward
from l2ljax.meta._full import full
from l2ljax.meta._hypergradient_descent import hypergradient_descent
from l2ljax.meta._imitation import imitation
from l2ljax.meta._mixture import mixture
from l2ljax.meta._pes import PESState, pes
from l2ljax.meta._progress import Callback, Progress, TrainResult, TrainState
from l2ljax.meta._reversible import reversible
from l2ljax.meta._saving import restore_state, save_state
from l2ljax.meta._segments import EstimatorFactory, TruncatedState, device_mean
from l2ljax.meta._step_weights import final_weights, polynomial_weights
from l2ljax.meta._train import make_step, train
from l2ljax.meta._truncated import truncated
from l2ljax.meta._unroll import unroll, unroll_batch
from l2ljax.meta._validation import final_loss, validation
from l2ljax.meta._weighted import WeightedState, weighted

__all__ = [
    "Callback",
    "Episode",
    "EstimatorFactory",
    "PESState",
    "Progress",
    "TrainResult",
    "TrainState",
    "TruncatedState",
    "WeightedState",
    "begin_episode",
    "begin_episodes",
    "device_mean",
    "episode_keys",
    "es",
    "final_loss",
    "final_weights",
    "forward",
    "full",
    "hypergradient_descent",
    "imitation",
    "make_step",
    "mixture",
    "pes",
    "polynomial_weights",
    "restore_state",
    "reversible",
    "save_state",
    "train",
    "truncated",
    "unroll",
    "unroll_batch",
    "validation",
    "weighted",
]
