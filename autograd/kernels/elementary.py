"""exp, log, tanh, sigmoid, erf and the normal distribution, for use inside kernels.

Numba would call the C library once per number. Here each function is a polynomial and a few selections, with no
branch and no call, so that a loop over it becomes vector code, 8 or 16 numbers at a time. Every function takes a
float32 or float64 scalar and stays in that type: the constants of both are tabled below and one text serves both.

The pieces:

- **Range reduction.** x = n·ln 2 + r with |r| ≤ ln 2 / 2 and n an integer, so exp(x) = 2ⁿ·exp(r). Adding 1.5·2²³
  (1.5·2⁵² in float64) rounds to an integer that then stands in the low bits of the sum; ln 2 is subtracted in two
  parts, so that no digit of r is lost (W. J. Cody and W. Waite, *Software Manual for the Elementary Functions*,
  1980).
- **Polynomials** are minimax fits (Remez). exp(r) − 1 = r + r²·q(r) keeps full relative precision around zero, from
  which tanh(t) = −e/(e + 2) with e = exp(−2t) − 1.
- **Both sides of a condition are computed first** and one is selected: LLVM turns only that into vector code.
- **exp2** is the same without the factor: x = n + r. It takes two thirds of the instructions, as it leaves out what
  attention does not need: infinities above, and an exact end of the range below.
- **erf** is x·p(x²) for |x| < 1. Beyond, erfc(t) = 2·exp(−t²)·h(t), where h is smooth and a polynomial up to where
  exp(−t²) is too small to matter beside 1. The normal distribution Φ needs only this branch. No division: one
  takes as long as ten terms of a polynomial.

Accuracy against the exact value, tested over the whole range: exp and exp2 2 ulp, sigmoid 4 ulp, tanh and erf 4 ulp;
the normal distribution is right to 2 ulp of 1. Results of exp below the smallest normal number are 0; infinities and
NaN behave as in the C library. Left out: sin and cos (NumPy's own are vectorised, and no kernel needs them).

`reassoc` must be off in this file: it would merge the two parts of ln 2 and cancel the rounding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .ir import Bfloat16, TileEmitter, emitted, has
from .jit import kernel

__all__ = ["as_number", "as_stored", "computed_row", "erf", "exp", "exp2", "is_narrow", "like", "log", "logistic",
           "minus", "narrow", "normal_cdf", "normal_pdf", "row_maximum", "sigmoid", "store_row", "tanh",
           "use_widest_vectors", "widen"]


class Constants(NamedTuple):
    """What the functions need to know about one floating-point type. The numbers have that type."""

    zero: Any
    half: Any
    one: Any
    two: Any
    erfc_highest: Any  # where erfc stops to matter beside 1
    infinity: Any
    log2_e: Any
    ln2_high: Any
    ln2_low: Any
    round_magic: Any  # 1.5·2^(mantissa bits): x + magic has the nearest integer of x in its lowest bits
    exp_highest: Any  # above: exp is infinite
    exp_lowest: Any  # below: exp is smaller than any normal number
    tiny: Any  # the smallest normal number
    sqrt_half: Any
    inverse_sqrt_2pi: Any
    mantissa_bits: Any
    exp_q: tuple
    exp2_q: tuple
    erf_p: tuple
    erfc_h: tuple
    log_g: tuple


def _constants(dtype: type, integer: type, exp_q: list, exp2_q: list, erf_p: list, erfc_h: list,
               log_g: list) -> Constants:
    info = np.finfo(dtype)
    mantissa = 23 if dtype is np.float32 else 52
    ln2_high, ln2_low = {  # the high part has trailing zeros: n·ln2_high is exact
        23: (0.693359375, -2.12194440054690583e-4),
        52: (6.93147180369123816490e-01, 1.90821492927058770002e-10),
    }[mantissa]
    numbers = (0, 0.5, 1, 2, 3.9 if mantissa == 23 else 5.8, np.inf, 1 / np.log(2), ln2_high, ln2_low,
               1.5 * 2**mantissa, np.log(info.max), np.log(info.tiny), info.tiny, np.sqrt(0.5), 1 / np.sqrt(2 * np.pi))
    return Constants(
        *map(dtype, numbers), integer(mantissa),
        *(tuple(map(dtype, c)) for c in (exp_q, exp2_q, erf_p, erfc_h, log_g)),
    )


FLOAT32 = _constants(
    np.float32, np.int32,
    exp_q=[0.500000010095553128, 0.166665128924708797, 0.0416661876004114901, 0.00836959813195501697,
           0.00139516931912176992],
    exp2_q=[0.6931469775988578, 0.2402224208517288, 0.05550733743690601, 0.009671512648926765,
            0.0013264727065449144],
    erf_p=[1.12837916572681949, -0.376126258238418211, 0.112835851437830458, -0.0268538117393470216,
           0.00518832732622608281, -0.000801019054880116328, 0.0000785385136572091988],
    erfc_h=[0.499999994885488815, -0.56418879346274906, 0.499979819008710147, -0.375924599964961834,
            0.248954337873046544, -0.147221472415191948, 0.0768765973447669986, -0.0341471112359105423,
            0.0121871484962833255, -0.00326176976161167946, 0.000601325795713995689, -0.0000670795897140523408,
            3.37803007252805857e-6],
    log_g=[0.666667764725120281, 0.399775284776724183, 0.298721209209851472],
)
FLOAT64 = _constants(
    np.float64, np.int64,
    exp_q=[0.5, 0.166666666666666856, 0.0416666666666667302, 0.00833333333331537643, 0.00138888888888560613,
           0.000198412699004595259, 0.0000248015873779216885, 2.75572308170143392e-6, 2.75572300782127937e-7,
           2.51134381035367965e-8, 2.09278928668984407e-9],
    exp2_q=[0.6931471805599453, 0.2402265069591013, 0.05550410866482005, 0.009618129107594056,
            0.001333355814678085, 0.0001540353045718985, 1.5252733487589402e-05, 1.3215435246854223e-06,
            1.0178201803281472e-07, 7.073788711455476e-09, 4.4344389081250336e-10],
    erf_p=[1.12837916709551257, -0.376126389031837476, 0.112837916709548575, -0.0268661706450728943,
           0.00522397762478085579, -0.000854832697874140319, 0.000120553310368663737, -0.0000149255935060294121,
           1.64609728025868146e-6, -1.63500250655381398e-7, 1.46578787703950115e-8, -1.13656617933959319e-9,
           5.94525469296600039e-11],
    erfc_h=[0.49999999999999996, -0.564189583547738438, 0.499999999998681178, -0.376126388993090219,
            0.249999999395880629, -0.150450549826200708, 0.0833332961366765576, -0.0429857028467522543,
            0.0208327555207299997, -0.00955091473817574279, 0.00416360882023337802, -0.00173183060521274173,
            0.000687890663593558003, -0.00026011080025602455, 0.0000928439816626402289, -0.0000308438320014046826,
            9.36028652156371774e-6, -2.54037891861784393e-6, 6.0313721260661638e-7, -1.22510134923184796e-7,
            2.08038363967444855e-8, -2.87865824018443268e-9, 3.14556295205298205e-10, -2.60115505724395839e-11,
            1.52485036292681606e-12, -5.63241644175219519e-14, 9.83564523677686713e-16],
    log_g=[0.666666666666673448, 0.399999999994140053, 0.285714287425776606, 0.222221985502927272,
           0.181835656693232237, 0.153140126438731627, 0.147963616841363808],
)

@intrinsic
def use_widest_vectors(typing):
    """Let the loops of the calling kernel use the processor's widest vectors.

    On processors whose clock slows down for 512 bits LLVM keeps to 256. Loops that compute for longer than they
    wait for memory are faster with 512 all the same (GELU by a third, exp by a fifth).
    """
    def emit(context, builder, signature, arguments):
        # past llvmlite's own list of known attributes, which lacks this one
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), emit


CONTRACT = ("contract",)  # let a multiplication and an addition become one instruction; allow nothing else
scalar = kernel(fastmath=set(CONTRACT), forceinline=True)


def constants_of(kind: ir.Type) -> Constants:
    """The constants for a number, or a vector of numbers, of this LLVM type."""
    return FLOAT32 if getattr(kind, "element", kind) == ir.FloatType() else FLOAT64


def integers_like(kind: ir.Type) -> ir.Type:
    """The LLVM type of the bits of such numbers."""
    bits = ir.IntType(32 if constants_of(kind) is FLOAT32 else 64)
    return ir.VectorType(bits, kind.count) if isinstance(kind, ir.VectorType) else bits


def constant(kind: ir.Type, value: Any) -> ir.Value:
    """The number `value`, in every lane if `kind` is a vector."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, int(value) if isinstance(kind, ir.IntType) else float(value))


def emit_polynomial(builder: ir.IRBuilder, x: ir.Value, coefficients: tuple) -> ir.Value:
    """Write the instructions for c₀ + c₁x + c₂x² + …, by Horner's rule."""
    result = constant(x.type, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = builder.fadd(builder.fmul(result, x, flags=CONTRACT), constant(x.type, c), flags=CONTRACT)
    return result


def emit_reduction(builder: ir.IRBuilder, x: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Write the instructions for (n, exp(r) − 1) with x = n·ln 2 + r.

    n is an integer, shifted to where floats keep their exponent: added to the bits of y it gives 2ⁿ·y.
    """
    k, kind = constants_of(x.type), x.type
    add = lambda a, b: builder.fadd(a, b, flags=CONTRACT)
    multiply = lambda a, b: builder.fmul(a, b, flags=CONTRACT)
    shifted = add(multiply(x, constant(kind, k.log2_e)), constant(kind, k.round_magic))
    n = add(shifted, constant(kind, -k.round_magic))
    r = add(x, multiply(n, constant(kind, -k.ln2_high)))
    r = add(r, multiply(n, constant(kind, -k.ln2_low)))
    bits = builder.bitcast(shifted, integers_like(kind))
    return (builder.shl(bits, constant(bits.type, k.mantissa_bits)),
            add(r, multiply(multiply(r, r), emit_polynomial(builder, r, k.exp_q))))


def emit_exp(builder: ir.IRBuilder, x: ir.Value, *, positive: bool = True) -> ir.Value:
    """Write the instructions for exp(x), where x is a number or a vector of them; never `positive` spares two."""
    k, kind = constants_of(x.type), x.type
    zero = constant(kind, 0)
    n, e = emit_reduction(builder, x)
    one_plus_e = builder.bitcast(builder.fadd(e, constant(kind, 1)), n.type)
    y = builder.bitcast(builder.add(one_plus_e, n), kind)
    zero_or_nan = builder.select(builder.fcmp_ordered("<", x, zero), zero, x)
    y = builder.select(builder.fcmp_ordered(">=", x, constant(kind, k.exp_lowest)), y, zero_or_nan)
    if positive:
        y = builder.select(builder.fcmp_ordered(">", x, constant(kind, k.exp_highest)), constant(kind, np.inf), y)
    return y


def emit_exp2(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Write the instructions for 2ˣ, for x below the largest exponent: eleven in float32.

    x = n + r with n an integer and |r| ≤ ½. Adding n to the exponent of 2ʳ is right as long as it does not run below
    zero. So what lies below L, one less than the lowest exponent, is taken for L: 2ᴸ comes out as zero to the bit.
    """
    k, kind = constants_of(x.type), x.type
    add = lambda a, b: builder.fadd(a, b, flags=CONTRACT)
    lowest = constant(kind, np.floor(k.exp_lowest * k.log2_e + k.half) - k.one)
    x = builder.select(builder.fcmp_ordered(">", lowest, x), lowest, x)  # NaN stays
    shifted = add(x, constant(kind, k.round_magic))
    r = add(x, builder.fneg(add(shifted, constant(kind, -k.round_magic))))
    power = add(constant(kind, k.one), builder.fmul(r, emit_polynomial(builder, r, k.exp2_q), flags=CONTRACT))
    bits = builder.bitcast(shifted, integers_like(kind))
    exponent = builder.shl(bits, constant(bits.type, k.mantissa_bits))
    return builder.bitcast(builder.add(builder.bitcast(power, bits.type), exponent), kind)


@intrinsic
def _exp2(typing, x):
    return x(x), lambda context, builder, signature, arguments: emit_exp2(builder, *arguments)


@intrinsic
def _exp(typing, x):
    return x(x), lambda context, builder, signature, arguments: emit_exp(builder, *arguments)


@intrinsic
def _scale_and_expm1(typing, x):
    """(2ⁿ, exp(r) − 1) with x = n·ln 2 + r."""
    def emit(context, builder, signature, arguments):
        n, e = emit_reduction(builder, *arguments)
        one = builder.bitcast(constant(e.type, 1), n.type)
        scale = builder.bitcast(builder.add(one, n), e.type)
        return context.make_tuple(builder, signature.return_type, (scale, e))

    return types.UniTuple(x, 2)(x), emit


@intrinsic
def _exponent_and_mantissa(typing, x):
    """(e, m) with x = 2ᵉ·m, m from √½ to √2 and e an integer, for a normal number x."""
    def emit(context, builder, signature, arguments):
        k, kind = constants_of(arguments[0].type), arguments[0].type
        bits = builder.bitcast(arguments[0], integers_like(kind))
        places = constant(bits.type, k.mantissa_bits)
        e = builder.ashr(builder.sub(bits, builder.bitcast(constant(kind, k.sqrt_half), bits.type)), places)
        m = builder.bitcast(builder.sub(bits, builder.shl(e, places)), kind)
        return context.make_tuple(builder, signature.return_type, (builder.sitofp(e, kind), m))

    return types.UniTuple(x, 2)(x), emit


@intrinsic
def polynomial(typing, x, name):
    """The polynomial in x whose coefficients the constants hold under that (literal) name."""
    def emit(context, builder, signature, arguments):
        return emit_polynomial(builder, arguments[0], getattr(constants_of(arguments[0].type), name.literal_value))

    return (x(x, name), emit) if isinstance(name, types.StringLiteral) else None


@intrinsic
def as_integer(typing, x):
    """The bits of a floating-point number, as a signed integer."""
    result = types.int32 if x == types.float32 else types.int64
    return result(x), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], integers_like(arguments[0].type))


@intrinsic
def as_float(typing, bits):
    """The floating-point number that these bits stand for."""
    result = types.float32 if bits == types.int32 else types.float64
    return result(bits), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], context.get_value_type(result))


@intrinsic
def reorder(typing, bits):
    """Flip all bits but the sign of a negative number: the bits of floats then order as signed integers do.

    Its own inverse.
    """
    def emit(context, builder, signature, arguments):
        sign = builder.ashr(arguments[0], constant(arguments[0].type, bits.bitwidth - 1))
        return builder.xor(arguments[0], builder.lshr(sign, constant(arguments[0].type, 1)))

    return bits(bits), emit


@intrinsic
def like(typing, x, value):
    """`value` as a number of x's type."""
    return x(x, value), lambda context, builder, signature, arguments: context.cast(builder, arguments[1], value, x)


@intrinsic
def narrow(typing, x):
    """float32 → the bits (uint16) of the nearest bfloat16, ties to even. NaN stays NaN.

    Where the processor has an instruction for it, numbers below 2⁻¹²⁶ become 0.
    """
    def emit(context, builder, signature, arguments):
        number, i32 = arguments[0], ir.IntType(32)
        if has("avx512bf16"):
            return builder.bitcast(builder.fptrunc(number, Bfloat16()), ir.IntType(16))
        bits = builder.bitcast(number, i32)
        odd = builder.and_(builder.lshr(bits, i32(16)), i32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, i32(0x7FFF))), i32(16))
        is_nan = builder.fcmp_unordered("uno", number, number)
        return builder.trunc(builder.select(is_nan, i32(0x7FC0), rounded), ir.IntType(16))

    return (types.uint16(x), emit) if x == types.float32 else None


@intrinsic
def widen(typing, bits):
    """The bits of a bfloat16 (uint16) → float32."""
    def emit(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        return builder.bitcast(builder.shl(builder.zext(arguments[0], i32), i32(16)), ir.FloatType())

    return (types.float32(bits), emit) if bits == types.uint16 else None


def as_number(x: Any) -> Any:
    """A number as it is; the bits of a bfloat16 (uint16) as float32."""


@overload(as_number)
def _as_number(x):
    return (lambda x: widen(x)) if x == types.uint16 else (lambda x: x)


def is_narrow(place: Any) -> Any:
    """Whether a pointer is one to bfloat16 (uint16)."""


@overload(is_narrow)
def _is_narrow(place):
    return (lambda place: True) if place.dtype == types.uint16 else (lambda place: False)


def as_stored(x: Any, place: Any) -> Any:
    """A number as the pointer `place` stores it: rounded to the bits of a bfloat16 (uint16), or as it is."""


@overload(as_stored)
def _as_stored(x, place):
    return (lambda x, place: narrow(x)) if place.dtype == types.uint16 else (lambda x, place: x)


NARROWS_VECTORS = has("avx512bf16", "avx512bw")


@intrinsic
def _narrow_vectors(typing, source, target, count):
    """`narrow` for `count` times two vectors, of which one instruction makes one."""

    def body(e, source, target, count):
        if NARROWS_VECTORS:
            with e.loop(count, [source, target]) as carried:
                source, target = carried
                e.store(e.round_pair(e.load(source), e.load(e.at(source, e.lanes))), target)
                carried[:] = e.at(source, 2 * e.lanes), e.at(target, 2 * e.lanes, ir.IntType(16))

    return types.void(source, target, types.intp), emitted("narrow", body, emitter=TileEmitter)


@kernel
def _narrow_row(source, target, size):
    pairs = size // 32 if NARROWS_VECTORS else 0
    _narrow_vectors(source, target, pairs)
    for j in range(32 * pairs, size):
        target[j] = narrow(source[j])


def computed_row(place: Any, scratch: Any) -> Any:
    """Where to compute what the row at `place` is to hold: there, or in `scratch` if that is bfloat16 (uint16)."""


@overload(computed_row)
def _computed_row(place, scratch):
    return (lambda place, scratch: scratch) if place.dtype == types.uint16 else (lambda place, scratch: place)


def store_row(row: Any, place: Any, size: int) -> Any:
    """Round the `size` numbers of a row to where they belong, if `computed_row` gave another place for them.

    (Of a loop with `as_stored` that does little else, the compiler makes vectors of 4 numbers.)
    """


@overload(store_row)
def _store_row(row, place, size):
    if place.dtype == types.uint16:
        return lambda row, place, size: _narrow_row(row, place, size)
    return lambda row, place, size: None


@scalar
def minus(x, y):
    """x − y, as written: in kernels at large, (x − y) − z may be computed as x − (y + z)."""
    return x - y


@kernel
def row_maximum(x):
    """The largest element, −inf if there is none. Found among the bits: maxima of integers are vectorised.

    NaN counts as largest, or, with its sign bit set, as smallest. It is not lost to softmax: its own exponential is
    NaN and with it the sum.
    """
    largest = reorder(as_integer(x.dtype.type(-np.inf)))
    for j in range(x.size):
        largest = max(largest, reorder(as_integer(x[j])))
    return as_float(reorder(largest))


@scalar
def _expm1(x, k):
    """For x ≤ 0."""
    scale, e = _scale_and_expm1(x)
    y = scale * e + (scale - k.one)
    y = -k.one if x < k.exp_lowest else y
    return y if x == x else x


@scalar
def _log(x, k):
    e, m = _exponent_and_mantissa(x)
    s = (m - k.one) / (m + k.one)  # log m = 2 artanh s = 2s + s³·g(s²)
    y = e * k.ln2_high + (k.two * s + (s * s * s * polynomial(s * s, "log_g") + e * k.ln2_low))
    y = y if x >= k.tiny else -k.infinity
    y = x if x == k.infinity else y
    return y if x >= k.zero else (x - x) / (x - x)


@scalar
def _tanh(x, k):
    t = abs(x)
    e = _expm1(-k.two * t, k)
    y = -e / (e + k.two)
    return -y if x < k.zero else y


@scalar
def _logistic(x, k):
    e = _exp(-abs(x))  # at most 1: nothing overflows, and 1 − σ loses no digits
    r = k.one / (k.one + e)
    er = e * r
    return er if x < k.zero else r, er * r


@scalar
def _sigmoid(x, k):
    return _logistic(x, k)[0]


@scalar
def _half_erfc(t, k):
    """erfc(t) / 2 for t ≥ 0."""
    near = k.erfc_highest if t > k.erfc_highest else t
    return _exp(-t * t) * polynomial(near, "erfc_h")


@scalar
def _erf(x, k):
    t = abs(x)
    small = x * polynomial(x * x, "erf_p")
    large = k.one - k.two * _half_erfc(t, k)
    large = -large if x < k.zero else large
    return small if t < k.one else large


@scalar
def _normal_cdf(x, k):
    tail = _half_erfc(abs(x) * k.sqrt_half, k)
    return tail if x < k.zero else k.one - tail


@scalar
def _normal_pdf(x, k):
    z = x * k.sqrt_half
    return k.inverse_sqrt_2pi * _exp(-z * z)


def exp(x: Any) -> Any:
    """eˣ; 0 where that is below the smallest normal number."""


def exp2(x: Any) -> Any:
    """2ˣ for x below the largest exponent; what is below the smallest normal number may be anything smaller."""


def log(x: Any) -> Any:
    """The natural logarithm; −∞ where x is below the smallest normal number."""


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""


def sigmoid(x: Any) -> Any:
    """1 / (1 + e⁻ˣ)."""


def logistic(x: Any) -> Any:
    """(σ(x), σ′(x)) with σ the sigmoid and σ′ = σ(x)·(1 − σ(x))."""


def erf(x: Any) -> Any:
    """The error function."""


def normal_cdf(x: Any) -> Any:
    """Φ(x) = (1 + erf(x/√2)) / 2, the standard normal distribution."""


def normal_pdf(x: Any) -> Any:
    """φ(x) = exp(−x²/2) / √(2π), its density."""


def _typed(public: Any, implementation: Any, with_constants: bool = True) -> None:
    """Inside kernels, `public(x)` means `implementation(x, the constants of x's type)`."""
    def choose(x):
        if x not in (types.float32, types.float64):
            return None
        if not with_constants:
            return lambda x: implementation(x)
        k = FLOAT32 if x == types.float32 else FLOAT64
        return lambda x: implementation(x, k)

    overload(public)(choose)


_typed(exp, _exp, with_constants=False)
_typed(exp2, _exp2, with_constants=False)
for _public, _implementation in ((log, _log), (tanh, _tanh), (sigmoid, _sigmoid), (logistic, _logistic), (erf, _erf),
                                 (normal_cdf, _normal_cdf), (normal_pdf, _normal_pdf)):
    _typed(_public, _implementation)
