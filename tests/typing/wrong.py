"""Calls that no checker may let pass: each line that ends in "wrong", by mypy and by pyright; see test_typing.py."""
# ruff: noqa

import numpy as np

import sigmoid_l2 as sl2

W, x = np.ones((5, 3, 2)), np.ones((5, 2))
names = ["W"]

sl2.value("W", x)  # wrong
sl2.value(W, "x")  # wrong
sl2.value_and_grad("W.npy", "x.npy")  # wrong
sl2.grad(names, x)  # wrong
sl2.value(3.0, x)  # wrong
sl2.value({"W": W}, x)  # wrong
sl2.value(None, x)  # wrong
sl2.value(W, x, "y")  # wrong
sl2.value(W)  # wrong
sl2.value(W, x, None, "numpy")  # wrong
sl2.value_and_grad(W, x, None, None)  # wrong
sl2.value(W, x, cotangent=1.0)  # wrong
sl2.value(W, x, backend="nunba")  # wrong
sl2.grad(W, x, backend="cuda")  # wrong
sl2.value_and_grad(W, x, backend=None)  # wrong
sl2.warmup((3, 3), backend="torch")  # wrong
sl2.warmup((3,))  # wrong
sl2.grad(W, x, wrt="y")  # wrong
sl2.grad(W, x, wrt=("W", "y"))  # wrong
sl2.value_and_grad(W, x, wrt="dW")  # wrong
sl2.value_and_grad(W, x, wrt=0)  # wrong
sl2.value(W, x, out=(W,))  # wrong
sl2.value_and_grad(W, x, out=(W, x))  # wrong
sl2.value_and_grad(W, x, out=x)  # wrong
sl2.grad(W, x, out=(x, W, x))  # wrong
sl2.grad(W, x, wrt="x", out=(x,))  # wrong
sl2.trace("W", x)  # wrong
sl2.check_grad(W, x, dW="dW")  # wrong
loss, dW = sl2.value_and_grad(W, x)  # wrong
sl2.value_and_grad(W, x).dq  # wrong
sl2.grad(W, x).loss  # wrong
sl2.grad(W, x, wrt=("q", "x")).loss  # wrong
sl2.value(W, x).backward()  # wrong
sl2.values(W, x)  # wrong
sl2.torch.value(W, x)  # wrong
sl2.jax.values(W, x)  # wrong
for info in sl2.backends():
    info.avaliable  # wrong
