"""The Triton kernels, launched by the backend in __init__.py.

Each program works on a tile of one sample. A kernel gets these for its K terms:
    terms    K pointers
    places   K tuples (batch stride, row stride, begin, end): layout.py
    KINDS    K strings: "whole", "value" or "rows"
    CUTS     K flags: whether the term covers only a part of the sample
KINDS and CUTS are constants, so a compiled kernel has no dead branches. ROWS specifies how rows relate to tiles: "one"
row in total, "long" rows (a tile touches at most two) or "short" ones.

Tables of coefficients have a row for each sample (table_step 1) or one for all (0), or `rows` selects each sample's.
sigma has a column for each of the noise's LEVELS, if there are any.
Results depend neither on the tile size nor on the grid. Sums have a fixed order: see ITEM and LANES.
"""
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from mmfast.ops.backends.triton.noise import in_order, normals, philox_words

# Sums are in float64. A program computes the partial sum of one item, at most ITEM elements of one sample: element i
# is added to lane i % LANES, in order, and then the lanes are added up. The sums of the items are added the same way.
ITEM = tl.constexpr(8192)

# Arguments for which Triton should not compile a specialised kernel if they are 1 or divisible by 16.
NUMBERS = ("seed_low", "seed_high", "draw", "stream")


@triton.jit
def table_row(rows, table_step, b):
    """The row of the tables that sample b uses."""
    if rows is not None:
        return tl.load(rows + b)
    return tl.cast(b, tl.int64) * table_step


@triton.jit
def within(i, start, begin, end):
    """Whether the elements start + i are in [begin, end)."""
    return (i >= begin - start) & (i < end - start)


@triton.jit
def load_value(term, row, first_row, end_row, row_stride, coef):
    """The value that a term repeats along a row; 0 in a row that it does not cover, or if coef is 0."""
    covered = (row >= first_row) & (row < end_row) & (coef != 0)
    return tl.load(term + tl.cast(row - first_row, tl.int64) * row_stride, mask=covered, other=0.0)


@triton.jit
def load_term(term, place, b, start, i, elements, inner, coef, KIND: tl.constexpr, CUT: tl.constexpr,
              ROWS: tl.constexpr):  # fmt: skip
    """The elements start + i of sample b of a term: 0 where it has none; nothing is read if coef is 0."""
    batch_stride, row_stride, begin, end = place
    term += tl.cast(b, tl.int64) * batch_stride
    ok = (i < elements - start) & (tl.full(i.shape, coef, coef.dtype) != 0)
    if CUT:
        ok = ok & within(i, start, begin, end)
    if KIND == "whole":
        return tl.load(term + (start - begin) + i, mask=ok, other=0.0)
    if ROWS == "one":  # and so a value
        return tl.where(ok, tl.load(term, mask=coef != 0, other=0.0), 0.0)
    row, first_row, end_row = start // inner, begin // inner, end // inner
    column = start - row * inner
    if ROWS == "short":
        after = (column + i).to(tl.int32)
        down = after // inner
        offset = tl.cast(row - first_row + down, tl.int64) * row_stride
        if KIND == "rows":
            offset += after - down * inner
        return tl.load(term + offset, mask=ok, other=0.0)
    second = i >= inner - column
    if KIND == "value":
        here = load_value(term, row, first_row, end_row, row_stride, coef)
        return tl.where(second, load_value(term, row + 1, first_row, end_row, row_stride, coef), here)
    offset = tl.cast(row - first_row, tl.int64) * row_stride + column + tl.where(second, row_stride - inner, 0)
    return tl.load(term + offset + i, mask=ok, other=0.0)


@triton.jit
def weighted_sum(terms, places, coefs, b, row, start, i, elements, inner, KINDS: tl.constexpr,
                 CUTS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """The sum of coef * term, in the type of the coefficients."""
    REAL: tl.constexpr = coefs.dtype.element_ty
    total = tl.full(i.shape, 0.0, REAL)
    for k in tl.static_range(len(KINDS)):
        coef = tl.load(coefs + row * len(KINDS) + k)
        x = load_term(terms[k], places[k], b, start, i, elements, inner, coef, tl.constexpr(KINDS[k]),
                      tl.constexpr(CUTS[k]), ROWS)  # fmt: skip
        total = tl.fma(coef, x.to(REAL), total)
    return total


@triton.jit
def sigma_of(sigma, levels, row, start, i, LEVELS: tl.constexpr):
    """The noise scale of the elements start + i. levels: the first elements of all levels except the first."""
    if LEVELS == 0:
        scale = tl.load(sigma + row)
    else:
        scale = tl.full(i.shape, 0.0, sigma.dtype.element_ty) + tl.load(sigma + row * LEVELS)
        for k in tl.static_range(1, LEVELS):
            scale = tl.where(i >= levels[k - 1] - start, tl.load(sigma + row * LEVELS + k), scale)
    return scale


@triton.jit(do_not_specialize=[*NUMBERS, "tiles"])
def combine(out, noise_out, terms, places, coefs, sigma, levels, rows, table_step, key, seed_low, seed_high,
            draw, ids, stream, elements, inner, tiles, KINDS: tl.constexpr, CUTS: tl.constexpr,
            ROWS: tl.constexpr, NOISY: tl.constexpr, LEVELS: tl.constexpr, OFFSET: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """out [B, elements] = sum of coef * term + sigma * noise, and the noise: BLOCK elements per program."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    b = tl.program_id(0) // tiles
    start = tl.cast(tl.program_id(0) % tiles, OFFSET) * BLOCK
    i = tl.arange(0, BLOCK)
    ok = i < elements - start
    at = tl.cast(b, tl.int64) * elements + start
    row = table_row(rows, table_step, b)
    total = weighted_sum(terms, places, coefs, b, row, start, i, elements, inner, KINDS, CUTS, ROWS)
    if NOISY:
        eps = normals(identity, b, start, BLOCK).to(total.dtype)
        if sigma is not None:
            total = tl.fma(sigma_of(sigma, levels, row, start, i, LEVELS), eps, total)
        if noise_out is not None:
            tl.store(noise_out + at + i, eps.to(noise_out.dtype.element_ty), mask=ok)
    tl.store(out + at + i, total.to(out.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=[*NUMBERS, "tiles"])
def step(out, x0_out, terms, places, to_x0, coefs, sigma, levels, rows, table_step, low: tl.float64,
         high: tl.float64, x0_begin, x0_end, key, seed_low, seed_high, draw, ids, stream, elements,
         inner, tiles, KINDS: tl.constexpr, CUTS: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr,
         OFFSET: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The sampler's step: x0, the first combination, clamped, in [x0_begin, x0_end); and out, the second, with x0."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    REAL: tl.constexpr = coefs.dtype.element_ty
    b = tl.program_id(0) // tiles
    start = tl.cast(tl.program_id(0) % tiles, OFFSET) * BLOCK
    i = tl.arange(0, BLOCK)
    ok = i < elements - start
    row = table_row(rows, table_step, b)
    to_x0 += row * len(KINDS)
    coefs += row * (len(KINDS) + 1)
    x0, total = tl.full(i.shape, 0.0, REAL), tl.full(i.shape, 0.0, REAL)
    for k in tl.static_range(len(KINDS)):
        first, second = tl.load(to_x0 + k), tl.load(coefs + k)
        either = tl.where(first != 0, first, second)
        x = load_term(terms[k], places[k], b, start, i, elements, inner, either, tl.constexpr(KINDS[k]),
                      tl.constexpr(CUTS[k]), ROWS).to(REAL)  # fmt: skip
        x0 = tl.fma(first, tl.where(first != 0, x, 0.0), x0)
        total = tl.fma(second, tl.where(second != 0, x, 0.0), total)
    # Comparisons, because minimum and maximum would not keep a NaN.
    low_bound, high_bound = tl.full(i.shape, low, REAL), tl.full(i.shape, high, REAL)
    x0 = tl.where(x0 < low_bound, low_bound, x0)
    x0 = tl.where(x0 > high_bound, high_bound, x0)
    last = tl.load(coefs + len(KINDS))
    in_x0 = ok & within(i, start, x0_begin, x0_end)
    total = tl.fma(last, tl.where(in_x0, tl.where(last != 0, x0, 0.0), 0.0), total)
    if sigma is not None:
        scale = sigma_of(sigma, levels, row, start, i, LEVELS)
        total = tl.fma(scale, normals(identity, b, start, BLOCK).to(REAL), total)
    wide = tl.cast(b, tl.int64)
    tl.store(out + wide * elements + start + i, total.to(out.dtype.element_ty), mask=ok)
    if x0_out is not None:
        x0_out += wide * (x0_end - x0_begin) + (start - x0_begin)
        tl.store(x0_out + i, x0.to(x0_out.dtype.element_ty), mask=in_x0)


@triton.jit
def add(x, y):
    return x + y


@triton.jit(do_not_specialize=[*NUMBERS, "items"])
def squared_error(partial, grad, terms, places, coefs, sigma, levels, weight, rows, table_step,
                  scale: tl.float64, key, seed_low, seed_high, draw, ids, stream, elements, inner, items,
                  KINDS: tl.constexpr, CUTS: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr,
                  OFFSET: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """partial [B, items]: sums of r^2, where r is the combination; grad [B, elements] = 2 scale weight coef_0 r."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    REAL: tl.constexpr = coefs.dtype.element_ty
    b = tl.program_id(0) // items
    item = tl.cast(tl.program_id(0) % items, OFFSET) * ITEM
    i = tl.arange(0, LANES)
    row = table_row(rows, table_step, b)
    if grad is not None:
        first = 2 * (tl.full([], scale, REAL) * tl.load(weight + row)) * tl.load(coefs + row * len(KINDS))
    total = tl.full([LANES], 0.0, tl.float64)
    for start in range(item, tl.minimum(item + ITEM, elements), LANES):
        ok = i < elements - start
        r = weighted_sum(terms, places, coefs, b, row, start, i, elements, inner, KINDS, CUTS, ROWS)
        if sigma is not None:
            of_noise = sigma_of(sigma, levels, row, start, i, LEVELS)
            r = tl.fma(of_noise, normals(identity, b, start, LANES).to(REAL), r)
        r64 = tl.where(ok, r, 0.0).to(tl.float64)
        total = tl.fma(r64, r64, total)
        if grad is not None:
            at = tl.cast(b, tl.int64) * elements + start
            tl.store(grad + at + i, (first * r).to(grad.dtype.element_ty), mask=ok)
    tl.store(partial + tl.program_id(0), tl.reduce(total, 0, add))


@triton.jit(do_not_specialize=[*NUMBERS, "items"])
def dots(partial, grad, terms, places, key, seed_low, seed_high, draw, ids, stream, elements, inner,
         items, KINDS: tl.constexpr, CUTS: tl.constexpr, ROWS: tl.constexpr, NOISY: tl.constexpr,
         OFFSET: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """partial [B, K (+ 1 if NOISY), items]: sums of grad * term for every term, and of grad * noise."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    COLUMNS: tl.constexpr = len(KINDS) + NOISY
    b = tl.program_id(0) // items
    item = tl.cast(tl.program_id(0) % items, OFFSET) * ITEM
    i = tl.arange(0, LANES)
    totals, one = (), tl.full([], 1.0, tl.float32)
    for _ in tl.static_range(COLUMNS):
        totals = totals + (tl.full([LANES], 0.0, tl.float64),)  # noqa: RUF005
    for start in range(item, tl.minimum(item + ITEM, elements), LANES):
        ok = i < elements - start
        at = tl.cast(b, tl.int64) * elements + start
        g = tl.load(grad + at + i, mask=ok, other=0.0).to(tl.float64)
        sums = ()
        for k in tl.static_range(len(KINDS)):
            x = load_term(terms[k], places[k], b, start, i, elements, inner, one, tl.constexpr(KINDS[k]),
                          tl.constexpr(CUTS[k]), ROWS)  # fmt: skip
            sums = sums + (tl.fma(g, x.to(tl.float64), totals[k]),)  # noqa: RUF005
        if NOISY:
            eps = normals(identity, b, start, LANES).to(tl.float64)
            sums = sums + (tl.fma(g, eps, totals[len(KINDS)]),)  # noqa: RUF005
        totals = sums
    to = partial + tl.cast(b, tl.int64) * COLUMNS * items + tl.program_id(0) % items
    for k in tl.static_range(COLUMNS):
        tl.store(to + k * items, tl.reduce(totals[k], 0, add))


@triton.jit(do_not_specialize=["items", "count"])
def row_sums(sums, x, weight, rows, table_step, scale: tl.float64, count, inner, items,
             OFFSET: tl.constexpr, HEIGHT: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """sums [count, items]: the sums of the items of each row of x [count, inner], times scale * weight if there is one.

    A program handles HEIGHT rows. With a weight, a row has one item and is a sample.
    """
    r = tl.program_id(0) // items * HEIGHT + tl.arange(0, HEIGHT)
    wide = r.to(tl.int64)
    i = tl.arange(0, LANES)
    item = tl.cast(tl.program_id(0) % items, OFFSET) * ITEM
    lanes = tl.full([HEIGHT, LANES], 0.0, tl.float64)
    for start in range(item, tl.minimum(item + ITEM, inner), LANES):
        ok = (r < count)[:, None] & (i < inner - start)[None, :]
        lanes += tl.load(x + (wide * inner)[:, None] + start + i[None, :], mask=ok, other=0.0).to(tl.float64)
    total = tl.reduce(lanes, 1, add).to(sums.dtype.element_ty)
    if weight is not None:
        row = wide * table_step
        if rows is not None:
            row = tl.load(rows + r, mask=r < count, other=0)
        total *= tl.full([], scale, total.dtype) * tl.load(weight + row, mask=r < count, other=0.0)
    tl.store(sums + wide * items + tl.program_id(0) % items, total, mask=r < count)


@triton.jit(do_not_specialize=[*NUMBERS, "tiles"])
def random_words(words, key, seed_low, seed_high, draw, ids, stream, count, tiles, BLOCK: tl.constexpr):
    """words [B, count]: word j is word j % 4 of Philox block j // 4."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    b = tl.program_id(0) // tiles
    start = tl.program_id(0) % tiles * BLOCK
    quad = (start // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(identity, b, quad)
    i = tl.arange(0, BLOCK)
    word = in_order(w0, w1, w2, w3, BLOCK).to(tl.int64)
    tl.store(words + tl.cast(b, tl.int64) * count + start + i, word, mask=i < count - start)


@triton.jit(do_not_specialize=[*NUMBERS, "tiles", "groups", "block_height", "block_width"])
def block_mask(out, mask, x, threshold, key, seed_low, seed_high, draw, ids, stream, channels, pixels,
               width, block_height, block_width, tiles, groups, CHANNELS: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """x [B, channels, pixels], 0 where hidden, and mask [B, pixels]: BLOCK pixels, CHANNELS channels per program."""
    identity = (key, seed_low, seed_high, draw, ids, stream)
    tile, b = tl.program_id(0) % tiles, tl.program_id(0) // tiles // groups
    group = tl.program_id(0) // tiles % groups
    start = tile * BLOCK
    i = tl.arange(0, BLOCK)
    ok = i < pixels - start
    pixel = start + i
    down = pixel // width
    across = (pixel - down * width) // block_width
    j = down // block_height * ((width + block_width - 1) // block_width) + across
    w0, w1, w2, w3 = philox_words(identity, b, (j // 4).to(tl.uint32))
    word = tl.where(j % 4 < 2, tl.where(j % 4 == 0, w0, w1), tl.where(j % 4 == 2, w2, w3))
    visible = (word.to(tl.int64) << 31) + j >= tl.load(threshold + b)
    wide = tl.cast(b, tl.int64)
    if group == 0:
        one_or_zero = tl.where(visible, 1.0, 0.0)
        tl.store(mask + wide * pixels + start + i, one_or_zero.to(mask.dtype.element_ty), mask=ok)
    for c in range(group * CHANNELS, tl.minimum(group * CHANNELS + CHANNELS, channels)):
        at = (wide * channels + c) * pixels + start
        tl.store(out + at + i, tl.where(visible, tl.load(x + at + i, mask=ok, other=0.0), 0.0), mask=ok)
