"""What the calls return: named tuples whose fields are those that ``wrt`` asks for."""

from collections import namedtuple
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from sigmoid_l2.host_arrays import not_inlined

WRT = {"W": "dW", "x": "dx", "q": "dq"}  # what a gradient can be taken with respect to, and its name
Wrt = str | Sequence[str]
Array = TypeVar("Array")  # the class of all arrays of one result


class ValueAndGrad(NamedTuple, Generic[Array]):
    """What ``value_and_grad`` returns: a tuple of the loss and the gradients, which also have names.

    Where ``wrt`` is given, the gradients are those that it names, in its order: after ``loss`` come ``dW``, ``dx`` or
    ``dq``, and the tuple is of another class of the same name.

    Attributes
    ----------
    loss : array (...)
        The loss of each pair, in the batch shape to which the inputs broadcast.
    dW, dx : array
        The gradients, each of exactly the shape of its input, and so a sum where that was broadcast. All are of the
        kind of W, on its device, and of the common dtype of W and x.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> sl2.value_and_grad(np.zeros((1, 2)), np.ones(2))
    ValueAndGrad(loss=array(0.25), dW=array([[0.25, 0.25]]), dx=array([0., 0.]))
    >>> sl2.value_and_grad(np.zeros((1, 2)), np.ones(2), wrt=("q", "x"))
    ValueAndGrad(loss=array(0.25), dq=array([0.25]), dx=array([0., 0.]))
    """

    loss: Array
    dW: Array
    dx: Array


class Grad(NamedTuple, Generic[Array]):
    """What ``grad`` returns: a tuple of the gradients, which also have names.

    Where ``wrt`` is a tuple, the gradients are those that it names, in its order: ``dW``, ``dx`` or ``dq``, and the
    tuple is of another class of the same name. Where it is one name, ``grad`` returns the array itself.

    Attributes
    ----------
    dW, dx : array
        The gradients, each of exactly the shape of its input, and so a sum where that was broadcast. They are of the
        kind of W, on its device, and of the common dtype of W and x.

    Examples
    --------
    >>> import numpy as np, sigmoid_l2 as sl2
    >>> sl2.grad(np.zeros((1, 2)), np.ones(2))
    Grad(dW=array([[0.25, 0.25]]), dx=array([0., 0.]))
    """

    dW: Array
    dx: Array


@lru_cache
def _parsed(kind: str, wrt: Any) -> tuple[tuple[str, ...], bool, Any]:
    is_bare = isinstance(wrt, str)
    if not is_bare and not isinstance(wrt, tuple):
        raise TypeError("of what has an order, only tuples")
    wanted = (wrt,) if is_bare else wrt
    if not wanted or len(set(wanted)) < len(wanted) or not all(a in WRT for a in wanted):
        raise ValueError(f"wrt must be one or several of {', '.join(map(repr, WRT))}, each once, not {wrt!r}")
    gradients = tuple(WRT[a] for a in wanted)
    names = gradients if kind == "Grad" else ("loss", *gradients)
    return names, is_bare, _results_class(kind, names)._make


@not_inlined
def wanted(kind: str, wrt: Any) -> tuple[tuple[str, ...], bool, Any]:
    """The names of the results for ``wrt``, whether it is one bare name, and what makes a named tuple of them.

    ``kind`` is "ValueAndGrad" or "Grad". Raises ValueError for what is no name, or no tuple or list of some.
    """
    try:
        return _parsed(kind, tuple(wrt) if isinstance(wrt, list) else wrt)
    except TypeError:
        raise ValueError(f"wrt must be a name or a tuple of names, not {wrt!r}") from None


@lru_cache
def _results_class(kind: str, names: tuple[str, ...]) -> Any:
    for known in (ValueAndGrad, Grad):
        if (known.__name__, known._fields) == (kind, names):
            return known

    def reduce(results: Any) -> tuple[Any, ...]:
        return _unpickled, (kind, names, tuple(results))

    base = namedtuple(kind, names)  # type: ignore[misc]
    return type(kind, (base,), {"__slots__": (), "__module__": __name__, "__reduce__": reduce})


def _unpickled(kind: str, names: tuple[str, ...], results: tuple[Any, ...]) -> Any:
    return _results_class(kind, names)._make(results)
