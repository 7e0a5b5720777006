"""Training in JAX from a saturated start, where JAX's own gradient in float32 is 0 and its loop does not move.

The same loop twice, under jit: with `sigmoid_l2.jax.value`, and with the formula in jax.numpy.
"""

import jax
import jax.numpy as jnp

import sigmoid_l2.jax

B, m, n = 2_000, 3, 6
# A layer is to learn m votes, each of five features of which some count with the opposite sign; the sixth is 1.
keys = jax.random.split(jax.random.key(0))
x = jax.random.rademacher(keys[0], (B, n), jnp.float32).at[:, -1].set(1)
votes = jax.random.rademacher(keys[1], (m, n), jnp.float32).at[:, -1].set(0)
y = jnp.float32(x @ votes.T > 0)  # the targets: 0 or 1, (B, m)


def formula(W, x, y):
    """The loss as it is written in JAX: from q = 17 on, sigmoid(q) is 1 and its derivative 0."""
    return ((jax.nn.sigmoid(x @ W.T) - y) ** 2).sum(-1)


def trained(value, steps, every=10):
    """Adam from the same start; the share of right answers and the mean loss every few steps."""

    @jax.jit
    def step(W, mean, square, t):
        loss, dW = jax.value_and_grad(lambda W: value(W, x, y).mean())(W)  # one W for all x: dW (m, n) is a sum
        mean, square = 0.9 * mean + 0.1 * dW, 0.99 * square + 0.01 * dW**2
        scaled = mean / (1 - 0.9**t) / jnp.sqrt(square / (1 - 0.99**t) + 1e-35)  # 1e-35: a gradient of 1e-11 counts
        return W - 0.5 * scaled, mean, square, ((x @ W.T > 0) == y).mean(), loss

    zero = jnp.zeros((m, n))
    state = zero.at[:, -1].set(25), zero, zero  # the layer begins sure that every answer is 1
    seen = []
    for t in range(steps + 1):
        *state, right, loss = step(*state, t + 1)
        if t % every == 0:
            seen.append((t, float(right), float(loss)))
    return seen


print(f"A layer of {m}x{n} and {B:,} samples; {m} answers each.\n")
print("      sigmoid_l2.jax.value      formula in jax.numpy")
print("step    right   mean loss       right   mean loss")
for (t, right, loss), (_, stalled, high) in zip(trained(sigmoid_l2.jax.value, 80), trained(formula, 80), strict=True):
    print(f"{t:4}  {right:7.2%}  {loss:10.6f}     {stalled:7.2%}  {high:10.6f}")
