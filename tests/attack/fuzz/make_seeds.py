"""The seeds of files: those that are GOOD, and those that are BAD and must be refused.

The seeds of calls are inputs that the fuzzer found, one for each way through the code; see run.py.
"""

import gzip
import io
import json
import pickle
import zipfile
import zlib
from typing import Any

import numpy as np

W, X = np.array([[[1.0, -2, 3], [0.5, 0, -1]]]), np.array([[0.5, -1, 2]])


def saved(a: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, a, version)
    return file.getvalue()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    length = len(header.encode()).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + data


def announced(shape: str, descr: str = "'<f8'", data: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}", data)


def archive(method: int = zipfile.ZIP_STORED, changes: Any = None, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)  # of 1980, so that the bytes are the same every day
            archive.writestr(member, content, method)
            for key, value in (changes or {}).items():
                setattr(member, key, value)  # in the directory, which is written last
    return file.getvalue()


def npz(W: bytes, **options: Any) -> bytes:
    return archive(**options, **{"W.npy": W, "x.npy": saved(X)})


def bomb(start: bytes, filling: bytes, size: int) -> bytes:
    """An .npz file whose W is ``start`` and ``size`` bytes more, made without packing as many.

    That is one block of deflate again and again.
    """
    block = filling * (1 << 24)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packed += (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)) * (size // len(block)) + packer.flush()
    return npz(packed, changes={"compress_type": zipfile.ZIP_DEFLATED, "file_size": len(start) + size})


class Executed:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle was loaded')",)


GOOD = {
    "v1.npy": saved(W, (1, 0)),
    "v2.npy": saved(W, (2, 0)),
    "v3.npy": saved(W, (3, 0)),
    "fortran.npy": saved(np.asfortranarray(W)),
    "big-endian.npy": saved(W.astype(">f4")),
    "integers.npy": saved(W.astype("i1")),
    "bool.npy": saved(W > 0),
    "python2.npy": announced("(1L, 2L, 3L)", data=W.tobytes()),
    "no-pairs.npy": saved(W[:0]),
    "more-after-it.npy": saved(W) + saved(X),
    "stored.npz": npz(saved(W)),
    "deflated.npz": npz(saved(W), method=zipfile.ZIP_DEFLATED),
    "without-suffix.npz": archive(W=saved(W), x=saved(X)),
    "gradients.npz": archive(**{"W.npy": saved(W), "x.npy": saved(X), "dW.npy": saved(W), "dx.npy": saved(X)}),
    "target.npz": archive(
        **{"W.npy": saved(W), "x.npy": saved(X), "target.npy": saved(X[:, :2]), "cotangent.npy": saved(X[:, 0])}
    ),
    "target.json": b'{"W": [[1, 0.5], [-2.5, 2]], "x": [1, -1], "target": [1, 0], "cotangent": 2, "dW": [[0, 1]]}',
    "target-shared.json": b'{"W": [[1, 0.5], [-2.5, 2]], "x": [[1, -1], [0, 1], [2, 3]], "target": [[0.5]], "dx": 1}',
    "target-unfit.json": b'{"W": [[1, 0.5], [-2.5, 2]], "x": [1, -1], "target": [1, 0, 1], "cotangent": [[1e400]]}',
    "batch.json": json.dumps({"W": W.tolist(), "x": X.tolist()}).encode(),
    "blanks.txt": b"# W\n0.1  0.5\t-0.3\n\n0.2 inf NaN # a comment\n# x\n1e400 -2 3\n",
    "excel.csv": "\ufeff0.1;0.5;\r\n-0.3;0.8;\r\n1;2;\r\n".encode(),
    "utf-16.txt": "1, 2\n\N{MINUS SIGN}3, 4".encode("utf-16"),
    "latin-1.txt": b"# \xe4\n1 2\r3 4",
    "bom.json": b'\xef\xbb\xbf{"W": [[1, 2]], "x": [3, 4], "y": [1]}',
    "pair.json": b'{"W": [[1, true], [-2.5e1, NaN]], "x": [[1], [Infinity]], "dx": [0.25, 0.5]}',
}
BAD = {
    "magic.npy": b"\x93NUMPY",
    "version-9.npy": saved(W).replace(b"Y\x01", b"Y\x09"),
    "header-cut.npy": saved(W)[:50],
    "data-cut.npy": saved(W)[:-1],
    "header-of-4-GiB.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "elements-of-no-bytes.npy": npy("{'descr': ('<f8', (9, 0)), 'fortran_order': False, 'shape': (1, 1)}"),
    "shape-of-10-12.npy": announced("(1000000000000, 2, 3)"),
    "shape-of-10-30.npy": announced(f"({10**30}, 2, 3)"),
    "shape-negative.npy": announced("(-1, 2, 3)", data=bytes(48)),
    "shape-overflows.npy": announced("(4294967296, 4294967296, 1)"),
    "shape-of-70-axes.npy": announced(f"({'1,' * 70})", data=bytes(8)),
    "shape-of-floats.npy": announced("(1.0, 2.0)"),
    "code.npy": npy("__import__('os').system('false')"),
    "nested.npy": npy("(" * 3000),
    "escapes.npy": npy("{'\\d\x1b[2J\n': 1}"),
    "warns.npy": npy("{'\\d': 1if 1else 2}"),
    "not-ascii.npy": npy("{'descr': [('é', '<f8')], 'fortran_order': False, 'shape': (2147483648,)}", version=3),
    "itemsize.npy": announced("(1, 1, 1)", "'|V2147483647'"),
    "subarray.npy": announced("(1, 1)", "('<f8', (1000000, 1000000))"),
    "objects.npy": announced("(1,)", "'|O'", pickle.dumps([Executed()], 2)),
    "objects-hidden.npy": announced("(1,)", "[('a', '<f8'), ('b', '|O')]", pickle.dumps([Executed()], 2)),
    "pickle": pickle.dumps(Executed(), 2),
    "objects.npz": npz(announced("(1,)", "'|O'", pickle.dumps([Executed()], 2))),
    "cut.npz": npz(saved(W))[:-30],
    "checksum.npz": npz(saved(W)).replace(W.tobytes(), X.tobytes() * 2),
    "no-members.npz": archive(),
    "no-x.npz": archive(**{"W.npy": saved(W), "X.npy": saved(X)}),
    "no-array.npz": archive(W=b"1 2 3", x=b"1"),
    "escapes.npz": archive(**{"\x1b[2J": b"", "long" * 100: b""}),
    "bzip2.npz": npz(saved(W), method=zipfile.ZIP_BZIP2),
    "lzma.npz": npz(saved(W), method=zipfile.ZIP_LZMA),
    "encrypted.npz": npz(saved(W), changes={"flag_bits": 1}),
    "announces-8-TB.npz": npz(announced("(1000000000000, 1, 1)")),
    "directory-says-2-GiB.npz": npz(announced("(268435456, 1, 1)"), changes={"file_size": (1 << 31) + 82}),
    "header-of-4-GiB.npz": npz(b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 10**6, method=zipfile.ZIP_DEFLATED),
    "syntax.json": b'{"W": [[1, 2], "x": ',
    "nested.json": b"[" * 5000,
    "list.json": b"[[1, 2], [3, 4]]",
    "ragged.json": b'{"W": [[1, 2], [3]], "x": [1, 2]}',
    "word.json": b'{"W": [[1, "%s"]], "x": [1, 2]}' % (b"long" * 100),
    "huge-integer.json": b'{"W": [[1%s]], "x": [1]}' % (b"0" * 400),
    "not-utf-8.json": b'{"W": "\xff"}',
    "text.csv": b"1,2,3\n",
    "decimal-commas.csv": b"0,1;0,5\n0,2;0,3\n",
    "decimal-commas.txt": b"0,1\t0,5\n0,2\t0,3\n",
    "gzip.txt": gzip.compress(b"1 2\n3 4\n", mtime=0),
    "header.csv": b"a,b,c\n1,2,3\n4,5,6\n",
    "missing.csv": b"1,2,3\n1,,2\n4,5,6\n",
    "nul-later.txt": b"1 2 " * 40 + b"\n" + bytes(100),
    "only-comments.txt": b"# 1 2\n\n# 3 4\n",
    "ragged.txt": b"\n1 2 3\n4 5 6\n7 8\n",
    "underscores.txt": b"1 2\n1_0 2\n3 4\n",
    "empty": b"",
}
