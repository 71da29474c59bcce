"""Writes the code of a product: rows (T, K) in float32 times a weight (N, K) in 32, 16 or 8 bits, in LLVM's language.

Each weight is read from memory once, widened to float32 in a register and multiplied with every row.  That is exact:
float32, bfloat16, float16 and int8 are all float32 numbers.  An output is a sum of fused multiplications and
additions in one fixed order, lane by lane and then across the lanes, whatever the number of rows: a row's product is
the same, bit for bit, in any batch.

How a weight lies in memory: groups of `GROUP` outputs; in a group a vector of the first output, one of the second ...,
then the next columns.  So the product reads one stream of memory from beginning to end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from .element import Element

RUN_OUTPUTS, RUN_COLUMNS = 32, 1024
"""A piece of the weight that is multiplied with all rows before the next one: it and a tile of rows stay in caches.
Where there is one tile of rows, the piece is a group of outputs over all columns."""
TILE_ROWS = 6
"""Most rows that are multiplied with a vector of weights while it is in a register."""

_POINTER = ir.PointerType()
_INT, _INT32, _FLOAT = ir.IntType(64), ir.IntType(32), ir.FloatType()
_CACHE_LINE = 64
_PREFETCH_BYTES = {4: 0, 2: 1024, 1: 4096}
"""How far ahead of the product memory is asked for, by the bytes of a weight: with one row only, where memory is what
takes the time, and processors do not look far enough ahead for narrow weights by themselves."""


@dataclass(frozen=True)
class Vectors:
    """The vector registers of a processor."""

    lanes: int
    """Numbers of float32 in one."""
    registers: int


NAME = "multiply_rows"
"""The function: (weights, rows, products, factors, T, N, K, number of columns of `products`), pointers first."""


def emit(element: Element, vectors: Vectors) -> str:
    """The module with the function `NAME`. N is a multiple of `GROUP` and K one of the lanes, neither is 0."""
    return str(_Product(element, vectors).module)


class _Product:
    def __init__(self, element: Element, vectors: Vectors) -> None:
        self.module = ir.Module()
        self._element = element
        self._group = element.group
        self._vectors = vectors
        self._vector = ir.VectorType(_FLOAT, vectors.lanes)
        self._fma = self._declare(f"llvm.fma.v{vectors.lanes}f32", self._vector, [self._vector] * 3)
        self._sum = self._declare(f"llvm.vector.reduce.fadd.v{vectors.lanes}f32", _FLOAT, [_FLOAT, self._vector])
        self._prefetch = self._declare("llvm.prefetch.p0", ir.VoidType(), [_POINTER, _INT32, _INT32, _INT32])
        self._tiles = {rows: self._tile(rows) for rows in range(1, TILE_ROWS + 1)}
        self._function()

    def _declare(self, name: str, returned: Any, arguments: list[Any]) -> Any:
        return ir.Function(self.module, ir.FunctionType(returned, arguments), name)

    def _function(self) -> None:
        """For a run of outputs, a run of columns, a tile of rows: every group of the outputs."""
        function = self._declare(NAME, ir.VoidType(), [_POINTER] * 4 + [_INT] * 4)
        code = ir.IRBuilder(function.append_basic_block())
        row_count, outputs, columns = function.args[4:7]
        few = code.icmp_signed("<=", row_count, _constant(TILE_ROWS))
        run = code.select(few, _constant(self._group), _constant(RUN_OUTPUTS))
        whole = code.sub(row_count, code.srem(row_count, _constant(TILE_ROWS)))
        with _loop(code, outputs, run) as output, _loop(code, columns, _constant(RUN_COLUMNS)) as column:
            span = [(output, _least(code, outputs, code.add(output, run))),
                    (column, _least(code, columns, code.add(column, _constant(RUN_COLUMNS))))]  # fmt: skip
            with (
                code.if_then(code.icmp_signed(">", whole, _constant(0))),
                _loop(code, whole, _constant(TILE_ROWS)) as row,
            ):
                self._run(code, TILE_ROWS, row, span, function.args)
            after = function.append_basic_block()
            rest = code.switch(code.sub(row_count, whole), after)
            for count in range(1, TILE_ROWS):
                block = function.append_basic_block()
                rest.add_case(_constant(count), block)
                code.position_at_end(block)
                self._run(code, count, whole, span, function.args)
                code.branch(after)
            code.position_at_end(after)
        code.ret_void()

    def _run(self, code: Any, count: int, row: Any, span: Any, arguments: Any) -> None:
        """`count` rows from `row` on, for all groups of a run of outputs and a run of columns."""
        weights, rows, products, factors, _, _, columns, stride = arguments
        (first_output, last_output), (first_column, last_column) = span
        rows = self._at(code, rows, Element.FLOAT32, code.add(code.mul(row, columns), first_column))
        products = self._at(code, products, Element.FLOAT32, code.add(code.mul(row, stride), first_output))
        factors = self._at(code, factors, Element.FLOAT32, first_output)
        place = code.add(code.mul(first_output, columns), code.mul(first_column, _constant(self._group)))
        weights = self._at(code, weights, self._element, place)
        length = code.sub(last_column, first_column)
        is_first = code.icmp_signed("==", first_column, _constant(0))
        with _loop(code, code.sub(last_output, first_output), _constant(self._group)) as output:
            group = self._at(code, weights, self._element, code.mul(output, columns))
            here = self._at(code, products, Element.FLOAT32, output)
            factor = self._at(code, factors, Element.FLOAT32, output)
            code.call(self._tiles[count], [group, rows, here, factor, columns, stride, length, is_first])

    def _tile(self, count: int) -> Any:
        """A function: `count` rows times a group of outputs, as many of them at once as there are registers for."""
        function = self._declare(f"tile_{count}", ir.VoidType(), [_POINTER] * 4 + [_INT] * 3 + [ir.IntType(1)])
        function.linkage = "internal"
        code = ir.IRBuilder(function.append_basic_block())
        at_once = self._group
        while (count + 1) * at_once > self._vectors.registers:
            at_once //= 2
        for first in range(0, self._group, at_once):
            self._sums(code, function.args, count, range(first, first + at_once))
        code.ret_void()
        return function

    def _sums(self, code: Any, arguments: Any, count: int, outputs: range) -> None:
        group, rows, products, factors, columns, stride, length, is_first = arguments
        lanes = self._vectors.lanes
        before, body = code.block, code.append_basic_block()
        code.branch(body)
        code.position_at_end(body)
        column = code.phi(_INT)
        sums = [[code.phi(self._vector) for _ in outputs] for _ in range(count)]
        here = self._at(code, group, self._element, code.mul(column, _constant(self._group)))
        weights = [self._widened(code, self._at(code, here, self._element, _constant(o * lanes))) for o in outputs]
        if count == 1:
            self._ask_ahead(code, here)
        following = code.add(column, _constant(lanes))
        column.add_incoming(_constant(0), before)
        column.add_incoming(following, body)
        ends = []
        for row in range(count):
            place = code.add(code.mul(columns, _constant(row)), column)
            values = code.load(self._at(code, rows, Element.FLOAT32, place), typ=self._vector, align=4)
            for weight, total in zip(weights, sums[row], strict=True):
                end = code.call(self._fma, [weight, values, total])
                total.add_incoming(ir.Constant(self._vector, [0.0] * lanes), before)
                total.add_incoming(end, body)
                ends.append(end)
        done = code.append_basic_block()
        code.cbranch(code.icmp_signed("<", following, length), body, done)
        code.position_at_end(done)
        for index, end in enumerate(ends):
            row, output = index // len(outputs), _constant(outputs[index % len(outputs)])
            total = code.call(self._sum, [ir.Constant(_FLOAT, -0.0), end], fastmath=("reassoc",))
            if self._element is Element.INT8:
                total = code.fmul(total, code.load(self._at(code, factors, Element.FLOAT32, output), typ=_FLOAT))
            product = self._at(code, products, Element.FLOAT32, code.add(code.mul(stride, _constant(row)), output))
            with code.if_else(is_first) as (first, later):
                with first:
                    code.store(total, product)
                with later:
                    code.store(code.fadd(code.load(product, typ=_FLOAT), total), product)

    def _widened(self, code: Any, pointer: Any) -> Any:
        """A vector of weights as float32."""
        lanes = self._vectors.lanes
        values = code.load(pointer, typ=ir.VectorType(_type(self._element), lanes), align=self._element.nbytes)
        whole = ir.VectorType(_INT32, lanes)
        match self._element:
            case Element.FLOAT32:
                return values
            case Element.FLOAT16:
                return code.fpext(values, self._vector)
            case Element.BFLOAT16:  # the upper half of a float32
                return code.bitcast(code.shl(code.zext(values, whole), ir.Constant(whole, [16] * lanes)), self._vector)
        return code.sitofp(code.sext(values, whole), self._vector)

    def _ask_ahead(self, code: Any, here: Any) -> None:
        ahead = _PREFETCH_BYTES[self._element.nbytes]
        for line in range(0, self._group * self._vectors.lanes * self._element.nbytes if ahead else 0, _CACHE_LINE):
            pointer = code.gep(here, [_constant(ahead + line)], source_etype=ir.IntType(8))
            code.call(self._prefetch, [pointer, _constant(0, _INT32), _constant(3, _INT32), _constant(1, _INT32)])

    def _at(self, code: Any, pointer: Any, element: Element, index: Any) -> Any:
        return code.gep(pointer, [index], source_etype=_type(element))


@contextlib.contextmanager
def _loop(code: Any, end: Any, step: Any) -> Iterator[Any]:
    """0, `step` ... below `end`, at least once."""
    before, body = code.block, code.append_basic_block()
    code.branch(body)
    code.position_at_end(body)
    index = code.phi(_INT)
    index.add_incoming(_constant(0), before)
    yield index
    following = code.add(index, step)
    index.add_incoming(following, code.block)
    done = code.append_basic_block()
    code.cbranch(code.icmp_signed("<", following, end), body, done)
    code.position_at_end(done)


def _type(element: Element) -> Any:
    whole = ir.IntType(8 * element.nbytes)
    return {Element.FLOAT32: _FLOAT, Element.FLOAT16: ir.HalfType()}.get(element, whole)


def _least(code: Any, first: Any, second: Any) -> Any:
    return code.select(code.icmp_signed("<", first, second), first, second)


def _constant(value: int, of: Any = _INT) -> Any:
    return ir.Constant(of, value)
