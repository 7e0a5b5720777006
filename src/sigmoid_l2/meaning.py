"""Arrays that carry what plain numbers lose, such as units or labels, that are sparse, or whose numbers are elsewhere.

To take their numbers without a word would be wrong, or would read a whole file into memory, so all of them are refused,
with what to pass. The package of their class, or of a base class, tells them; so nothing is imported.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sigmoid_l2.gpu.arrays import type_name
from sigmoid_l2.host_arrays import untracked

_LABELS, _UNIT, _FILE = "labels would be lost", "unit would be lost", "numbers are not in memory"

# By the beginning of the module of a class: what is wrong with its arrays, after "whose"; and what takes their numbers,
# of which the first is told that the class has.
_CARRIERS: dict[str, tuple[str, Sequence[str]]] = {
    "numpy.ma": ("mask has no meaning here", [".filled(value)"]),
    "pandas": (_LABELS, [".to_numpy()"]),
    "polars": (_LABELS, [".to_numpy()", ".collect().to_numpy()"]),
    "xarray": (_LABELS, [".to_numpy()", ".to_dataarray().to_numpy()"]),
    "cudf": (_LABELS, [".to_cupy()"]),
    "pyarrow": ("missing values would be lost", [".to_numpy()", ".to_pandas().to_numpy()"]),
    "astropy": (_UNIT, [".to_value(unit)", ".value"]),
    "unyt": (_UNIT, [".to_value(unit)"]),
    "pint": (_UNIT, [".m_as(unit)"]),
    "quantities": (_UNIT, [".rescale(unit).magnitude"]),
    "scipy.sparse": ("zeros would all be stored", [".toarray()"]),
    "dask": (_FILE + " yet", [".compute(), or let dask.array.apply_gufunc call this function for each block"]),
    "zarr": (_FILE, ["[:]"]),
    "h5py": (_FILE, ["[:]"]),
    "netCDF4": (_FILE, ["[:].filled(value)"]),
}


def carried(a: Any) -> tuple[str, str] | None:
    """What ``a`` carries that its numbers would lose, in words, and what takes its numbers; None for plain arrays."""
    kind: Any = type(a)
    return _carried(kind)


@lru_cache
def _carried(kind: Any) -> tuple[str, str] | None:
    for cls in kind.__mro__:
        package, _, rest = cls.__module__.partition(".")
        known = _CARRIERS.get(f"{package}.{rest.partition('.')[0]}") or _CARRIERS.get(package)
        if known is not None:
            why, ways = known
            return why, next((way for way in ways if way[0] == "[" or hasattr(kind, way[1:].partition("(")[0])), "")
    return None


def refuse(name: str, a: Any) -> None:
    """Raise TypeError where ``a``, or an array in the nested list ``a``, has a meaning that its numbers would lose.

    So has, in a list, what a gradient is wanted of.
    """
    if type(a) is np.ndarray:
        return
    found = carried(a)
    if found is not None:
        why, way = found
        instead = f"{name}{way}" if way else "its numbers in a numpy.ndarray"
        raise TypeError(f"{name} is of type {type_name(a)}, whose {why}; pass {instead}")
    for leaf in _leaves(a, set()) if isinstance(a, list | tuple) else ():
        untracked(f"what {name} holds", leaf)
        found = carried(leaf)
        if found is not None:
            why, way = found
            instead = f"each with {way}" if way else "the numbers in a numpy.ndarray"
            raise TypeError(f"{name} holds an array of type {type_name(leaf)}, whose {why}; pass {instead}")


def _leaves(a: Sequence[Any], seen: set[int]) -> Iterator[Any]:
    """What is neither a number nor NumPy's in a nested list. Of millions of numbers only the classes are looked at."""
    seen.add(id(a))  # a list may be in itself
    if all(issubclass(kind, (int, float, np.generic)) for kind in set(map(type, a))):
        return
    for b in a:
        if not isinstance(b, list | tuple):
            if type(b) is not np.ndarray:
                yield b
        elif id(b) not in seen:
            yield from _leaves(b, seen)
