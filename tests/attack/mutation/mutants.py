"""The mutants: mistakes that somebody might make, each with the tests that must notice it."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One mistake."""

    name: str
    file: str  # kernels/... or sigmoid_l2/...
    old: str  # text that is in the file exactly once
    new: str
    tests: tuple[str, ...]


PARITY = ("tests/host/test_parity.py",)
REFERENCE = ("tests/host/test_reference.py",)
ERRORS = ("tests/host/test_error.py",)
SIMD = ("tests/host/test_simd.py",)
STREAM = ("tests/host/test_stream.py",)
CPU_TARGET = ("tests/host/test_cpu_target.py",)
SUMS = ("tests/host/test_sums.py",)
THREADS = ("tests/host/test_threads.py", "tests/attack/test_faults.py")
OUT = ("tests/host/test_bad_output.py",)
PLAIN = ("tests/host/test_plain.py",)
HOST_ARRAYS = ("tests/host/test_host_arrays.py",)
MEANING = ("tests/host/test_meaning.py",)
TRACE = ("tests/host/test_trace.py",)
CHECK = ("tests/host/test_check_grad.py",)
TARGET = ("tests/host/test_mistakes_target.py",)
CLI = ("tests/host/test_cli_target.py",)
MISTAKES = ("tests/host/test_mistakes.py",)
STEPS = ("tests/host/test_check_steps.py",)
NAMES = ("tests/host/test_no_false_names.py",)
MEMORY = ("tests/host/test_memory.py",)
WHOLE = ("tests/host/test_whole_function.py",)
ORDER = ("tests/host/test_order.py",)
BATCH_LAST = ("tests/host/test_batch_last.py",)
BATCH_LAST_CPU = ("tests/host/test_batch_last_cpu.py",)
BATCH_LAST_GPU = ("tests/gpu/test_batch_last.py",)
ENSEMBLES = (
    "tests/host/test_whole_function.py::test_any_broadcast_is_the_sum_over_pairs",
    "tests/host/test_whole_function.py::test_when_each_of_many_w_is_computed_alone",
)
KEPT = ("tests/host/test_kept_memory.py",)
NOT_FILES = ("tests/host/test_not_files.py",)
JAX = ("tests/host/test_jax_transformations.py",)
TORCH = ("tests/host/test_torch.py",)
TORCH_FUNC = ("tests/host/test_torch_func.py",)
REFERENCE_SHARED = ("tests/host/test_reference_shared.py",)
SHARED_TINY = ("tests/gpu/test_shared_tiny.py",)
SHARED_BLOCKS = ("tests/gpu/test_shared_blocks.py",)

MUTANTS = (
    # The reference
    Mutant("reference: s for 1 - s", "kernels/reference.py", "factor * (s * c)", "factor * (s * s)", PARITY),
    Mutant("reference: 1 - s subtracted", "kernels/reference.py", "b / both", "1 - a / both", PARITY),
    Mutant("reference: factor 2 forgotten", "kernels/reference.py", "factor = 2 * e", "factor = 1 * e", PARITY),
    Mutant("reference: 1 subtracted from s", "kernels/reference.py", "(1 - target) - c", "s - target", ERRORS),
    Mutant("reference: y - s", "kernels/reference.py", "s - target)", "target - s)", ERRORS),
    Mutant("reference: cotangent forgotten", "kernels/reference.py", "factor *= cotangent", "factor *= 1", ERRORS),
    Mutant("reference: the rest of a sum forgotten", "kernels/reference.py", "if rest:", "if False:", PARITY),
    Mutant("reference: dx in one chain", "kernels/reference.py", "g, CHAIN, out=dx", "g, m, out=dx", REFERENCE),
    Mutant(
        "reference: dx of tiny pairs added up over j",
        "kernels/reference.py",
        "W, terms)), 0)",
        "W, terms)), 1)",
        PARITY,
    ),
    Mutant(
        "reference: the last block forgotten",
        "kernels/reference.py",
        "range(first * pairs, min(B, last * pairs), pairs)",
        "range(first * pairs, min(B - 1, last * pairs), pairs)",
        REFERENCE,
    ),
    Mutant(
        "reference: memory allocated while it writes",
        "kernels/reference.py",
        "2 * tiny * m * n + m * n // 4 + 8 * m + 2 * n",
        "1",
        REFERENCE,
    ),
    # The reference for one W of many x
    Mutant(
        "reference_shared: the last product filled up with what is not 0",
        "kernels/reference_shared.py",
        "filled = np.zeros((rows, columns)",
        "filled = np.ones((rows, columns)",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: x and g of different products",
        "kernels/reference_shared.py",
        "zip(G, X[..., j, :]",
        "zip(G, X[::-1, ..., j, :]",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: all columns added to the first ones",
        "kernels/reference_shared.py",
        "_add(sums[:, j]",
        "_add(sums[:, 0]",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: the last block of a unit forgotten",
        "kernels/reference_shared.py",
        "blocks * (unit + 1) // units)",
        "blocks * unit // units + blocks // units)",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: the cotangent left out",
        "kernels/reference_shared.py",
        "x, target, cotangent, loss, None, dx, dq)",
        "x, target, None, loss, None, dx, dq)",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: no cotangent in a dW without dq",
        "kernels/reference_shared.py",
        "dq = np.empty((b, m), x.dtype)",
        "dq, cotangent = np.empty((b, m), x.dtype), None",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: the errors of a sum forgotten",
        "kernels/reference_shared.py",
        "sums[1] += (sums[0] - (high - added)) + (term - added)",
        "pass",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: the errors of later units forgotten",
        "kernels/reference_shared.py",
        "total[1:] += unit[1:]",
        "pass",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: one product of many pairs in float64",
        "kernels/reference_shared.py",
        "few = pairs if len(sums) == 1 else FEW_PAIRS",
        "few = pairs",
        REFERENCE_SHARED,
    ),
    Mutant(
        "reference_shared: products in float32",
        "kernels/reference_shared.py",
        "np.matmul(own_G, own_X)",
        "np.matmul(own_G, own_X, dtype=np.float32 if len(sums) == 1 else float, casting='same_kind')",
        REFERENCE_SHARED,
    ),
    # The CPU kernel
    Mutant(
        "cpu: exp's series one term short", "kernels/cpu/sigmoid.py", "range(terms - 1)", "range(1, terms - 1)", SIMD
    ),
    Mutant(
        "cpu: sign of ln 2's low part", "kernels/cpu/sigmoid.py", "v.constant(-ln2_low)", "v.constant(ln2_low)", SIMD
    ),
    Mutant(
        "cpu: s and 1 - s swapped for q < 0", "kernels/cpu/sigmoid.py", "negative, r, tr", "negative, tr, r", PARITY
    ),
    Mutant(
        "cpu: the residual as s - y alone",
        "kernels/cpu/sigmoid.py",
        'b.select(b.fcmp_ordered(">", target, v.constant(0.5)), from_above, b.fsub(s, target))',
        "b.fsub(s, target)",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: the residual from above for every target",
        "kernels/cpu/sigmoid.py",
        "v.constant(0.5)), from_above",
        "v.constant(-9)), from_above",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: the cotangent left out",
        "kernels/cpu/sigmoid.py",
        "factor = b.fmul(factor, cotangent)",
        "pass",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: tiny, the cotangent of another pair", "kernels/cpu/tiny.py", "[e // m for e", "[e // n for e", CPU_TARGET
    ),
    Mutant("cpu: tiny, dq is the error", "kernels/cpu/tiny.py", "lambda: g)", "lambda: e)", CPU_TARGET),
    Mutant(
        "cpu: tall, the last rows of dq not masked",
        "kernels/cpu/tall.py",
        "rows, [are_rows])",
        "rows, [None])",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: tall, a stream of dq not ended",
        "kernels/cpu/tall.py",
        "((self.dW_stream, self.wanted.dW), (self.dq_stream, self.wanted.dq))",
        "((self.dW_stream, self.wanted.dW),)",
        STREAM,
    ),
    Mutant(
        "cpu: tall, the target of rows that are none is read",
        "kernels/cpu/tall.py",
        "v.load(self.target, row, are_rows)",
        "v.load(self.target, row)",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: rows, the target of rows that are none is read",
        "kernels/cpu/rows.py",
        "v.load(target, k, are_rows)",
        "v.load(target, k)",
        CPU_TARGET,
    ),
    Mutant(
        "cpu: rows, dq of each slice begins at the pair's",
        "kernels/cpu/rows.py",
        "rows.write_g(v.at(dq, first_of_W))",
        "rows.write_g(v.at(dq, b.mul(pair, m)))",
        CPU_TARGET,
    ),
    Mutant("cpu: x of another pair", "kernels/cpu/tiny.py", "e // (m * n) * n + e % n", "e % n", PARITY),
    Mutant(
        "cpu: odd terms of a sum forgotten", "kernels/cpu/simd.py", "size % 2 == 0", "size % 2 == 0 or size > 8", PARITY
    ),
    Mutant(
        "cpu: tall, the last rows not masked",
        "kernels/cpu/tall.py",
        "b.select(are_rows, e, v.constant(0)) if are_rows else e",
        "e",
        PARITY,
    ),
    Mutant(
        "cpu: a stream begins before its range", "kernels/cpu/stream.py", "self.first), likely", "line), likely", STREAM
    ),
    Mutant(
        "cpu: a stream forgets its last elements", "kernels/cpu/stream.py", "self._store_part(self.v", "(self.v", STREAM
    ),
    Mutant("cpu: a stream is stored as usual", "kernels/cpu/simd.py", "store.set_metadata(", "(", STREAM),
    Mutant(
        "cpu: errors of a sum forgotten",
        "kernels/cpu/sums.py",
        "b.fadd(b.load(self.low), error)",
        "b.load(self.low)",
        SUMS,
    ),
    Mutant("cpu: rows, dx not reset between pairs", "kernels/cpu/rows.py", '"==", i, row', '"!=", i, row', PARITY),
    Mutant(
        "cpu: rows, rest of a row forgotten",
        "kernels/cpu/loops.py",
        '">", rest, INDEX(0)',
        '">", rest, INDEX(1)',
        PARITY,
    ),
    Mutant(
        "cpu: rows, the first line of a range taken for its own",
        "kernels/cpu/rows.py",
        '"==", loop.index, INDEX(0)',
        '"<", loop.index, INDEX(0)',
        STREAM,
    ),
    Mutant(
        "cpu: rows, a last slice as long as the others",
        "kernels/cpu/rows.py",
        "minimum(b, b.add(row, slice_rows), m)",
        "b.add(row, slice_rows)",
        STREAM,
    ),
    Mutant(
        "cpu: padding rows add to the loss",
        "kernels/cpu/rows.py",
        "b.select(are_rows, b.fmul(e, e), v.constant(0))",
        "b.fmul(e, e)",
        PARITY,
    ),
    Mutant("cpu: scaled by the exponent of another", "kernels/cpu/simd.py", "a, exponent, a,", "a, a, a,", SIMD),
    # Threads and pieces
    Mutant("threads: the last range cut short", "sigmoid_l2/threads.py", "self.size)", "self.size - 1)", THREADS),
    Mutant("threads: an exception lost", "sigmoid_l2/threads.py", "raise ranges.errors[0]", "pass", THREADS),
    Mutant(
        "settings: OMP_NUM_THREADS forgotten",
        "sigmoid_l2/settings.py",
        "_least(processors.count(), *_others())",
        "_least(processors.count(), _others()[0])",
        ("tests/host/test_settings.py",),
    ),
    Mutant(
        "processors: groups above the process's own forgotten",
        "sigmoid_l2/processors.py",
        "folder = folder.parent",
        "folder = top",
        ("tests/host/test_processors.py",),
    ),
    Mutant(
        "quiet: the first that leaves lets the others be told",
        "kernels/quiet.py",
        "while _levels and not _within:",
        "while _levels:",
        ("tests/host/test_quiet.py::test_threads_within_at_once",),
    ),
    Mutant(
        "threads: returns before helpers are done",
        "sigmoid_l2/threads.py",
        "while self.helping:",
        "while False:",
        THREADS,
    ),
    Mutant("pieces: one too long", "sigmoid_l2/arguments.py", "first + step)", "first + step + 1)", (*PARITY, *MEMORY)),
    Mutant("pieces: the middle term left out", "sigmoid_l2/sums.py", "shape[1] - half]", "shape[1] // 2]", WHOLE),
    Mutant("pieces: the later strands left out", "sigmoid_l2/pieces.py", "in strands:", "in strands[:1]:", WHOLE),
    Mutant("pieces: the sums of an earlier cell", "sigmoid_l2/pieces.py", "cell * count :", "0 * count :", WHOLE),
    Mutant("pieces: not summed over a missing axis", "sigmoid_l2/arguments.py", "k < missing or", "False or", WHOLE),
    Mutant(
        "pieces: each in the place of the first", "sigmoid_l2/pieces.py", "[before : before + size]", "[:size]", WHOLE
    ),
    Mutant("at_once: copies not written back", "sigmoid_l2/at_once.py", "elif k >= INPUTS:", "elif False:", PLAIN),
    Mutant("at_once: copies of any size", "sigmoid_l2/at_once.py", "if nbytes > most_bytes:", "if False:", MEMORY),
    Mutant(
        "at_once: the sum of the first pair alone",
        "sigmoid_l2/at_once.py",
        "halved(flat[k][None])",
        "flat[k][:1]",
        WHOLE,
    ),
    Mutant(
        "at_once: dW of one W for each pair",
        "sigmoid_l2/at_once.py",
        "k in (W_PLACE, DW_PLACE)",
        "k == W_PLACE",
        ENSEMBLES,
    ),
    Mutant(
        "ensembles: dx of the last model", "sigmoid_l2/ensembles.py", "total.add(term)", "total.high = term", ENSEMBLES
    ),
    Mutant(
        "ensembles: x shared along the first axes of the models",
        "sigmoid_l2/ensembles.py",
        "key=of_x.__contains__",
        "key=int",
        ENSEMBLES,
    ),
    Mutant(
        "ensembles: dx of the first samples",
        "sigmoid_l2/ensembles.py",
        "Sum(xp), dx[index]",
        "Sum(xp), dx[parts[0]]",
        ENSEMBLES,
    ),
    Mutant(
        "ensembles: the target of the first samples",
        "sigmoid_l2/ensembles.py",
        "k == W_PLACE else a[index]",
        "k == W_PLACE else a[index if k < 2 else parts[0]]",
        ENSEMBLES,
    ),
    Mutant(
        "layouts: pairs that lie outside",
        "sigmoid_l2/layouts.py",
        "min(steps) >= max(2 * W.itemsize, *batch)",
        "min(steps) >= 2 * W.itemsize",
        ORDER,
    ),
    Mutant("layouts: one matrix", "sigmoid_l2/layouts.py", "bool(steps) and any(batch)", "bool(steps)", ORDER),
    Mutant(
        "layouts: an order that is not undone",
        "sigmoid_l2/layouts.py",
        "lies.transpose(sorted(range(len(order)), key=order.__getitem__))",
        "lies.transpose(order)",
        ORDER,
    ),
    Mutant(
        "arguments: pairs of every other element are in place",
        "sigmoid_l2/arguments.py",
        "if size > 1 and stride != step:",
        "if size > 1 and stride < step:",
        BATCH_LAST,
    ),
    Mutant(
        "reference: dx of the first rows of a batch-last pair",
        "kernels/reference_batch_last.py",
        "None if a is None else a + b for a, b",
        "a for a, b",
        BATCH_LAST,
    ),
    Mutant(
        "cpu: the line before a range of batch-last pairs",
        "kernels/cpu/batch_last_range.py",
        "own = b.not_(v.mask_first(b.select(unit.begins, part, INDEX(0))))",
        "own = b.not_(v.mask_first(INDEX(0)))",
        BATCH_LAST_CPU,
    ),
    Mutant(
        "cpu: g of the last block of batch-last pairs joins dW",
        "kernels/cpu/batch_last_range.py",
        "v.store(g[-1], self.g_before, at)",
        "v.store(g[0], self.g_before, at)",
        BATCH_LAST_CPU,
    ),
    Mutant(
        "cuh: the target of other rows, pairs last",
        "kernels/gpu/batch_last.cuh",
        "W += W_row_step, target += target_step;",
        "W += W_row_step, target += W_row_step;",
        BATCH_LAST_GPU,
    ),
    Mutant(
        "numba.cuda: dW of the row before, pairs last",
        "kernels/gpu/batch_last.py",
        "dW_at += dW_row_step * ITEM",
        "dW_at += dW_step * ITEM",
        BATCH_LAST_GPU,
    ),
    Mutant(
        "execute: models of few samples alone", "sigmoid_l2/execute.py", "samples >= MODEL_SAMPLES and", "", ENSEMBLES
    ),
    Mutant(
        "execute: models from one sample more on",
        "sigmoid_l2/execute.py",
        "samples >= MODEL",
        "samples > MODEL",
        ENSEMBLES,
    ),
    Mutant(
        "execute: models by the work of one sample",
        "sigmoid_l2/execute.py",
        "samples * problem.m * problem.n >=",
        "problem.m * problem.n >=",
        ENSEMBLES,
    ),
    Mutant("execute: whole-batch buffers", "sigmoid_l2/execute.py", "= 2 << 20", "= 2 << 40", MEMORY),
    # Memory of results
    Mutant(
        "memory: used again while it is lent",
        "sigmoid_l2/memory.py",
        "block.free and _kept.pop(block, False) and block.free",
        "_kept.pop(block, False)",
        KEPT,
    ),
    Mutant("memory: a handler's exception lost", "sigmoid_l2/memory.py", "not in _REFUSED", "is ...", KEPT),
    Mutant("memory: a base that views leave out", "sigmoid_l2/memory.py", "ref(root, self", "ref(root[:], self", KEPT),
    Mutant(
        "memory: free before it is marked as free",
        "sigmoid_l2/memory.py",
        "weakref.ref(root, self.free.append), weakref.ref(root, partial(next, mark))",
        "weakref.ref(root, partial(next, mark)), weakref.ref(root, self.free.append)",
        KEPT,
    ),
    Mutant("memory: not marked as free", "sigmoid_l2/memory.py", "partial(next, mark)", "id", KEPT),
    Mutant("memory: shared with a child", "sigmoid_l2/memory.py", "mmap.MAP_PRIVATE", "mmap.MAP_SHARED", KEPT),
    Mutant("memory: the limit forgotten", "sigmoid_l2/memory.py", "    _trim()", "    pass", KEPT),
    Mutant("memory: the oldest stay", "sigmoid_l2/memory.py", "in list(_kept):\n", "in list(_kept)[::-1]:\n", KEPT),
    Mutant("memory: huge for small results", "sigmoid_l2/memory.py", "<= 2 * nbytes", "", KEPT),
    Mutant("memory: not on a line", "sigmoid_l2/memory.py", "-memory.ctypes.data % LINE", "0", KEPT),
    Mutant("memory: kept where it runs out", "sigmoid_l2/execute.py", "not memory.give_back()", "True", KEPT),
    # Arguments
    Mutant("outputs: owners not counted", "sigmoid_l2/outputs.py", "len(owners) == different", "True", OUT),
    Mutant(
        "outputs: a view owns its memory", "sigmoid_l2/outputs.py", "    base = view.base", "    return id(view)", OUT
    ),
    Mutant(
        "outputs: W not compared", "sigmoid_l2/outputs.py", "in (*given, *out[:k])", "in (*given[1:], *out[:k])", OUT
    ),
    Mutant("outputs: a buffer has an owner", "sigmoid_l2/outputs.py", "type(base) is np.ndarray and base", "base", OUT),
    Mutant("problem: plain in any layout", "sigmoid_l2/problem.py", "x_flags.c_contiguous", "True", PLAIN),
    Mutant("problem: plain in any byte order", "sigmoid_l2/problem.py", "or not dtype.isnative\n", "\n", PLAIN),
    Mutant("outputs: overlaps by bounds unseen", "sigmoid_l2/outputs.py", "if not flags.carray:", "if False:", OUT),
    Mutant(
        "outputs: overlapping outputs accepted", "sigmoid_l2/outputs.py", "checked.append((name, memory))", "pass", OUT
    ),
    Mutant(
        "meaning: masked arrays accepted",
        "sigmoid_l2/meaning.py",
        '"numpy.ma": (',
        '"numpy.nothing": (',
        ("tests/host/test_arguments.py", "tests/host/test_bad_input.py"),
    ),
    Mutant("outputs: read-only outputs accepted", "sigmoid_l2/outputs.py", "not array.flags.writeable", "False", OUT),
    # Arrays of other libraries in host memory
    Mutant(
        "host_arrays: a gradient is lost without a word",
        "sigmoid_l2/host_arrays.py",
        "if torch.is_grad_enabled():",
        "if False:",
        HOST_ARRAYS,
    ),
    Mutant(
        "host_arrays: JAX has to copy what is small",
        "sigmoid_l2/host_arrays.py",
        "needs_lines = True",
        "needs_lines = False",
        HOST_ARRAYS,
    ),
    Mutant(
        "host_arrays: integers in float64",
        "sigmoid_l2/host_arrays.py",
        "dtypes.pop() if dtypes else default",
        "dtypes.pop() if dtypes else torch.float64",
        HOST_ARRAYS,
    ),
    Mutant(
        "host_arrays: autograd does not know what was written",
        "sigmoid_l2/host_arrays.py",
        "increment_version(self.taken)",
        "increment_version([])",
        HOST_ARRAYS,
    ),
    Mutant(
        "meaning: nested lists not looked into",
        "sigmoid_l2/meaning.py",
        "for leaf in _leaves(a, set()) if isinstance(a, list | tuple) else ():",
        "for leaf in ():",
        MEANING,
    ),
    Mutant(
        "meaning: base classes not looked at",
        "sigmoid_l2/meaning.py",
        "for cls in kind.__mro__:",
        "for cls in (kind,):",
        MEANING,
    ),
    # Trace and check
    Mutant("trace: ds/dq = s", "sigmoid_l2/explain/trace.py", "ds_dq = s * complement", "ds_dq = s", TRACE),
    Mutant("trace: y - s", "sigmoid_l2/explain/trace.py", "complement, s - y)", "complement, y - s)", TRACE),
    Mutant("trace: 1 subtracted from s", "sigmoid_l2/explain/trace.py", "(1 - y) - complement", "s - y", TRACE),
    Mutant("trace: a sum over one axis less", "sigmoid_l2/explain/trace.py", "if k < missing or", "if", TRACE),
    Mutant(
        "check_grad: e may not cancel",
        "sigmoid_l2/explain/precisions.py",
        "np.where(ends, here, np.abs(values.s) + np.abs(values.y))",
        "here",
        TARGET,
    ),
    Mutant(
        "check_grad: a residual without y is right",
        "sigmoid_l2/explain/steps.py",
        'Way("", lambda v: residual(v.s, v.c, v.y))',
        'Way("", lambda v: v.s)',
        TARGET,
    ),
    Mutant("grad: columns are not flattened", "sigmoid_l2/cli/commands.py", "if problem.column:", "if False:", CLI),
    Mutant(
        "grad: a target is not cut",
        "sigmoid_l2/cli/commands.py",
        "a[piece] if own else a",
        "a[piece] if own and a is not problem.target else a",
        CLI,
    ),
    Mutant(
        "check_grad: everything is right",
        "sigmoid_l2/explain/check_grad.py",
        'ok = found["wrong"] == 0',
        'ok = found["wrong"] is not None',
        CHECK,
    ),
    Mutant(
        "check_grad: chance explains everything",
        "sigmoid_l2/explain/search.py",
        "_CHANCE / self._tried(recipe)",
        "1.0",
        NAMES,
    ),
    Mutant(
        "check_grad: one explanation of several",
        "sigmoid_l2/explain/search.py",
        "is_own = fit.recipe.cost == cost or",
        "is_own = False and",
        MISTAKES,
    ),
    Mutant(
        "check_grad: no pair is looked at by itself",
        "sigmoid_l2/explain/mistakes.py",
        "if inputs.cells < 2:",
        "if True:",
        STEPS,
    ),
    Mutant(
        "check_grad: a step does not follow from one's own",
        "sigmoid_l2/explain/check_grad.py",
        "before[name] = check.given.reshape(*problem.batch, problem.m)",
        "pass",
        STEPS,
    ),
    Mutant(
        "check_grad: rounding acts on its own step alone",
        "sigmoid_l2/explain/program.py",
        "here[names.index(name)] += step_of[name]",
        "pass",
        MISTAKES,
    ),
    Mutant(
        "check_grad: the order of the batch's axes is forgotten",
        "sigmoid_l2/explain/check_grad.py",
        "return given.transpose(*order, *range(len(batch), given.ndim))",
        "return given",
        STEPS,
    ),
    # The GPU kernels
    Mutant(
        "cuh: s and 1 - s swapped for q < 0",
        "kernels/gpu/common.cuh",
        "c = q < T(0) ? r : tr;",
        "c = q < T(0) ? tr : r;",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: the last single element not moved",
        "kernels/gpu/tile.cuh",
        "return threadIdx.x < count % WIDTH;",
        "return threadIdx.x + 1 < count % WIDTH;",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: finish forgets the first slice",
        "kernels/gpu/finish.cuh",
        "for (unsigned k = 0; loader == 0 && k < count; ++k) {",
        "for (unsigned k = 1; loader == 0 && k < count; ++k) {",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: slices in turn forget those before",
        "kernels/gpu/rows.cuh",
        "const bool is_first = !IN_TURN || left == unit_rows;",
        "const bool is_first = true;",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: finish forgets the groups before",
        "kernels/gpu/finish.cuh",
        "total += group_total;",
        "total = group_total;",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: a row that is not there has a gradient",
        "kernels/gpu/staged.cuh",
        "g_own[k] = T(0);  // no row",
        ";  // no row",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: a target near 1 subtracted from s",
        "kernels/gpu/common.cuh",
        "y > T(0.5) ?",
        "y > T(2) ?",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: the cotangent forgotten",
        "kernels/gpu/common.cuh",
        "GIVEN_COTANGENT ? multiply(two_e, cotangent) : two_e",
        "two_e",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: the target of other rows",
        "kernels/gpu/staged.cuh",
        "y_moves.from_global(target + row_first);",
        "y_moves.from_global(target + pair);",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: each slice of columns writes dq",
        "kernels/gpu/columns.cuh",
        "WANT_DQ && column_slice == 0 &&",
        "WANT_DQ &&",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "numba.cuda: a target near 1 subtracted from s",
        "kernels/gpu/common.py",
        "if y > half else",
        "if y > two else",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "launch: a later part of the batch has the first one's target",
        "kernels/gpu/launch.py",
        "sizes = m * n, n, m, 1,",
        "sizes = m * n, n, 0, 1,",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: vectors not permuted",
        "kernels/gpu/tile.cuh",
        "elements + (e ^ (e / BANKS % PERMUTED) * VECTOR)",
        "elements + e",
        ("tests/gpu/test_traffic.py",),
    ),
    Mutant(
        "cuh: element by element",
        "kernels/gpu/staged.cuh",
        "constexpr unsigned X_WIDTH = WIDE &&",
        "constexpr unsigned X_WIDTH = false &&",
        ("tests/gpu/test_traffic.py",),
    ),
    Mutant(
        "launch: the last rows of a pair left out",
        "kernels/gpu/plan.py",
        "    slices = -(-m // rows)\n    group =",
        "    slices = m // rows\n    group =",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "numba.cuda: s and 1 - s swapped for q < 0",
        "kernels/gpu/common.py",
        "return (tr, r) if q < 0 else (r, tr)",
        "return (r, tr) if q < 0 else (r, tr)",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "numba.cuda: vectors not permuted",
        "kernels/gpu/tile.py",
        "e ^ (e // BANKS % PERMUTED) * VECTOR",
        "e",
        ("tests/gpu/test_traffic.py",),
    ),
    Mutant(
        "launch: the last block left out",
        "kernels/gpu/launch.py",
        "-(-units // p.block_units)",
        "max(1, units // p.block_units)",
        ("tests/gpu/test_proof.py",),
    ),
    Mutant(
        "cuh: threads without a pair count for dW of a shared W",
        "kernels/gpu/shared_tiny.cuh",
        "pair < pairs ? g : T(0)",
        "g",
        SHARED_TINY,
    ),
    Mutant(
        "cuh: the run of dW not reset",
        "kernels/gpu/shared_tiny.cuh",
        "for (unsigned k = 0; k < SIZE; ++k) dW_own[k] = T(0);",
        "for (unsigned k = 1; k < SIZE; ++k) dW_own[k] = T(0);",
        SHARED_TINY,
    ),
    Mutant(
        "cuh: the errors of sums over warps forgotten",
        "kernels/gpu/shared_sums.cuh",
        "low += (high - (sum - added)) + (term - added);",
        "",
        SHARED_TINY,
    ),
    Mutant(
        "numba.cuda: the last run of dW forgotten",
        "kernels/gpu/shared_tiny.py",
        "(run == RUN or left == 1 or B - first <= TILE)",
        "(run == RUN or left == 1)",
        SHARED_TINY,
    ),
    Mutant(
        "cuh: high of a part of dW stored as its low",
        "kernels/gpu/shared_parts.cuh",
        "store_own<P, WIDE>(own_low + index_t(P::a(i)) * n, low[i], columns);",
        "store_own<P, WIDE>(own_low + index_t(P::a(i)) * n, high[i], columns);",
        SHARED_BLOCKS,
    ),
    Mutant(
        "numba.cuda: the loss of the last tile of rows of a shared W alone",
        "kernels/gpu/shared_blocks.py",
        "if WANT_LOSS and row > 0:",
        "if WANT_LOSS and row > m:",
        SHARED_BLOCKS,
    ),
    Mutant(
        "launch: a shared W's last block left out",
        "kernels/gpu/launch_shared.py",
        "blocks = -(-B // (p.tile * tiles))",
        "blocks = max(1, B // (p.tile * tiles))",
        SHARED_TINY,
    ),
    Mutant(
        "offload: the kernel does not wait for the copy",
        "sigmoid_l2/offload.py",
        "        self.gpu.wait(self.kernels, self.copied_in)\n",
        "",
        ("tests/host/test_offload.py",),
    ),
    Mutant(
        "streams: the producer's stream is not waited for",
        "sigmoid_l2/gpu/library.py",
        "                    self.wait(stream, event)\n",
        "",
        ("tests/host/test_streams.py",),
    ),
    # Where the sources are not files
    Mutant(
        "not files: the key of the cache without the sources",
        "kernels/cpu/compile.py",
        "(*map(_content, modules), numba.__version__",
        "(numba.__version__",
        NOT_FILES,
    ),
    Mutant(
        "not files: not compiled where numba has no place for its cache",
        "kernels/cpu/compile.py",
        "except Exception:  # no directory",
        "except MemoryError:  # no directory",
        NOT_FILES,
    ),
    Mutant(
        "not files: a packed program is told to install",
        "sigmoid_l2/probes.py",
        'if getattr(sys, "frozen", False):',
        "if False:",
        NOT_FILES,
    ),
    Mutant(
        "not files: a kernel that only its name leads to",
        "sigmoid_l2/dispatch.py",
        "    from sigmoid_l2.kernels.cpu import launch\n\n    return launch",
        '    return __import__("importlib").import_module("sigmoid_l2.kernels.cpu.launch")',
        NOT_FILES,
    ),
    # JAX
    Mutant("jax: the incoming gradient left out", "sigmoid_l2/jax.py", ', "cotangent": cotangents[0]}', "}", JAX),
    Mutant(
        "jax: axes of length 1 left out of a new batch",
        "sigmoid_l2/jax.py",
        "(size, *(1,) * (max(batch) + CORE_AXES[name] - len(shape)), *shape)",
        "(size, *shape)",
        JAX,
    ),
    Mutant("jax: vectors taken for columns", "sigmoid_l2/jax.py", ", vectors=True)", ")", JAX),
    Mutant("jax: a shared W copied", "sigmoid_l2/jax.py", ' or f"d{name}" in call.names else', " or True else", JAX),
    Mutant(
        "jax: one incoming gradient for all taken for 1",
        "sigmoid_l2/jax.py",
        "on_host[-1].ndim == 0 and on_host[-1] == 1:",
        "on_host[-1].ndim == 0:",
        ("tests/host/test_jax.py::test_the_bits_of_plain_calls_under_vmap",),
    ),
    # PyTorch
    Mutant(
        "torch: the incoming gradient left out",
        "sigmoid_l2/torch.py",
        "cotangent=_dense(cotangent)",
        "cotangent=None",
        TORCH,
    ),
    Mutant(
        "torch: one incoming gradient for all taken for 1",
        "sigmoid_l2/torch.py",
        " and cotangent[(0,) * cotangent.ndim] == 1",
        "",
        TORCH,
    ),
    Mutant("torch: the axis of vmap not moved", "sigmoid_l2/torch.py", "else a.movedim(dim, 0)", "else a", TORCH_FUNC),
    Mutant(
        "torch: axes of length 1 left out of a vmapped batch",
        "sigmoid_l2/torch.py",
        "(1,) * (max(batches) - batch)",
        "(1,) * 0",
        TORCH_FUNC,
    ),
    Mutant("torch: a shared W copied for vmap", "sigmoid_l2/torch.py", "(want or dim is not None)", "True", TORCH_FUNC),
    Mutant("torch: dW though nobody needs it", "sigmoid_l2/torch.py", '"W" * needs_W', '"W"', TORCH),
    Mutant(
        "torch: a layout that the compiler is not told",
        "sigmoid_l2/torch.py",
        "if shares else torch.empty_like(a, dtype=dtype)",
        "",
        TORCH,
    ),
    Mutant(
        "torch: a second derivative silently 0",
        "sigmoid_l2/torch.py",
        "*cotangents: Any) -> Any:\n        raise NotImplementedError(_NO_SECOND_DERIVATIVE)",
        "*cotangents: Any) -> Any:\n        return (None,) * 6",
        TORCH,
    ),
)
