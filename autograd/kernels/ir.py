"""Building blocks for the inner loops that are written in LLVM's language instead of Python.

A Numba kernel is compiled by LLVM, which decides by itself what to put in vector registers. For a loop over an
array it decides well. For a matrix product it can't: the whole point there is which numbers stay in registers.
Such loops are *emitted*: a Python function runs once, at compile time, and writes the instructions one by one.

    Emitter            writes vector instructions: `load`, `store`, `splat`, `fma`, `transpose`, `loop`, `prefetch`
    TileEmitter        and those of AMX, the matrix registers of newer Intel processors
    emitted            makes a function that @kernel code can call from a Python function that emits its body
    pointer            where an array's numbers begin; pointers are indexed as arrays are, and `shift`ed
    stored_pointer     the same, for arrays that are known by their addresses only
    call               calls a function that is known by its address only
    lanes, move, …     the smallest emitted functions, used between the others
    host               how wide the vectors are and how many registers there are

LLVM translates vector instructions for any processor; only the *sizes* must suit the one at hand. Nothing here
names a processor but `host`. (LLVM's reference: https://llvm.org/docs/LangRef.html)
"""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

__all__ = [
    "INT", "Emitter", "TileEmitter", "call", "emitted", "fetch_add", "fetch_soon", "has", "host", "lanes", "move",
    "move_first", "mover", "pointer", "shift", "stored_pointer", "transpose",
]  # fmt: skip

INT = ir.IntType(64)


class Host(NamedTuple):
    """What the register tile of a kernel depends on."""

    vector_bytes: int
    registers: int


@functools.cache
def features() -> frozenset[str]:
    """The processor's instruction sets that Numba compiles for (NUMBA_CPU_FEATURES restricts them)."""
    reported = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return frozenset(name[1:] for name in reported.split(",") if name.startswith("+"))


def has(*names: str) -> bool:
    """Whether the processor has all these features (LLVM's names: avx2, avx512f, amx-bf16, …)."""
    return features().issuperset(names)


@functools.cache
def host() -> Host:
    """The vector registers: 32 of 64 bytes (AVX-512), 16 of 32 (AVX), else of 16 bytes (SSE, NEON, …)."""
    if has("avx512f"):
        return Host(64, 32)
    if has("avx2"):
        return Host(32, 16)
    return Host(16, 32 if platform.machine() in ("aarch64", "arm64") else 16)


class Emitter:
    """Writes instructions on vectors of one type of number, as many of them as fill a register."""

    def __init__(self, builder: ir.IRBuilder, number: ir.Type) -> None:
        self.builder = builder
        self.number = number
        self.bytes = {ir.FloatType(): 4, ir.IntType(16): 2}.get(number, 8)
        self.lanes = host().vector_bytes // self.bytes
        self.vector = ir.VectorType(number, self.lanes)

    def at(self, start: ir.Value, index: Any, stored: ir.Type | None = None) -> ir.Value:
        """The address of the number `index` places after `start`, where numbers are `stored` as another type."""
        index = INT(index) if isinstance(index, int) else index
        return self.builder.gep(start, [index], source_etype=stored or self.number)

    def load(self, address: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(address, self.vector.as_pointer()), align=self.bytes)

    def store(self, vector: ir.Value, address: ir.Value) -> None:
        self.builder.store(vector, self.builder.bitcast(address, vector.type.as_pointer()), align=self.bytes)

    def first(self, count: ir.Value) -> ir.Value:
        """A mask of the first `count` lanes."""
        numbers = ir.VectorType(count.type, self.lanes)
        counts = self.builder.insert_element(ir.Constant(numbers, ir.Undefined), count, ir.IntType(32)(0))
        counts = self.shuffle(counts, counts, [0] * self.lanes)
        return self.builder.icmp_signed("<", ir.Constant(numbers, list(range(self.lanes))), counts)

    def load_masked(self, address: ir.Value, mask: ir.Value) -> ir.Value:
        """The lanes of the mask; the others are zero, and their memory is not touched."""
        pointer, int32 = self.vector.as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.vector, [pointer, int32, mask.type, self.vector]),
            f"llvm.masked.load.v{self.lanes}f{8 * self.bytes}.p0",
        )
        address = self.builder.bitcast(address, pointer)
        return self.builder.call(function, [address, int32(self.bytes), mask, self.zero()])

    def store_masked(self, vector: ir.Value, address: ir.Value, mask: ir.Value) -> None:
        """Write the lanes of the mask; the memory of the others is not touched."""
        pointer, int32 = self.vector.as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [self.vector, pointer, int32, mask.type]),
            f"llvm.masked.store.v{self.lanes}f{8 * self.bytes}.p0",
        )
        self.builder.call(function, [vector, self.builder.bitcast(address, pointer), int32(self.bytes), mask])

    def zero(self) -> ir.Value:
        return ir.Constant(self.vector, None)

    def broadcast(self, number: ir.Value) -> ir.Value:
        """A number, in every lane."""
        first = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), number, ir.IntType(32)(0))
        return self.shuffle(first, first, [0] * self.lanes)

    def splat(self, address: ir.Value) -> ir.Value:
        """One number, in every lane."""
        return self.broadcast(self.builder.load(address, typ=self.number, align=self.bytes))

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.builder.fadd(x, y)

    def sum(self, vector: ir.Value) -> ir.Value:
        """The sum of all lanes, by halves."""
        kind = ir.FunctionType(self.number, [self.number, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [ir.Constant(self.number, 0.0), vector], fastmath=("reassoc",))

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x·y + z, rounded once where the processor can (a library call per lane elsewhere would be no help)."""
        name = f"llvm.fmuladd.v{self.lanes}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(self.vector, [self.vector] * 3), name
        )
        return self.builder.call(function, [x, y, z])

    def shuffle(self, x: ir.Value, y: ir.Value, order: list[int]) -> ir.Value:
        """The lanes of x and y (numbered on from x's) in a new order."""
        return self.builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))

    def transpose(self, rows: list[ir.Value]) -> list[ir.Value]:
        """Turn as many rows as there are lanes into columns, in log2(lanes) rounds of shuffles.

        A matrix of 2×2 blocks is transposed by exchanging the two blocks off the diagonal and transposing
        each block. The round with half-size `h` exchanges those blocks in all matrices of size 2h at once:
        rows r and r+h swap the lanes at which they differ.
        """
        count, half = len(rows), len(rows) // 2
        while half:
            upper = [lane if not lane & half else count + lane - half for lane in range(count)]
            lower = [lane + half if not lane & half else count + lane for lane in range(count)]
            for r in (r for r in range(count) if not r & half):
                x, y = rows[r], rows[r + half]
                rows[r], rows[r + half] = self.shuffle(x, y, upper), self.shuffle(x, y, lower)
            half //= 2
        return rows

    def prefetch(self, address: ir.Value, *, write: bool = False) -> None:
        """Ask for the cache line at `address` to be brought to the first level, to be read or written."""
        int32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(ir.VoidType(), [pointer, int32, int32, int32]), "llvm.prefetch.p0"
        )
        address = self.builder.bitcast(address, pointer)
        self.builder.call(function, [address, int32(int(write)), int32(3), int32(1)])

    @contextlib.contextmanager
    def loop(self, count: ir.Value, carried: list[ir.Value]) -> Iterator[list[ir.Value]]:
        """Repeat the instructions written in the `with` block.

        `carried` are the values that go from round to round, in registers. The block gets them as a list and
        assigns their next values to it; after the block the list holds the last.
        """
        builder = self.builder
        before = builder.block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        phis = []
        for value in (INT(0), *carried):
            phis.append(builder.phi(value.type))
            phis[-1].add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", phis[0], count), body, after)
        builder.position_at_end(body)
        values = phis[1:]
        yield values
        for phi, value in zip(phis, (builder.add(phis[0], INT(1)), *values), strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        values[:] = phis[1:]


class Bfloat16(ir.Type):
    """LLVM's name for the upper half of a float32, which llvmlite does not know."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat16)

    def __hash__(self) -> int:
        return hash(Bfloat16)


class TileEmitter(Emitter):
    """Writes instructions for AMX: eight registers of 16 rows × 64 bytes, here 16 × 16 float32 or 16 × 32 bfloat16.

    Two bfloat16 that are multiplied in one step lie side by side and travel as one 32-bit number, a *pair*.
    (Intel's reference: the intrinsics _tile_loadd, _tile_dpbf16ps, … and Software Developer's Manual, chapter 18.)
    """

    def _call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}"), args)

    def _bytes_at(self, address: ir.Value) -> ir.Value:
        return self.builder.bitcast(address, ir.IntType(8).as_pointer())

    def configure_tiles(self) -> None:
        """Make all eight registers of this thread 16 rows × 64 bytes."""
        configuration = bytearray(64)
        configuration[0] = 1  # the palette with eight registers of 1 KB
        for register in range(8):
            configuration[16 + 2 * register] = 64  # bytes in a row, as 16 bits
            configuration[48 + register] = 16  # rows
        constant = ir.Constant(ir.ArrayType(ir.IntType(8), 64), configuration)
        place = self.builder.alloca(constant.type)
        self.builder.store(constant, place)
        self._call("ldtilecfg", ir.VoidType(), self._bytes_at(place))

    def release_tiles(self) -> None:
        self._call("tilerelease", ir.VoidType())

    def zero_tile(self, register: int) -> None:
        self._call("tilezero", ir.VoidType(), ir.IntType(8)(register))

    def load_tile(self, register: int, address: ir.Value, stride: ir.Value) -> None:
        """Sixteen rows of 64 bytes, `stride` numbers apart; with stride 0 the same row sixteen times."""
        stride = self.builder.mul(stride, stride.type(self.bytes))
        self._call("tileloadd64", ir.VoidType(), ir.IntType(8)(register), self._bytes_at(address), stride)

    def store_tile(self, register: int, address: ir.Value, stride: ir.Value) -> None:
        stride = self.builder.mul(stride, stride.type(self.bytes))
        self._call("tilestored64", ir.VoidType(), ir.IntType(8)(register), self._bytes_at(address), stride)

    def multiply_tiles(self, total: int, a: int, b: int) -> None:
        """total (16, 16) += a (16, 32) @ b (32, 16), in float32."""
        self._call("tdpbf16ps", ir.VoidType(), *(ir.IntType(8)(register) for register in (total, a, b)))

    def round_pair(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """Two float32 vectors → one vector of bfloat16, low then high, rounded to nearest even."""
        rounded = self._call("avx512bf16.cvtne2ps2bf16.512", ir.VectorType(Bfloat16(), 32), high, low)
        return self.builder.bitcast(rounded, self.vector)

    def split(self, x: ir.Value) -> list[ir.Value]:
        """A float32 vector → three of bfloat16 that add up to it, each in the upper half of 32 bits.

        Each takes the next 8 bits, rounded to the nearest; what the first two leave has no more, unless it is below the
        normal numbers. NaN and infinite numbers become NaN.
        """
        builder, integers = self.builder, ir.VectorType(ir.IntType(32), self.lanes)
        every = lambda number: ir.Constant(integers, [number] * self.lanes)
        parts = []
        for half in (0x8000, 0x8000, 0):  # of a unit in the last place of a bfloat16
            bits = builder.add(builder.bitcast(x, integers), every(half))
            parts.append(builder.and_(bits, every(-0x10000)))
            x = builder.fsub(x, builder.bitcast(parts[-1], self.vector))
        return parts

    def pair(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """Pairs of two of the vectors that `split` makes."""
        lower = self.builder.lshr(low, ir.Constant(low.type, [16] * self.lanes))
        return self.builder.bitcast(self.builder.or_(lower, high), self.vector)

    def split_pair(self, low: ir.Value, high: ir.Value) -> list[ir.Value]:
        """Two float32 vectors → three vectors of pairs of bfloat16 (low, high) that add up to them."""
        return [self.pair(*parts) for parts in zip(self.split(low), self.split(high), strict=True)]

    def load_stored(self, address: ir.Value, mask: ir.Value, stored: ir.Type) -> ir.Value:
        """The numbers of the mask (zero: the others), which are stored as they are or, as 16 bits, in bfloat16."""
        if stored == self.number:
            return self.load_masked(address, mask)
        halves, int32 = ir.VectorType(stored, self.lanes), ir.IntType(32)
        kind = ir.FunctionType(halves, [halves.as_pointer(), int32, mask.type, halves])
        name = f"llvm.masked.load.v{self.lanes}i16.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        address = self.builder.bitcast(address, halves.as_pointer())
        loaded = self.builder.call(function, [address, int32(2), mask, ir.Constant(halves, None)])
        integers = ir.VectorType(int32, self.lanes)
        upper = self.builder.shl(self.builder.zext(loaded, integers), ir.Constant(integers, [16] * self.lanes))
        return self.builder.bitcast(upper, self.vector)

    def store_stored(self, vector: ir.Value, address: ir.Value, mask: ir.Value, stored: ir.Type) -> None:
        """Write the numbers of the mask as they are or, as 16 bits, in bfloat16."""
        if stored == self.number:
            self.store_masked(vector, address, mask)
            return
        halves, int32 = ir.VectorType(stored, self.lanes), ir.IntType(32)
        rounded = self._call("avx512bf16.cvtneps2bf16.512", ir.VectorType(Bfloat16(), self.lanes), vector)
        kind = ir.FunctionType(ir.VoidType(), [halves, halves.as_pointer(), int32, mask.type])
        name = f"llvm.masked.store.v{self.lanes}i16.p0"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        address = self.builder.bitcast(address, halves.as_pointer())
        self.builder.call(function, [self.builder.bitcast(rounded, halves), address, int32(2), mask])

    def load_halves(
        self, address: ir.Value, index: ir.Value, exists: ir.Value | None, count: ir.Value, size: int
    ) -> ir.Value:
        """`size` 16-bit numbers from number `index` on; only the first `count`, the others 0, and only if it `exists`.

        With `exists` None the caller knows that all of them are there.
        """
        half = ir.IntType(16)
        vector, pointer, int32 = ir.VectorType(half, size), ir.VectorType(half, size).as_pointer(), ir.IntType(32)
        place = self.builder.gep(address, [index], source_etype=half)
        place = self.builder.bitcast(place, pointer)
        if exists is None:
            return self.builder.load(place, align=2)
        numbers = ir.VectorType(count.type, size)
        count = self.builder.select(exists, count, count.type(0))
        counts = self.builder.insert_element(ir.Constant(numbers, ir.Undefined), count, int32(0))
        counts = self.shuffle(counts, counts, [0] * size)
        mask = self.builder.icmp_signed("<", ir.Constant(numbers, list(range(size))), counts)
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(vector, [pointer, int32, mask.type, vector]),
            f"llvm.masked.load.v{size}i16.p0",
        )
        return self.builder.call(function, [place, int32(2), mask, ir.Constant(vector, None)])

    def side_by_side(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """Two vectors of 16 halves as one of 16 numbers, low then high."""
        return self.builder.bitcast(self.shuffle(low, high, list(range(2 * self.lanes))), self.vector)

    def unpack(self, x: ir.Value, y: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The 16-bit numbers of x and y in turn, paired four by four of each eight: with 0 … 31 for the numbers of x,

            0 1 2 3  8 9 10 11  16 17 18 19  24 25 26 27    and    4 5 6 7  12 13 14 15  20 21 22 23  28 29 30 31

        (what `unpacked` tells), each with its partner from y. In this order it takes one instruction each.
        """
        halves = ir.VectorType(ir.IntType(16), 2 * self.lanes)
        x, y = self.builder.bitcast(x, halves), self.builder.bitcast(y, halves)
        orders = [[number for i in self.unpacked(part) for number in (i, i + 2 * self.lanes)] for part in range(2)]
        low, high = (self.builder.bitcast(self.shuffle(x, y, order), self.vector) for order in orders)
        return low, high

    def unpacked(self, part: int) -> list[int]:
        """Which numbers the first or second result of `unpack` holds."""
        return [4 * part + i // 4 * 8 + i % 4 for i in range(self.lanes)]

    def interleave(self, vector: ir.Value) -> ir.Value:
        """The 16-bit numbers of a vector's two halves in turn."""
        halves = self.builder.bitcast(vector, ir.VectorType(ir.IntType(16), 2 * self.lanes))
        order = [i // 2 + self.lanes * (i % 2) for i in range(2 * self.lanes)]
        return self.builder.bitcast(self.shuffle(halves, halves, order), self.vector)


def emitted(
    name: str, body: Callable, *, inline: bool = False, emitter: type[Emitter] = Emitter, like: int = 0
) -> Callable:
    """A codegen for `@intrinsic`: a function of its own, called where the intrinsic is.

    `body(emitter, *arguments)` writes the instructions. The argument number `like` must be a pointer; what it points
    to is the type of number that the emitter works with. A function of its own keeps its registers: inlined
    into a large loop, a tile of accumulators would be spilled to memory.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: list[ir.Value]) -> ir.Value:
        number = context.get_value_type(signature.args[like].dtype)
        if inline:
            body(emitter(builder, number), *args)
            return context.get_dummy_value()
        full_name = f"groundup.{name}.{number}"
        function = builder.module.globals.get(full_name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
            function = ir.Function(builder.module, kind, full_name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            function.attributes.add("nounwind")
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            body(emitter(inner, number), *function.args)
            inner.ret_void()
        builder.call(function, args)
        return context.get_dummy_value()

    return codegen


@intrinsic
def pointer(typingctx, array):
    """A pointer to the first number of an array."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def fetch_soon(typingctx, start, count):
    """Ask for `count` numbers to be brought to the cache, as they will be read or written soon."""

    def body(e, start, count):
        line = 64 // e.bytes
        lines = e.builder.sdiv(e.builder.add(count, INT(line - 1)), INT(line))
        with e.loop(lines, [start]) as carried:
            e.prefetch(carried[0], write=True)
            carried[0] = e.at(carried[0], line)

    return types.void(start, types.intp), emitted("fetch_soon", body)


@intrinsic
def call(typingctx, address, arguments):
    """Call the compiled function (see `callback` in jit.py) at an address (int64) with a tuple of arguments."""

    def codegen(context, builder, signature, args):
        values = cgutils.unpack_tuple(builder, args[1])
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(address, arguments), codegen


@intrinsic
def shift(typingctx, start, places):
    """The pointer `places` numbers further on."""

    def codegen(context, builder, signature, args):
        return Emitter(builder, context.get_value_type(start.dtype)).at(*args)

    return start(start, types.intp), codegen


@intrinsic
def stored_pointer(typingctx, addresses, i, like):
    """The pointer whose address is number i of an array (int64), to numbers like those of the array `like`.

    It is loaded from memory as a pointer: what LLVM 22 makes of an integer turned into one has been wrong.
    """

    def codegen(context, builder, signature, args):
        table = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.gep(table, [args[1]], source_etype=INT)
        kind = context.get_value_type(signature.return_type)
        return builder.load(builder.bitcast(place, kind.as_pointer()), typ=kind)

    return types.CPointer(like.dtype)(addresses, types.intp, like), codegen


@intrinsic
def lanes(typingctx, start):
    """How many of the numbers that `start` points to fill a vector register: known at compile time."""

    def codegen(context, builder, signature, args):
        return INT(Emitter(builder, context.get_value_type(start.dtype)).lanes)

    return types.intp(start), codegen


@intrinsic
def move(typingctx, source, target):
    """Copy one vector."""
    body = lambda e, source, target: e.store(e.load(source), target)
    return types.void(source, target), emitted("move", body, inline=True)


@intrinsic
def move_first(typingctx, source, target, count):
    """Copy the first `count` lanes of a vector and set the others to zero; what is not copied is not read."""
    body = lambda e, source, target, count: e.store(e.load_masked(source, e.first(count)), target)
    return types.void(source, target, types.intp), emitted("move_first", body, inline=True)


def mover(count: int) -> Callable:
    """A function (source, target) that copies `count` numbers, in as few moves as cover them (two may overlap)."""

    def body(e, source, target):
        size = min(e.lanes, 1 << count.bit_length() - 1)
        chunk = ir.VectorType(e.number, size)
        for first in (*range(0, count - size, size), count - size):
            address = e.builder.bitcast(e.at(source, first), chunk.as_pointer())
            e.store(e.builder.load(address, align=e.bytes), e.at(target, first))

    @intrinsic
    def move_numbers(typingctx, source, target):
        return types.void(source, target), emitted("move", body, inline=True)

    return move_numbers


@intrinsic
def transpose(typingctx, source, source_stride, rows, target, target_stride):
    """Copy a square of lanes × lanes numbers, rows to columns; for those beyond `rows`, the last one again."""

    def body(e, source, source_stride, rows, target, target_stride):
        last = e.builder.sub(rows, INT(1))
        vectors = []
        for i in range(e.lanes):
            row = e.builder.select(e.builder.icmp_signed("<", INT(i), last), INT(i), last)
            vectors.append(e.load(e.at(source, e.builder.mul(source_stride, row))))
        for i, column in enumerate(e.transpose(vectors)):
            e.store(column, e.at(target, e.builder.mul(target_stride, INT(i))))

    signature = types.void(source, types.intp, types.intp, target, types.intp)
    return signature, emitted("transpose", body, inline=True)


@intrinsic
def fetch_add(typingctx, counter):
    """Add 1 to the integer at `counter` and return what it was; threads never get the same number.

    Who gets a number sees what those before had written when they got theirs.
    """

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], INT(1), "acq_rel")

    return types.int64(counter), codegen
