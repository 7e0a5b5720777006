"""Arrays that carry more than their numbers, or that are not in memory: refused, with what to pass, which then works.

With the packages themselves, each where it is installed; what a class looks like that is not, with a stand-in.
"""

import numpy as np
import pytest
from arrays import Arrays, bits
from processes import run_python

import sigmoid_l2 as sl2


def pandas(a):
    return pytest.importorskip("pandas").DataFrame(a)


def series(a):
    return pytest.importorskip("pandas").Series(a[0])


def extension_array(a):
    return pytest.importorskip("pandas").array(a[0], dtype="Float64")


def xarray(a):
    return pytest.importorskip("xarray").DataArray(a, dims=("row", "column"))


def astropy(a):
    return a * pytest.importorskip("astropy.units").m


def astropy_column(a):
    return pytest.importorskip("astropy.table").Column(a[0])


def unyt(a):
    return a * pytest.importorskip("unyt").m


def pint(a):
    return a * pytest.importorskip("pint").UnitRegistry().m


def quantities(a):
    return a * pytest.importorskip("quantities").m


def sparse(a):
    return pytest.importorskip("scipy.sparse").csr_array(a)


def sparse_matrix(a):
    return pytest.importorskip("scipy.sparse").coo_matrix(a)


def polars(a):
    return pytest.importorskip("polars").DataFrame(a)


def lazy(a):
    return polars(a).lazy()


def dask(a):
    return pytest.importorskip("dask.array").from_array(a)


def zarr(a):
    return pytest.importorskip("zarr").array(a)


def h5py(a):
    file = pytest.importorskip("h5py").File("memory", "w", driver="core", backing_store=False)
    return file.create_dataset("a", data=a)


def pyarrow(a):
    return pytest.importorskip("pyarrow").array(a[0])


def masked(a):
    return np.ma.array(a)


LABELS, UNIT = "whose labels would be lost", "whose unit would be lost"
CARRIERS = {  # what makes one of a matrix; words of the message; what to pass, in code and done
    "pandas.DataFrame": (pandas, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "pandas.Series": (series, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "pandas' extension array": (extension_array, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "xarray.DataArray": (xarray, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "xarray.Variable": (lambda a: xarray(a).variable, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "xarray.Dataset": (
        lambda a: xarray(a).to_dataset(name="a"),
        LABELS,
        "W.to_dataarray().to_numpy()",
        lambda a: a.to_dataarray().to_numpy()[0],
    ),
    "astropy.Quantity": (astropy, UNIT, "W.to_value(unit)", lambda a: a.to_value("m")),
    "astropy.Column": (astropy_column, UNIT, "W.value", lambda a: a.value),
    "unyt": (unyt, UNIT, "W.to_value(unit)", lambda a: a.to_value("m")),
    "pint": (pint, UNIT, "W.m_as(unit)", lambda a: a.m_as("m")),
    "quantities": (quantities, UNIT, "W.rescale(unit).magnitude", lambda a: a.rescale("m").magnitude),
    "a sparse array": (sparse, "whose zeros would all be stored", "W.toarray()", lambda a: a.toarray()),
    "a sparse matrix": (sparse_matrix, "whose zeros would all be stored", "W.toarray()", lambda a: a.toarray()),
    "polars.DataFrame": (polars, LABELS, "W.to_numpy()", lambda a: a.to_numpy()),
    "polars.LazyFrame": (lazy, LABELS, "W.collect().to_numpy()", lambda a: a.collect().to_numpy()),
    "dask": (dask, "are not in memory yet", "W.compute(), or let dask.array.apply_gufunc", lambda a: a.compute()),
    "zarr": (zarr, "are not in memory", "W[:]", lambda a: a[:]),
    "h5py": (h5py, "are not in memory", "W[:]", lambda a: a[:]),
    "pyarrow": (pyarrow, "whose missing values would be lost", "W.to_numpy()", lambda a: a.to_numpy()),
    "a masked array": (masked, "whose mask has no meaning here", "W.filled(value)", lambda a: a.filled(0)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CARRIERS)
def test_refused_with_what_to_pass(name):
    make, why, instead, numbers = CARRIERS[name]
    a = Arrays()
    W, x = a.W[0], a.x[0]
    given = make(W)
    with pytest.raises(TypeError, match=r"^W is of type ") as raised:
        sl2.value_and_grad(given, x)
    message = str(raised.value)
    assert f"{type(given).__module__}.{type(given).__qualname__}, whose " in message
    assert why in message
    assert f"; pass {instead}" in message
    taken = np.atleast_2d(numbers(given))
    assert type(taken) is np.ndarray
    assert bits(sl2.value_and_grad(taken, x)) == bits(sl2.value_and_grad(W[: len(taken)], x))


OPERANDS = {  # a call with a carrier as one of its operands
    "x": lambda a, given: sl2.value(a.W[0], given),
    "target": lambda a, given: sl2.value_and_grad(a.W, a.x, given),
    "cotangent": lambda a, given: sl2.grad(a.W, a.x, cotangent=given),
    "W holds": lambda a, given: sl2.grad([given, given], a.x[0]),
    "x holds": lambda a, given: sl2.value(a.W[0], [[1, 2, 3, 4], given]),
    "target holds": lambda a, given: sl2.value(a.W[0], a.x[0], [[1, [given]]]),
    "W": lambda a, given: sl2.trace(given, a.x[0]),
    "dx": lambda a, given: sl2.check_grad(a.W[0], a.x[0], dx=given),
}


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("make", [series, astropy, unyt, dask, masked])
def test_every_operand_is_looked_at(make, operand):
    a = Arrays()
    with pytest.raises(TypeError, match=rf"^{operand} (is|an array) of type .*, whose .*; pass "):
        OPERANDS[operand](a, make(a.W[0]))
    assert a.memory.tobytes() == Arrays().memory.tobytes()


@pytest.mark.parametrize("make", [astropy, unyt, quantities, pandas, masked])
def test_results_are_not_written_into_them(make):
    a = Arrays()
    out = make(np.full((3, 4), 7.0))
    with pytest.raises(ValueError, match=r"^out: dW must be a numpy\.ndarray, like the inputs, not "):
        sl2.grad(a.W[0], a.x[0], wrt="W", out=out)
    assert (np.asarray(out) == 7).all()


def test_a_number_with_a_unit():
    a, unit = Arrays(), pytest.importorskip("astropy.units").m
    with pytest.raises(TypeError, match=r"target is of type astropy.*; pass target\.to_value\(unit\)"):
        sl2.value(a.W, a.x, 1 * unit)
    with pytest.raises(TypeError, match=r"W holds an array of type astropy.*; pass each with \.to_value\(unit\)"):
        sl2.value([[1 * unit, 2 * unit]], [1, 2])


def test_what_has_no_numbers():
    missing = pytest.importorskip("pandas").NA
    with pytest.raises(
        TypeError, match=r"target holds an array of type .*NAType.*; pass the numbers in a numpy.ndarray"
    ):
        sl2.value(np.ones((2, 3)), np.ones(3), [missing, 1.0])


def test_arrays_of_cudf():
    """On a device, where its labels would be lost in the same way."""
    frame = type(
        "DataFrame", (), {"__module__": "cudf.core.dataframe", "__cuda_array_interface__": {}, "to_cupy": None}
    )
    with pytest.raises(
        TypeError, match=r"W is of type cudf.core.dataframe.DataFrame, whose labels .*; pass W\.to_cupy\(\)"
    ):
        sl2.value(frame(), np.ones(3))


def test_a_user_s_own_class_of_such_an_array():
    frame = type("Frame", (pytest.importorskip("pandas").DataFrame,), {})
    with pytest.raises(TypeError, match="labels would be lost"):
        sl2.value(frame(np.ones((2, 3))), np.ones(3))


def test_plain_arrays_of_other_classes(tmp_path):
    """A memory map is a plain array, and so are NumPy's own classes but masked arrays."""
    a = Arrays()
    mapped = np.memmap(tmp_path / "W", "f8", "w+", shape=a.W.shape)
    mapped[...] = a.W
    expected = bits(sl2.value_and_grad(a.W, a.x))
    assert bits(sl2.value_and_grad(mapped, a.x.view(np.recarray))) == expected
    out = np.memmap(tmp_path / "dW", "f8", "w+", shape=a.W.shape)
    assert sl2.grad(mapped, a.x, wrt="W", out=out) is out
    assert bits([out]) == expected[1:2]


def test_numbers_in_lists_are_not_looked_at_one_by_one(monkeypatch):
    looked = []
    monkeypatch.setattr("sigmoid_l2.meaning.carried", lambda a: looked.append(a))
    numbers = [[0.5] * 1000, [1] * 1000, [np.float64(2)] * 1000]
    assert sl2.value(numbers, np.ones(1000)).shape == ()
    assert [a is numbers or type(a) is np.ndarray for a in looked] == [True] * len(looked)


WITHOUT_IMPORTS = """
import sys, numpy as np, sigmoid_l2 as sl2
names = "pandas polars xarray cudf pyarrow astropy unyt pint quantities scipy.sparse dask zarr h5py netCDF4".split()
before = set(sys.modules)
for module in names:
    kind = type("Array", (), {"__module__": module + ".inside", "__array__": None})
    try:
        sl2.value(kind(), np.ones(3))
    except TypeError as error:
        print(module in str(error) and "; pass " in str(error), set(sys.modules) - before)
"""


def test_nothing_is_imported():
    assert run_python(WITHOUT_IMPORTS) == "True set()\n" * 14


def test_blocks_of_dask_arrays():
    """The way out for Dask computes each block where it lies, and nothing before it is asked for."""
    array = pytest.importorskip("dask.array")
    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((100, 3, 4)), rng.standard_normal((100, 4))
    lazy = array.from_array(W, chunks=(30, 3, 4)), array.from_array(x, chunks=(30, 4))
    got = array.apply_gufunc(sl2.value_and_grad, "(m,n),(n)->(),(m,n),(n)", *lazy)
    assert [a.chunks[0] for a in got] == [(30, 30, 30, 10)] * 3
    assert bits(a.compute() for a in got) == bits(sl2.value_and_grad(W, x))
    dx = array.apply_gufunc(sl2.grad, "(m,n),(n),()->(n)", W[0], lazy[1], 1.0, wrt="x", output_dtypes=float)
    assert bits([dx.compute()]) == bits([sl2.grad(W[0], x, 1.0, wrt="x")])
