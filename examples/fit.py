"""A logistic fit of 10,000 small models from a saturated start, where the textbook's gradient in float32 is 0.

`python examples/fit.py FILE.png` also draws the picture, with matplotlib.
"""

import sys

import numpy as np

import sigmoid_l2 as sl2

B, samples, m, n = 10_000, 4, 4, 6
rng = np.random.default_rng(0)
# Each model is to learn m votes, each of five features of which some count with the opposite sign; the sixth is 1.
x = rng.choice(np.float32([-1, 1]), (B, samples, n))
x[..., -1] = 1
votes = rng.choice(np.float32([-1, 1]), (B, 1, m, n - 1))
y = np.float32((votes @ x[..., :-1, None])[..., 0] > 0)  # the targets: 0 or 1, (B, samples, m)


def textbook(W):
    """dW in float32 as automatic differentiation has it: from q = 17 on, s is 1 and s (1 - s) is 0."""
    s = 1 / (1 + np.exp(-(W @ x[..., None])[..., 0]))
    g = 2 * (s - y) * s * (1 - s)
    return (g.swapaxes(-1, -2) @ x)[:, None]


def ours(W):
    """dW with the shape of W: W was broadcast over the samples, so dW is the sum over them."""
    return sl2.grad(W, x, y, wrt="W", out=dW)


def fit(gradient, steps, every=10):
    """Gradient descent with steps of a fixed length; the share of right models and the mean loss every few steps."""
    W = np.zeros((B, 1, m, n), np.float32)
    W[..., -1] = 25  # every model begins sure that every answer is 1
    seen = []
    for step in range(steps + 1):
        if step % every == 0:
            right = ((W @ x[..., None])[..., 0] > 0) == y
            seen.append((step, right.all(axis=(1, 2)).mean(), sl2.value(W, x, y).mean(dtype=float)))
        G = gradient(W)
        longest = np.abs(G).max(axis=-1, keepdims=True)
        W -= 0.5 * G / np.maximum(longest, np.finfo(G.dtype).tiny)  # the length of a step is not that of the gradient
    return seen


dW = np.empty((B, 1, m, n), np.float32)
found, theirs = fit(ours, 120), fit(textbook, 120)
print(f"{B:,} models of {m}x{n}, {samples} samples each; a model is right when all of its {m * samples} answers are.\n")
print("        sigmoid-l2           textbook in float32")
print("step    right   mean loss    right   mean loss")
for (step, right, loss), (_, stalled, high) in zip(found, theirs, strict=True):
    print(f"{step:4}  {right:7.2%}  {loss:10.6f}  {stalled:7.2%}  {high:10.6f}")

if len(sys.argv) > 1:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for seen, label, style in ((found, "sigmoid-l2", "ko-"), (theirs, "textbook formula in float32", "s--")):
        axes.plot([step for step, *_ in seen], [right for _, right, _ in seen], style, label=label)
    axes.set(xlabel="steps of gradient descent", ylabel="share of models that are right")
    axes.set_title(f"{B:,} models of {m}x{n} that begin with W x = 25", loc="left")
    axes.legend(loc="center right", frameon=False)
    figure.savefig(sys.argv[1], dpi=150)
