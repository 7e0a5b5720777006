"""df/dx came out 3x3 instead of 3x1: see what is wrong with it, and every step done right."""

import numpy as np

import sigmoid_l2 as sl2

W = np.array([[0.1, 0.5, 0.2], [-0.3, 0.8, 0.5], [0.5, 0.2, 0.3]])  # (3, 3)
x = np.array([[0.2], [0.4], [0.1]])  # (3, 1)

# A backward pass for f = ||sigmoid(W x)||², as somebody wrote it. It runs, and three things in it are wrong.
s = (1 / (1 + np.exp(-W @ x))).round(3)  # (3, 1)
df_ds = (2 * s).round(3)
df_dq = (df_ds * df_ds * s * (1 - s)).round(3)
df_dx = (W.T * df_dq).round(3)
print(f"x has shape {x.shape}, but df/dx came out as {df_dx.shape}:\n{df_dx}\n")

print("What is wrong with it?")
print(sl2.check_grad(W, x, dx=df_dx))

# The same with each factor once, in full precision, and a matrix product instead of the elementwise one.
s = 1 / (1 + np.exp(-W @ x))
g = 2 * s * s * (1 - s)  # (3, 1)
print("\nCorrected, with dW = g xᵀ and dx = Wᵀ g:")
print(sl2.check_grad(W, x, dW=g @ x.T, dx=W.T @ g))

print("\nEvery step, to compare with your own:\n")
print(sl2.trace(W, x))
