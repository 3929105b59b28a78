"""Vectors of numbers in registers, for kernels that numba compiles: LLVM makes of one as many registers as it takes.

numba's own loops fill vectors as well, but what a loop around them adds up goes through memory there.

Arrays are contiguous and taken as flat: `at` counts from their first entry. As everywhere in numba, an index is checked
with NUMBA_BOUNDSCHECK=1 only.
"""

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

PART = 16
"""Numbers that LLVM is shown as one vector, and bits that are read at a time: what fills a register of 512 bits."""

CHECKED = bool(numba.config.BOUNDSCHECK)

inlined = numba.njit(inline="always")


class Vector(types.Type):
    """`width` numbers of a dtype, a multiple of `PART`; of booleans they are kept in parts, as they are used."""

    def __init__(self, dtype, width):
        self.dtype, self.width = dtype, width
        super().__init__(f"Vector({dtype}, {width})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, vector):
        number = manager.lookup(vector.dtype).get_value_type()
        if vector.dtype == types.boolean:
            model = ir.ArrayType(ir.VectorType(number, PART), vector.width // PART)
        else:
            model = ir.VectorType(number, vector.width)
        super().__init__(manager, vector, model)


def _pointer(context, builder, array_type, arguments, to):
    """Where an array has the place `at`, its arguments being (array, at, ...), as a pointer to what is there."""
    array, at, *_ = arguments
    address = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(address, [at]), to.as_pointer())


def _places(*places):
    return ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places)


def _parts(builder, vector):
    """A vector, or conditions, as a list of what fills a register."""
    if isinstance(vector.type, ir.ArrayType):
        return [builder.extract_value(vector, n) for n in range(vector.type.count)]
    starts = range(0, vector.type.count, PART)
    return [builder.shuffle_vector(vector, vector, _places(*range(n, n + PART))) for n in starts]


def _joined(builder, parts):
    whole = parts[0]
    for n, part in enumerate(parts[1:], 2):  # LLVM shuffles two vectors of one size
        size = n * PART
        wider = builder.shuffle_vector(part, part, _places(*(k % PART for k in range(size - PART))))
        order = [k if k < size - PART else size - PART + k % PART for k in range(size)]
        whole = builder.shuffle_vector(whole, wider, _places(*order))
    return whole


def _conditions(builder, parts):
    value = ir.Constant(ir.ArrayType(parts[0].type, len(parts)), ir.Undefined)
    for n, part in enumerate(parts):
        value = builder.insert_value(value, part, n)
    return value


def _filled(builder, number, like):
    """A number in all places of a vector, which passes as it is."""
    if isinstance(number.type, ir.VectorType):
        return number
    one = builder.insert_element(ir.Constant(like, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, _places(*[0] * like.count))


@inlined
def _check(array, at, size):
    if CHECKED and (at < 0 or at + size > array.size):
        raise IndexError("a vector reaches out of an array")


@intrinsic(prefer_literal=True)
def _load(typing_context, array, at, width):
    result = Vector(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments, context.get_value_type(result))
        return builder.load(pointer, align=1)

    return result(array, types.intp, width), generate


@inlined
def load(array, at, width):
    """A vector of an array's numbers."""
    _check(array, at, width)
    return _load(array, at, width)


@intrinsic
def _store(typing_context, array, at, vector):
    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments, arguments[2].type)
        builder.store(arguments[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@inlined
def store(array, at, vector, width):
    """Put a vector's numbers into an array."""
    _check(array, at, width)
    _store(array, at, vector)


@intrinsic(prefer_literal=True)
def _load_bits(typing_context, array, at, width):
    result = Vector(types.boolean, width.literal_value)

    def generate(context, builder, signature, arguments):
        word, condition = ir.IntType(PART), ir.VectorType(ir.IntType(1), PART)
        pointer = _pointer(context, builder, array, arguments, word)
        places = [builder.gep(pointer, [ir.Constant(ir.IntType(64), n)]) for n in range(result.width // PART)]
        return _conditions(builder, [builder.bitcast(builder.load(place, align=1), condition) for place in places])

    return result(array, types.intp, width), generate


@inlined
def load_bits(array, at, width):
    """Conditions of which an array of bytes holds one a bit."""
    _check(array, at, width // 8)
    return _load_bits(array, at, width)


@intrinsic
def _store_bits(typing_context, array, at, conditions):
    def generate(context, builder, signature, arguments):
        word = ir.IntType(conditions.width)
        pointer = _pointer(context, builder, array, arguments, word)
        bits = _joined(builder, _parts(builder, arguments[2]))
        builder.store(builder.bitcast(bits, word), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, conditions), generate


@inlined
def store_bits(array, at, conditions, width):
    """Put conditions into an array of bytes, one a bit."""
    _check(array, at, width // 8)
    _store_bits(array, at, conditions)


@intrinsic(prefer_literal=True)
def zeros(typing_context, array, width):
    """A vector of zeros of an array's dtype."""
    result = Vector(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(result), None)

    return result(array, width), generate


def _elementwise(operation):
    """A function of a vector and of another one, or a number of its dtype."""

    @intrinsic
    def function(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            return operation(builder, arguments[0], _filled(builder, arguments[1], arguments[0].type))

        return a(a, b if isinstance(b, Vector) else a.dtype), generate

    return function


xor = _elementwise(lambda builder, a, b: builder.xor(a, b))
shift_right = _elementwise(lambda builder, a, b: builder.lshr(a, b))
times_words = _elementwise(lambda builder, a, b: builder.mul(a, b))


@intrinsic
def less_equal(typing_context, words, last):
    """The conditions that words are at most a number."""

    def generate(context, builder, signature, arguments):
        parts = _parts(builder, arguments[0])
        last = _filled(builder, arguments[1], parts[0].type)
        return _conditions(builder, [builder.icmp_unsigned("<=", part, last) for part in parts])

    return Vector(types.boolean, words.width)(words, words.dtype), generate


@intrinsic
def add_product(typing_context, total, a, b):
    """The vector total + a * b; b is a number."""

    def generate(context, builder, signature, arguments):
        total, a, b = arguments
        return builder.fadd(total, builder.fmul(a, _filled(builder, b, a.type)))

    return total(total, a, a.dtype), generate


def _sum_if(builder, condition, total, a, b):
    """total + a * b where the condition is true, in one instruction where a processor has it."""
    return builder.select(condition, builder.fadd(total, builder.fmul(a, b)), total)


@intrinsic
def add_product_if(typing_context, total, conditions, a, b):
    """The vector total + a * b where conditions are true, and total elsewhere; b may be a number."""

    def generate(context, builder, signature, arguments):
        total, conditions, a, b = arguments
        b = _filled(builder, b, a.type)
        parts = zip(*(_parts(builder, value) for value in (conditions, total, a, b)), strict=True)
        return _joined(builder, [_sum_if(builder, *part) for part in parts])

    return total(total, conditions, a, b if isinstance(b, Vector) else a.dtype), generate


@intrinsic
def add_dot_if(typing_context, total, conditions, a, b):
    """`total`, of `PART` numbers, and the products a * b where conditions are true, each in one of its places."""

    def generate(context, builder, signature, arguments):
        total, *values = arguments
        for part in zip(*(_parts(builder, value) for value in values), strict=True):
            total = _sum_if(builder, part[0], total, *part[1:])
        return total

    return total(total, conditions, a, b), generate


@intrinsic
def sum_of(typing_context, vector):
    """The sum of a vector's numbers."""

    def generate(context, builder, signature, arguments):
        number = context.get_value_type(vector.dtype)
        name = f"llvm.vector.reduce.fadd.v{vector.width}f{vector.dtype.bitwidth}"
        function = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(number, [number, arguments[0].type]))
        return builder.call(function, [ir.Constant(number, -0.0), arguments[0]], fastmath=("reassoc",))

    return vector.dtype(vector), generate
