"""AdamW (Loshchilov and Hutter 2019), as in PyTorch, and the moving average.

The state is Optax's. The arithmetic is here, by parameter: parameters of one shape are traced once, and CPUs write the
state in place, since nothing reads a former value after the new one.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bksdm_jax.training.config import OptimizerConfig


class Factors(NamedTuple):
    """What AdamW's n-th step needs beside the moments, float32 []: the rate, 1 - beta1^n and 1 - beta2^n."""

    rate: jax.Array
    of_mean: jax.Array
    of_square: jax.Array


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Number of earlier updates -> rate: linear warm-up, then constant or a half cosine to zero."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.cosine_steps and warmup:
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, max(config.cosine_steps, warmup + 1))
    if config.cosine_steps:
        return optax.cosine_decay_schedule(peak, config.cosine_steps)
    return optax.warmup_constant_schedule(0.0, peak, warmup) if warmup else optax.constant_schedule(peak)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Optax's AdamW of these settings. Its `init` makes the state that `stepped` takes."""
    rate, weight_decay = learning_rate(config), config.weight_decay
    adamw = optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=weight_decay)
    # Checkpoints have an empty state before AdamW's, from when this clipped.
    return optax.chain(optax.identity(), adamw)


def adam_of(opt_state: Any) -> optax.ScaleByAdamState:
    """AdamW's moments, and the number of updates that are in them."""
    (adam,) = (one for one in jax.tree.leaves(opt_state, is_leaf=_is_adam) if _is_adam(one))
    return adam


def factors(count: jax.Array, config: OptimizerConfig) -> Factors:
    """Those of step n = `count`, at least 1."""
    with jax.numpy_dtype_promotion("standard"):  # Optax relies on implicit promotion
        rate = jnp.asarray(learning_rate(config)(count - 1), jnp.float32)
    n = count.astype(jnp.float32)
    return Factors(rate, 1.0 - jnp.float32(config.beta1) ** n, 1.0 - jnp.float32(config.beta2) ** n)


def adam_step(mean: jax.Array, square: jax.Array, param: jax.Array, at: Factors, config: OptimizerConfig) -> jax.Array:
    """What AdamW subtracts from a parameter, by its moments m and v after n updates:

    rate * (m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + epsilon) + weight_decay * param).
    """
    deviation = jnp.sqrt(square / at.of_square) + config.epsilon
    return at.rate * (mean / at.of_mean / deviation + config.weight_decay * param)


def stepped(
    apply: jax.Array,
    clip: jax.Array,
    decay: jax.Array,
    grads: Any,
    params: Any,
    average: Any,
    opt_state: Any,
    config: OptimizerConfig,
) -> tuple[Any, Any, Any]:
    """New parameters, their moving average and Optax's state, or the given ones, bit for bit, if `apply` is false.

    `apply` is bool [], `clip` and `decay` are float32 []. Gradients are multiplied by `clip`; the average, an empty
    tree if none is kept, decays by `decay`.
    """
    adam = adam_of(opt_state)
    counted = apply.astype(jnp.int32)
    at = factors(adam.count + 1, config)
    leaves, tree = jax.tree.flatten(params)
    of_params = (grads, adam.mu, adam.nu, params, average)
    each = zip(*(jax.tree.leaves(one) or [None] * len(leaves) for one in of_params), strict=True)
    new = zip(*(_stepped(apply, clip, decay, at, *one, config=config) for one in each), strict=True)
    params, means, squares, averages = (jax.tree.unflatten(tree, one) for one in new)

    def next_of(node: Any) -> Any:
        return node._replace(count=node.count + counted, mu=means, nu=squares) if _is_adam(node) else node + counted

    opt_state = jax.tree.map(next_of, opt_state, is_leaf=_is_adam)  # what isn't AdamW's is the schedule's count
    return params, averages if jax.tree.leaves(average) else average, opt_state


@partial(jax.jit, static_argnames="config")
def _stepped(
    apply: jax.Array,
    clip: jax.Array,
    decay: jax.Array,
    at: Factors,
    gradient: jax.Array,
    mean: jax.Array,
    square: jax.Array,
    param: jax.Array,
    average: jax.Array | None,
    config: OptimizerConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """One parameter's; the step is computed from the moments, and the average from the parameter, that were chosen."""
    gradient = gradient * clip
    mean = jnp.where(apply, config.beta1 * mean + (1.0 - config.beta1) * gradient, mean)
    square = jnp.where(apply, config.beta2 * square + (1.0 - config.beta2) * jnp.square(gradient), square)
    param = jnp.where(apply, param - adam_step(mean, square, param, at, config), param)
    if average is not None:
        average = jnp.where(apply, decay * average + (1.0 - decay) * param, average)
    return param, mean, square, average


def _is_adam(node: Any) -> bool:
    return isinstance(node, optax.ScaleByAdamState)
