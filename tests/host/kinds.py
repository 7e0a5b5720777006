"""The kinds of mistakes that people make in this gradient: a wrong line for each, in a program that is right otherwise.

The kind counts, not one instance of it. The first word of a wrong line is the name that it assigns, so it takes the
place of the program's line of that name; ``run`` executes the program.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

SIGMOID = """\
def sigmoid(q):
    return 1 / (1 + np.exp(-q))
"""

# The loss, for differences.
LOSS = """\
def f(W, x):
    return np.sum((sigmoid(W @ x) - y) ** 2)
"""

# One pair. W is (m, n), x is (n,), y is (m,), or 0 without a target.
PAIR = """\
q = W @ x
s = sigmoid(q)
e = s - y
loss = np.sum(e**2)
dloss_ds = 2 * e
ds_dq = s * (1 - s)
dloss_dq = dloss_ds * ds_dq
dW = np.outer(dloss_dq, x)
dx = W.T @ dloss_dq
"""


def _with(program: str, *lines: str) -> str:
    """The program with ``lines`` in the place of those that assign the same names."""
    for line in lines:
        name = line.split(maxsplit=1)[0]
        old = next(text for text in program.splitlines() if text.startswith(f"{name} = "))
        program = program.replace(f"{old}\n", f"{line}\n")
    return program


PROGRAMS = {
    "pair": PAIR,
    # The same, with x (n, 1) and y (m, 1) as columns.
    "columns": _with(PAIR, "dW = dloss_dq @ x.T"),
    # B samples that share one W: x is (B, n), y is (B, m), dW the sum over the samples.
    "samples": _with(PAIR, "q = x @ W.T", "loss = np.sum(e**2, axis=1)", "dW = dloss_dq.T @ x", "dx = dloss_dq @ W"),
    # B pairs: W is (B, m, n), x is (B, n), y is (B, m).
    "pairs": _with(
        PAIR,
        'q = np.einsum("bij,bj->bi", W, x)',
        "loss = np.sum(e**2, axis=1)",
        'dW = np.einsum("bi,bj->bij", dloss_dq, x)',
        'dx = np.einsum("bij,bi->bj", W, dloss_dq)',
    ),
}
# What the programs start with; without a target, y is 0.
SETUPS = {
    "pair": "W, x, y = rng.standard_normal((m, n)), rng.standard_normal(n), rng.random(m)\n",
    "columns": "W, x, y = rng.standard_normal((m, n)), rng.standard_normal((n, 1)), rng.random((m, 1))\n",
    "samples": "W, x, y = rng.standard_normal((m, n)), rng.standard_normal((B, n)), rng.random((B, m))\n",
    "pairs": "W, x, y = rng.standard_normal((B, m, n)), rng.standard_normal((B, n)), rng.random((B, m))\n",
}
DATA = {
    "normal": "",
    "small float32": "W, x, y = (W / 1000).astype(np.float32), x.astype(np.float32), y.astype(np.float32)\n",
    "integers": "W, x = rng.integers(-1, 2, (m, n)), rng.integers(1, 10, n)\n",
    "one-hot": "y = np.eye(m)[rng.integers(m)]\n",
    "one sample": "x, y = x[:1], y[:1]\n",
}
STEPS = ("q", "s", "e", "loss", "dloss_ds", "ds_dq", "dloss_dq", "dW", "dx")


@dataclass(frozen=True)
class Kind:
    """One kind of mistake.

    ``lines``: the wrong lines. ``says``: what a report must say: each phrase, or one of those with | between, is in one
    of its mistakes, and each mistake has a phrase; {e} is e, or s without a target. ``fact``: no mistake is named, and
    ``known`` has the phrases. ``slight``: some gradients come out right within the tolerance. ``check``: the gradients
    that ``check_grad`` is given. ``target``: whether there is a target; None: with and without. ``data``: what W, x and
    y are. ``found``: what a public question did, where the issue that began this list does not have the kind.
    """

    name: str
    lines: tuple[str, ...]
    says: tuple[str, ...]
    check: tuple[str, ...] = ("dW", "dx")
    target: bool | None = None
    program: str = "pair"
    data: str = "normal"
    fact: bool = False
    slight: bool = False
    found: str = ""

    @property
    def code(self) -> str:
        """The program with the wrong lines; without dW or dx, where nothing needs it and its shapes may not fit."""
        code = _with(PROGRAMS[self.program], *self.lines)
        for name in {"dW", "dx"} - {*self.check}:
            if code.count(name) == 1:
                code = "".join(line for line in code.splitlines(keepends=True) if not line.startswith(name))
        return code

    @property
    def right(self) -> tuple[str, ...]:
        """The right lines that the wrong ones replace."""
        names = [line.split(maxsplit=1)[0] for line in self.lines]
        return tuple(
            text for name in names for text in PROGRAMS[self.program].splitlines() if text.startswith(f"{name} = ")
        )


def kind(name: str, lines: str | tuple[str, ...], says: str | tuple[str, ...], **more) -> Kind:
    lines = (lines,) if isinstance(lines, str) else lines
    if "check" not in more:
        assigned = {line.split(maxsplit=1)[0] for line in lines}
        more["check"] = tuple(sorted(assigned)) if assigned <= {"dW", "dx"} else ("dW", "dx")
    return Kind(name, lines, (says,) if isinstance(says, str) else says, **more)


GROUPS: dict[str, tuple[Kind, ...]] = {}

GROUPS["The derivative of the sigmoid"] = (
    kind("q instead of s", "ds_dq = q * (1 - q)", "q(1 - q)"),
    kind("s put through the sigmoid again", "ds_dq = sigmoid(s) * (1 - sigmoid(s))", "sigmoid again"),
    kind(
        "sigmoid'(sigmoid'(q))",
        "ds_dq = sigmoid(s * (1 - s)) * (1 - sigmoid(s * (1 - s)))",
        "put through the derivative again",
        found="called sigmoid_derivative on what was a derivative already",
    ),
    kind("x instead of s", "ds_dq = x * (1 - x)", "x(1 - x)", found="sigmoid_derivative(x), where x is the input"),
    kind("e instead of s", "ds_dq = e * (1 - e)", "e(1 - e)", target=True, found="s -= y in place, then s * (1 - s)"),
    kind("tanh, of s", "ds_dq = 1 - s**2", "tanh"),
    kind("tanh, of q", "ds_dq = 1 - np.tanh(q) ** 2", "tanh"),
    kind("of 1 / (1 + exp(q))", "ds_dq = -np.exp(q) / (1 + np.exp(q)) ** 2", "opposite sign"),
    kind("the inner minus lost", "ds_dq = -np.exp(-q) / (1 + np.exp(-q)) ** 2", "opposite sign"),
    kind("s(s - 1)", "ds_dq = s * (s - 1)", "opposite sign"),
    kind("exp(-q), the square lost", "ds_dq = np.exp(-q) / (1 + np.exp(-q))", "1 - s"),
    kind("exp(q), the square lost", "ds_dq = np.exp(q) / (1 + np.exp(q))", "(1 - s) is missing"),
    kind("exp(-q) lost", "ds_dq = 1 / (1 + np.exp(-q)) ** 2", "s²"),
    kind("the square on exp(-q) alone", "ds_dq = np.exp(-q) / (1 + np.exp(-q) ** 2)", "e^-q/(1 + (e^-q)²)"),
    kind("times the square", "ds_dq = np.exp(-q) * (1 + np.exp(-q)) ** 2", "e^-q(1 + e^-q)²"),
    kind("exp(q) over (1 + exp(-q))²", "ds_dq = np.exp(q) / (1 + np.exp(-q)) ** 2", "e^q/(1 + e^-q)²"),
    kind("the derivative of exp(-q)", "ds_dq = -np.exp(-q)", ("opposite sign", "ds/dq is e^-q")),
    kind("1 + s", "ds_dq = s * (1 + s)", "1 + s"),
    kind("a difference for the product", "ds_dq = s - (1 - s)", "s - (1 - s)"),
    kind("s²", "ds_dq = s**2", "s²"),
    kind("1 - s", "ds_dq = 1 - s", "1 - s"),
    kind("s alone", "ds_dq = s", "(1 - s) is missing"),
    kind("brackets lost", "ds_dq = s * 1 - s", "0"),
    kind("1 - 2s", "ds_dq = s * (1 - 2 * s)", "1 - 2s", found="s - 2 s², for the derivative of s - s²"),
    kind("applied twice", "dloss_dq = dloss_ds * ds_dq * ds_dq", "ds/dq"),
    kind(
        "the sigmoid for its derivative",
        "ds_dq = sigmoid(s)",
        "sigmoid(s) stands in the place",
        found="called the function where its derivative was meant",
    ),
    kind(
        "ReLU", "ds_dq = (q > 0) * 1.0", "ReLU|every value is 0", found="the derivative of another layer's activation"
    ),
)

GROUPS["Another function forward"] = (
    kind("1 / 1 + exp(-q)", "s = 1 / 1 + np.exp(-q)", "1/1 + e^-q"),
    kind("1 / exp(-q)", "s = 1 / np.exp(-q)", "s is 1/e^-q"),
    kind("q / (1 + exp(-q))", "s = q / (1 + np.exp(-q))", "s is q/(1 + e^-q)"),
    kind("the minus lost", "s = 1 / (1 + np.exp(q))", "s is 1/(1 + e^q)"),
    kind(
        "(1 + e) to the power -q", "s = (1 + np.e) ** -q", "(1 + e)", found="1 / (1 + e)^q, brackets at another place"
    ),
    kind("the sigmoid twice", "s = sigmoid(sigmoid(q))", "twice"),
    kind(
        "the sigmoid twice, sigmoid' of q",
        ("s = sigmoid(sigmoid(q))", "ds_dq = sigmoid(q) * (1 - sigmoid(q))"),
        ("applied twice", "ds/dq is that of sigmoid(q)"),
    ),
    kind("softmax", "s = np.exp(q) / np.sum(np.exp(q))", "softmax"),
    kind(
        "softmax and its Jacobian",
        ("s = np.exp(q) / np.sum(np.exp(q))", "ds_dq = np.diag(s) - np.outer(s, s)", "dloss_dq = ds_dq @ dloss_ds"),
        "softmax",
    ),
    kind("tanh, with tanh'", ("s = np.tanh(q)", "ds_dq = 1 - s**2"), "tanh", found="another activation"),
    kind("tanh, with sigmoid'", "s = np.tanh(q)", "tanh", found="activation changed, its derivative not"),
    kind(
        "no sigmoid at all",
        ("s = q", "ds_dq = np.ones(m)"),
        ("s is q", "ds/dq = s(1 - s) is left out"),
        found="the gradient of linear regression",
    ),
    kind(
        "ReLU, with its derivative",
        ("s = np.maximum(q, 0)", "ds_dq = (q > 0) * 1.0"),
        ("ReLU|every value is 0", "left out|the derivative of the ReLU|every value is 0"),
        found="another activation",
        target=False,
    ),
    kind("the root", ("loss = np.sqrt(np.sum(e**2))", "dloss_ds = e / loss"), "root"),
    kind("no square", ("loss = np.sum(e)", "dloss_ds = np.ones(m)"), "left out", found="differences of the sum of s"),
    kind(
        "absolute values",
        ("loss = np.sum(abs(e))", "dloss_ds = np.sign(e)"),
        "the derivative is that of sum |e|",
        target=True,
        found="mean absolute error",
    ),
    kind(
        "the square not derived",
        "dloss_ds = e**2",
        "e²",
        target=True,
        found="multiplied the loss instead of its derivative",
    ),
    kind("the square not derived, without y", "dloss_ds = s**2", "s²", target=False, found="as before"),
    kind("the cube", "dloss_ds = 3 * e**2", "cube", target=True, found="the power rule with another power"),
)

GROUPS["A delta without a factor"] = (
    kind("g = s", "dloss_dq = s", "ds/dq", target=False),
    kind("g = 2s", "dloss_dq = 2 * s", "ds/dq", target=False),
    kind("g = e", "dloss_dq = e", "cross-entropy", target=True),
    kind("g = 2e", "dloss_dq = 2 * e", "ds/dq", target=True),
    kind("g = s near 1/2", "dloss_dq = s", "g is s alone", target=False, data="small float32"),
    kind("g = 2s near 1/2", "dloss_dq = 2 * s", "ds/dq", target=False, data="small float32"),
    kind("g = 2e near 1/2", "dloss_dq = 2 * e", "ds/dq", target=True, data="small float32"),
    kind("in dW alone", "dW = np.outer(dloss_ds, x)", "ds/dq"),
    kind("in dx alone", "dx = W.T @ dloss_ds", "ds/dq"),
    kind("cross-entropy", "dloss_ds = (s - y) / (s * (1 - s))", "cross-entropy", target=True),
    kind("g = s(1 - s)", "dloss_dq = ds_dq", "left out"),
    kind("g = 2s(1 - s)", "dloss_dq = 2 * s * (1 - s)", "one s is missing", target=False),
    kind("g = 2s(1 - s) with a target", "dloss_dq = 2 * s * (1 - s)", "e", target=True),
    kind("g = e(1 - s)", "dloss_dq = 2 * e * (1 - s)", "1 - s", target=True),
    kind("e twice", "dloss_dq = dloss_ds * dloss_ds * ds_dq", "applied twice"),
    kind("the step before the product", "dx = W.T @ ds_dq", "left out"),
)

GROUPS["A constant factor, or a term added"] = (
    kind("the mean over m", ("loss = np.mean(e**2)", "dloss_ds = 2 * e / m"), "mean"),
    kind("half the loss", ("loss = np.sum(e**2) / 2", "dloss_ds = e"), "factor 2 is missing"),
    kind("half the mean", ("loss = np.mean(e**2) / 2", "dloss_ds = e / m"), "mean"),
    kind("2 twice", "dloss_dq = 2 * dloss_ds * ds_dq", "factor 2"),
    kind("the mean over the samples", "dW = dloss_dq.T @ x / B", "mean", program="samples"),
    kind("the mean over samples in g", "dloss_ds = 2 * e / B", "mean", program="samples"),
    kind("the mean over both", ("loss = np.mean(e**2)", "dloss_ds = 2 * e / (m * B)"), "mean", program="samples"),
    kind("half the mean over samples", "dW = dloss_dq.T @ x / (2 * B)", "mean", program="samples"),
    kind(
        "divided by B twice",
        ("dloss_ds = 2 * e / B", "dW = dloss_dq.T @ x / B"),
        "0.04 times|m B = 25",
        program="samples",
        check=("dW",),
        found="divided in the loss and in the update",
    ),
    kind("a learning rate", "dW = 0.1 * np.outer(dloss_dq, x)", "learning rate|divided by 2 m"),
    kind("a learning rate, 0.03", "dx = 0.03 * (W.T @ dloss_dq)", "learning rate"),
    kind("a step", "dW = -0.1 * np.outer(dloss_dq, x)", "step"),
    kind("a step of 0.5", "dx = -0.5 * (W.T @ dloss_dq)", ("step|factor 2 is missing", "step|opposite sign")),
    kind("the minus of a step", "dW = -np.outer(dloss_dq, x)", "opposite sign"),
    kind("the new W", "dW = W - 0.1 * np.outer(dloss_dq, x)", "updated W", found="returned the updated weights"),
    kind("the new x", "dx = x - 0.1 * W.T @ dloss_dq", "updated x", found="returned the updated input"),
    kind("added twice", "dW = np.outer(dloss_dq, x)\ndW += np.outer(dloss_dq, x)", "twice"),
    kind("added three times", "dW = sum(np.outer(dloss_dq, x) for _ in range(3))", "3"),
    kind("weight decay", "dW = np.outer(dloss_dq, x) + 0.01 * W", "λW"),
    kind("weight decay, 2λW", "dW = np.outer(dloss_dq, x) + 2 * 0.1 * W", "λW"),
    kind("weight decay of x", "dx = W.T @ dloss_dq + 0.01 * x", "λx"),
    kind(
        "weight decay by the sign",
        "dW = np.outer(dloss_dq, x) + 0.01 * np.sign(W)",
        "sign(W)",
        found="L1 regularisation",
    ),
    kind("weight decay over the samples", "dW = dloss_dq.T @ x + 0.1 * W", "λW", program="samples"),
    kind("length 1", "dW = np.outer(dloss_dq, x)\ndW /= np.linalg.norm(dW)", "length", found="normalised gradient"),
    kind(
        "clipped",
        "dW = np.clip(np.outer(dloss_dq, x), -0.05, 0.05)",
        "clipped|only the value",
        found="gradient clipping",
        fact=True,
    ),
)

GROUPS["The wrong partner in a product"] = (
    kind("s for x", "dW = np.outer(dloss_dq, s)", "s stands in the place of x"),
    kind("q for x", "dW = np.outer(dloss_dq, q)", "q stands in the place of x"),
    kind(
        "W for x",
        "dW = dloss_dq[:, None] * W",
        "W stands in the place of x",
        found="delta * w, where delta * input was meant",
    ),
    kind("dW for W", "dx = dW.T @ dloss_dq", "dW stands in the place of W"),
    kind("the new W for W", "dx = (W - 0.1 * dW).T @ dloss_dq", "new W"),
    kind("the new W for W, other rate", "dx = (W - 0.5 * dW).T @ dloss_dq", "new W"),
    kind("the inverse", "dx = np.linalg.inv(W) @ dloss_dq", "inverse"),
    kind("the pseudoinverse", "dx = np.linalg.pinv(W) @ dloss_dq", "inverse"),
    kind("W's row sums", "dx = W.sum(axis=1) * dloss_dq", "row"),
    kind("W's column sums", "dx = W.sum(axis=0) * np.sum(dloss_dq)", "sum"),
    kind("W for W.T", "dx = W @ dloss_dq", "W instead of Wᵀ"),
    kind("x @ W forward", "q = x @ W", "q is Wᵀ x instead of W x"),
    kind(
        "x @ W throughout",
        ("q = x @ W", "dW = np.outer(x, dloss_dq)", "dx = W @ dloss_dq"),
        ("q is Wᵀ x instead of W x", "transposed|W instead of Wᵀ"),
    ),
    kind("dW transposed", "dW = np.outer(x, dloss_dq)", "transposed"),
    kind(
        "reshape for transpose, dx",
        "dx = W.reshape(n, m) @ dloss_dq",
        "W instead of Wᵀ|reshape",
        found="made the shapes fit with reshape",
    ),
    kind(
        "reshape for transpose, dW",
        "dW = np.outer(x, dloss_dq).reshape(m, n)",
        "dW is transposed|reshape",
        found="as before",
    ),
    kind("= for +=, the last row", "dx = 0\nfor i in range(m):\n    dx = W[i] * dloss_dq[i]", "last"),
    kind(
        "= for +=, the last sample",
        "dW = 0\nfor b in range(B):\n    dW = np.outer(dloss_dq[b], x[b])",
        "last",
        program="samples",
    ),
    kind(
        "return in the loop",
        "dW = np.outer(dloss_dq[0], x[0])",
        "first",
        program="samples",
        found="return inside of the loop",
    ),
    kind("the first row", "dx = W[0] * dloss_dq[0]", "first"),
    kind(
        "the sum along the wrong axis",
        "dx = (W * dloss_dq[:, None]).sum(axis=1)",
        "the sum is over j, along a row of W",
    ),
    kind("s for g", "dx = W.T @ s", "g is s alone|s stands in the place of g"),
    kind("e for g", "dx = W.T @ e", "cross-entropy", target=True),
    kind(
        "the layer before",
        "dx = (W.T @ dloss_dq) * x * (1 - x)",
        "x(1 - x)",
        found="the delta of the layer before, whose output is x",
    ),
    kind("times x once more", "dx = (W.T @ dloss_dq) * x", "x", found="the chain rule with one factor too much"),
)

GROUPS["Sums and broadcasts"] = (
    kind("g times x", "dW = dloss_dq * x", "outer"),
    kind("W.T times g", "dx = W.T * dloss_dq", "elementwise"),
    kind("terms that are not summed", "dx = W * dloss_dq[:, None]", "sum over i is missing"),
    kind("the Jacobian of s", "dx = ds_dq[:, None] * W", ("their sum over i is missing", "df/ds = 2{e} is left out")),
    kind("the Jacobian of the loss by W", "dW = np.eye(m)[:, :, None] * np.outer(dloss_dq, x)", "Jacobian"),
    kind(
        "summed over the samples",
        "dx = (dloss_dq @ W).sum(axis=0)",
        "the gradients of all pairs are summed",
        program="samples",
    ),
    kind(
        "the mean of the samples",
        "dx = (dloss_dq @ W).mean(axis=0)",
        ("the gradients of all pairs are summed", "mean"),
        program="samples",
    ),
    kind("not summed over the samples", "dW = dloss_dq[:, :, None] * x[:, None, :]", "sum", program="samples"),
    kind(
        "g and x summed apart",
        "dW = np.outer(dloss_dq.sum(axis=0), x.sum(axis=0))",
        "sum",
        program="samples",
        found="summed the batch first, multiplied then",
    ),
    kind(
        "the mean of x",
        "dW = np.outer(dloss_dq.sum(axis=0), x.mean(axis=0))",
        ("g and x are summed over the pairs", "mean"),
        program="samples",
        found="input = np.sum(batch, axis=0) / batch_size",
    ),
    kind(
        "the samples' mean, put in each",
        "dx = np.ones((B, 1)) * (dloss_dq @ W).mean(axis=0)",
        (),
        program="samples",
        fact=True,
    ),
    kind("(m, 1) and (m,)", "dloss_dq = dloss_ds[:, None] * ds_dq\ndloss_dq = dloss_dq.sum(axis=1)", "(m, m)"),
    kind(
        "(m, 1) and (m,), the other way",
        "dloss_dq = dloss_ds[:, None] * ds_dq\ndloss_dq = dloss_dq.sum(axis=0)",
        "2{e} is summed over i",
    ),
    kind("a column minus a vector", "e = s - y.ravel()", "(m, m)", program="columns", target=True, check=("dx",)),
    kind("a column times a vector", "dloss_dq = dloss_ds * ds_dq.ravel()", "(m, m)", program="columns", check=("dx",)),
    kind("np.dot of two vectors, for g", "dloss_dq = np.dot(dloss_ds, ds_dq) * np.ones(m)", "np.dot"),
    kind("np.dot of two vectors, for dW", "dW = np.dot(dloss_dq, x)", "dot product"),
    kind("the sum of the errors", "dloss_ds = 2 * np.sum(e) * np.ones(m)", "sum", found="error = sum of all errors"),
    kind(
        "the mean of the errors", "dloss_ds = 2 * np.mean(e) * np.ones(m)", "mean", found="error = mean of all errors"
    ),
    kind("the loss for each i", "dloss_ds = loss * np.ones(m)", "loss", found="multiplied by the loss"),
    kind("a bias column", "dW = np.outer(dloss_dq, np.append(x, 1))", "bias"),
    kind("a bias column in front", "dW = np.outer(dloss_dq, np.insert(x, 0, 1))", "bias"),
    kind("a bias in dx", "dx = np.append(W.T @ dloss_dq, np.sum(dloss_dq))", "bias"),
    kind("the gradient of the bias", "dW = dloss_dq", "x is left out", found="forgot x in dW"),
)

GROUPS["Numbers"] = (
    kind("a step too large", "dx = np.array([(f(W, x + h) - f(W, x - h)) / 2e-1 for h in 1e-1 * np.eye(n)])", "step"),
    kind("a forward difference", "dx = np.array([(f(W, x + h) - f(W, x)) / 1e-2 for h in 1e-2 * np.eye(n)])", "step"),
    kind("a step too small", "dx = np.array([(f(W, x + h) - f(W, x - h)) / 2e-13 for h in 1e-13 * np.eye(n)])", "step"),
    kind(
        "a forward difference over 2h",
        "dx = np.array([(f(W, x + h) - f(W, x)) / 2e-6 for h in 1e-6 * np.eye(n)])",
        "factor 2 is missing",
        found="a difference of one side over two steps",
    ),
    kind(
        "a central difference over h",
        "dx = np.array([(f(W, x + h) - f(W, x - h)) / 1e-6 for h in 1e-6 * np.eye(n)])",
        "factor 2",
        found="the 2 of 2h forgotten",
    ),
    kind(
        "differences of W, too large",
        "dW = np.zeros(W.shape)\nfor i, j in np.ndindex(m, n):\n    h = np.zeros(W.shape)\n    h[i, j] = 0.1\n"
        "    dW[i, j] = (f(W + h, x) - f(W - h, x)) / 0.2",
        "step",
    ),
    kind(
        "an integer array",
        "dW = np.zeros_like(W)\ndW[:] = np.outer(dloss_dq, x)",
        "whole number|every value is 0",
        data="integers",
    ),
    kind(
        "an integer array, dx",
        "dx = np.zeros_like(x)\ndx[:] = W.T @ dloss_dq",
        "whole number|every value is 0",
        data="integers",
    ),
    kind("q cut to integers", "q = (W @ x).astype(int)", "integer"),
    kind("s cut to integers", "s = np.round(sigmoid(q))", "0", found="the predicted class instead of s"),
    kind(
        "4 digits in each step",
        tuple(f"{line.split(' = ')[0]} = np.round({line.split(' = ')[1]}, 4)" for line in PAIR.splitlines()),
        "rounded to 4 digits",
    ),
    kind("3 digits at the end", "dW = np.round(np.outer(dloss_dq, x), 3)", "rounded to 3 digits"),
    kind("%.4e", "dW = np.vectorize(lambda v: float(f'{v:.4e}'))(np.outer(dloss_dq, x))", "digits", slight=True),
    kind("%.2e", "dx = np.vectorize(lambda v: float(f'{v:.2e}'))(W.T @ dloss_dq)", "digits"),
    kind("%.3g", "dx = np.array([float(f'{v:.3g}') for v in W.T @ dloss_dq])", "digits"),
    kind("float16 s", "s = sigmoid(q).astype(np.float16).astype(float)", "float16"),
    kind("float16 q", "q = (W @ x).astype(np.float16).astype(float)", "float16", slight=True),
    kind(
        "float16 W",
        "q = (W.astype(np.float16) @ x.astype(np.float16)).astype(float)",
        "digits may be lost|only the|are wrong",
        fact=True,
    ),
    kind("float16 at the end", "dW = np.outer(dloss_dq, x).astype(np.float16).astype(float)", "float16"),
)

GROUPS["The target"] = (
    kind("y - s", "e = y - s", "y - s", target=True),
    kind("y left out", "dloss_ds = 2 * s", "y is left out", target=True),
    kind("labels from 1", "e = s - np.roll(y, 1)", "one-hot", target=True, data="one-hot"),
    kind("the class number", "e = s - np.argmax(y)", "one-hot", target=True, data="one-hot"),
    kind("targets -1 and 1", "e = s - (2 * y - 1)", "2y - 1", target=True, data="one-hot"),
    kind("0 and 1 swapped", "e = s - (1 - y)", "1 - y", target=True, found="the probability of the other class"),
    kind("half the loss with y", "dloss_ds = s - y", "½", target=True),
    kind("y - s and half", "dloss_ds = y - s", ("½", "opposite sign"), target=True),
    kind("q - y", "e = q - y", "the error is taken of q", target=True, found="the error of the pre-activation"),
    kind("s + y", "e = s + y", "s + y", target=True, found="a sign inside of the error"),
    kind(
        "sigmoid of y",
        "e = s - sigmoid(y)",
        "y is put through the sigmoid",
        target=True,
        found="put y through the sigmoid, too",
    ),
    kind("the class that is predicted", "e = np.round(s) - y", "round", target=True, found="error of the class"),
    kind(
        "y of another sample",
        "e = s - np.roll(y, 1, axis=0)",
        (),
        program="samples",
        target=True,
        found="shuffled X and not y",
        fact=True,
    ),
    kind("no sigmoid', no 2", "dloss_dq = s - y", "cross-entropy", target=True),
)

GROUPS["Shapes"] = (
    kind("dx as a column", "dx = (W.T @ dloss_dq)[:, None]", "the values are right"),
    kind("dx as a row", "dx = (W.T @ dloss_dq)[None, :]", "the values are right"),
    kind("x as a row", "dx = W.T @ dloss_dq.T", "the values are right", program="samples", data="one sample"),
    kind("dW flat", "dW = np.outer(dloss_dq, x).ravel()", "the values are right"),
    kind("dW flat, column by column", 'dW = np.outer(dloss_dq, x).ravel(order="F")', "transposed"),
    kind("dW and dx swapped", ("dW = W.T @ dloss_dq", "dx = np.outer(dloss_dq, x)"), "swapped"),
)

GROUPS["A batch whose pairs differ"] = (
    kind(
        "one pair twice", "dloss_dq = dloss_ds * ds_dq\ndloss_dq[3] *= 2", "pair 3: an extra factor 2", program="pairs"
    ),
    kind(
        "one pair without sigmoid'",
        "dloss_dq = dloss_ds * ds_dq\ndloss_dq[1] = dloss_ds[1]",
        "pair 1: ",
        program="pairs",
    ),
    kind(
        "two pairs, two mistakes",
        "dloss_dq = dloss_ds * ds_dq\ndloss_dq[0] *= -1\ndloss_dq[2] = dloss_ds[2] * (1 - s[2] ** 2)",
        ("pair 0: ", "pair 2: "),
        program="pairs",
    ),
    kind(
        "the first pair by another formula",
        'dx = np.einsum("bij,bi->bj", W, dloss_dq)\ndx[0] = W[0] @ dloss_dq[0]',
        "pair 0: W instead of Wᵀ",
        program="pairs",
    ),
    kind("a pair not computed", 'dx = np.einsum("bij,bi->bj", W, dloss_dq)\ndx[-1] = 0', "pair 4: ", program="pairs"),
)

GROUPS["Two mistakes at once"] = (
    kind(
        "transposed, without 2",
        ("dloss_ds = e", "dW = np.outer(x, dloss_dq)"),
        ("factor 2 is missing", "transposed"),
        check=("dW",),
    ),
    kind(
        "tanh' and minus", ("ds_dq = 1 - s**2", "dW = -np.outer(dloss_dq, x)"), ("tanh", "opposite sign"), check=("dW",)
    ),
    kind("tanh' and W for W.T", ("ds_dq = 1 - s**2", "dx = W @ dloss_dq"), ("tanh", "W instead of Wᵀ"), check=("dx",)),
    kind("q(1 - q) and half", ("ds_dq = q * (1 - q)", "dloss_ds = e"), ("q(1 - q)", "factor 2 is missing")),
    kind(
        "the sigmoid again and the mean",
        ("ds_dq = sigmoid(s) * (1 - sigmoid(s))", "dloss_ds = 2 * e / m"),
        ("sigmoid again", "mean"),
    ),
    kind(
        "no sigmoid', transposed",
        ("dloss_dq = 2 * e", "dW = np.outer(x, dloss_dq)"),
        ("ds/dq", "transposed"),
        check=("dW",),
        target=True,
    ),
    kind(
        "y left out, minus",
        ("dloss_ds = 2 * s", "dx = -W.T @ dloss_dq"),
        ("y is left out", "opposite sign"),
        target=True,
        check=("dx",),
    ),
    kind("a step with half the loss", ("dloss_ds = e", "dW = -0.1 * np.outer(dloss_dq, x)"), "step", check=("dW",)),
    kind(
        "s for x and minus",
        ("e = y - s", "dW = np.outer(dloss_dq, s)"),
        ("s stands in the place of x", "opposite sign"),
        check=("dW",),
        target=True,
    ),
    kind("another forward and the mean", ("s = 1 / 1 + np.exp(-q)", "dloss_ds = 2 * e / m"), ("1/1 + e^-q", "mean")),
    kind(
        "tanh' with weight decay",
        ("ds_dq = 1 - s**2", "dW = np.outer(dloss_dq, x) + 0.01 * W"),
        ("tanh", "λW"),
        check=("dW",),
    ),
    kind(
        "mean over both, transposed",
        ("dloss_ds = 2 * e / (m * B)", "dW = (dloss_dq.T @ x).T"),
        ("mean", "transposed"),
        program="samples",
        check=("dW",),
    ),
)

# No mistake is known that gives these; the report says what is known.
GROUPS["What has no name"] = (
    kind("an odd factor", "dW = 1.2345 * np.outer(dloss_dq, x)", "1.2345 times"),
    kind("one row", "dW = np.outer(dloss_dq, x)\ndW[1] = [0.37 + 0.1 * j for j in range(n)]", "row", fact=True),
    kind(
        "one column", "dW = np.outer(dloss_dq, x)\ndW[:, 0] = [0.37 + 0.1 * i for i in range(m)]", "column", fact=True
    ),
    kind("one value", "dW = np.outer(dloss_dq, x)\ndW[1, 1] *= 1.01", "i = 1, j = 1", fact=True),
    kind("rows backwards", "dW = np.outer(dloss_dq, x)[::-1]", "order", fact=True),
    kind("dx backwards", "dx = (W.T @ dloss_dq)[::-1]", "order", fact=True),
)

KINDS = tuple(kind for group in GROUPS.values() for kind in group)
SHAPES = ((3, 3), (2, 5), (4, 2), (5, 5))


class Result(NamedTuple):
    """What a kind's program gives, and the arguments for ``check_grad``: ``W, x`` or ``W, x, y``."""

    arguments: tuple
    steps: dict  # of STEPS those that the program has


def run(kind: Kind, shape: tuple[int, int] = (3, 3), target: bool | None = None, seed: int = 0, right=False) -> Result:
    """Execute the program of ``kind``, or the right one. ValueError where the shapes do not fit."""
    target = bool(kind.target) if target is None else target
    m, n = shape
    names = dict(np=np, m=m, n=n, B=5, rng=np.random.default_rng(seed))
    exec(SETUPS[kind.program] + DATA[kind.data], names)
    if not target:
        names["y"] = np.zeros_like(names["y"])
    program = PROGRAMS[kind.program] if right else kind.code
    exec(f"{SIGMOID}\n{LOSS}\n{program}", names)
    steps = {name: names[name] for name in STEPS if name in names and (target or name != "e")}
    return Result(tuple(names[name] for name in ("W", "x", "y")[: 2 + target]), steps)
