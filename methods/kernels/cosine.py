"""Cosine similarities: float32 for the greedy kernels, float64 for methods that compare a few tokens with all."""

from __future__ import annotations

import torch
from torch import Tensor

STEP = 2.0**-20  # similarities of `CosineRows` are counted in it, about 1e-6: above the error of a float32 product
TABLE = 8192  # tokens up to which `CosineRows` keeps the similarities of all pairs: 256 MiB
TABLE_64 = 2048  # the same of `Cosine`: 32 MiB
CHECKED = 8  # columns by which equal rows are looked for
TILE = 2**24  # float64 similarities held at once
TILE_32 = 2**22  # float32 similarities held at once
BARE_NORM = 1e-50  # the floor of a norm that leaves every float32 row its own, but for zero rows
# Of a float64 cosine: matrix kernels add up rows in different orders, so the last bits of a similarity are theirs.
DECIMALS = 12
DROPPED = 12  # of the 52 bits behind the point: 2^-41 is left as relative error, about 5e-13


class CosineRows:
    """Similarities between the rows of `features` [N, D] in float32, as whole numbers of `STEP`: 1 is 2^20.

    A row is divided by max(norm, floor) + plus, and before that by its largest absolute value, so that no norm
    overflows and most parallel rows become equal. A zero row has similarity 0 to every row.

    A matrix product may add up equal rows in different orders. Each distinct row therefore goes in once, and equal rows
    have equal similarities, bit for bit. The constructor waits for the device once; no method does.

    Above `TABLE` tokens similarities are computed when they are asked for. Memory is then O(N D).

    Args:
        features: [N, D], N and D at least 1.
        floor: smallest norm.
        plus: added to the norm, as in the released code of IDPruner; it ranks parallel rows by length.
    """

    def __init__(self, features: Tensor, floor: float = 1e-8, plus: float = 0.0) -> None:
        rows = features.detach().float()
        low, high = rows.aminmax(dim=1)
        largest = torch.maximum(-low, high)
        unit = rows / torch.where(largest > 0, largest, 1.0)[:, None]
        norm = torch.linalg.vector_norm(unit, dim=1).clamp_min(1).double()  # only that of a zero row is below 1
        length = largest * norm
        unit *= (length / ((length.clamp_min(floor) + plus) * norm * STEP**0.5)).float()[:, None]
        self.row_of: Tensor | None = None  # [N] the row of `unit` of each token; None: its own
        checksums = unit.view(torch.int32)[:, :CHECKED].sum(dim=1)
        if len(checksums.unique()) < len(unit):  # whole rows are compared only then, which takes longer
            unit, self.row_of = torch.unique(unit, dim=0, return_inverse=True)
        self.unit = unit  # [U, D] distinct, of length sqrt(1 / STEP)
        self.size, self.device, self.dtype = len(features), features.device, unit.dtype
        self.table = unit @ unit.T if len(unit) <= TABLE else None

    def __len__(self) -> int:
        return self.size

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the similarities [T, N] of `tokens` [T] to all tokens, as a new tensor."""
        return self.of_tokens(self.distinct(tokens))

    def column(self, token: Tensor) -> Tensor:
        """Return the similarities [N] of all tokens to `token` [1]."""
        return self(token)[0]

    def distinct(self, tokens: Tensor) -> Tensor:
        """Return the similarities [T, U] of `tokens` [T] to the distinct rows, as a new tensor."""
        rows = self.rows(tokens)
        if self.table is not None:
            return self.table.index_select(0, rows).round_()
        return (self.unit.index_select(0, rows) @ self.unit.T).round_()

    def nearest(self) -> Tensor:
        """Return the similarity [N] of each token to the most similar other one."""
        if self.table is not None and self.row_of is None:
            own = self.table.diagonal().clone()
            self.table.fill_diagonal_(-torch.inf)
            nearest = self.table.amax(dim=1).round_()
            self.table.diagonal().copy_(own)
            return nearest
        nearest = self.unit.new_empty(self.size)
        for tile in self.tiles():
            nearest.index_copy_(0, tile, self(tile).scatter_(1, tile[:, None], -torch.inf).amax(dim=1))
        return nearest

    def tiles(self) -> tuple[Tensor, ...]:
        """Return all tokens [N] in parts whose similarities to all tokens may be held at once."""
        return torch.arange(self.size, device=self.device).split(max(1, TILE_32 // self.size))

    def rows(self, tokens: Tensor) -> Tensor:
        """Return which of the distinct rows [T] `tokens` [T] have."""
        return tokens if self.row_of is None else self.row_of.index_select(0, tokens)

    def of_tokens(self, values: Tensor) -> Tensor:
        """Return `values` [..., U] of the distinct rows as those of all tokens [..., N]."""
        return values if self.row_of is None else values.index_select(-1, self.row_of)


def first_equal(rows: Tensor) -> Tensor:
    """Return the index [N] of the first row that equals each row of `rows` [N, D]."""
    distinct, row_of = torch.unique(rows, dim=0, return_inverse=True)
    place = torch.arange(len(rows), device=rows.device)
    return place.new_full((len(distinct),), len(rows)).scatter_reduce(0, row_of, place, "amin")[row_of]


def directions(features: Tensor, floor: float = 1e-8) -> Tensor:
    """Return `features` [N, D] over max(norm, `floor`), in float64; zero rows stay zero.

    Above the floor a positive factor on a row changes nothing, so that parallel rows tie. Adding to the norm, however
    little, would rank them by length.
    """
    features = features.double()
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(floor)


def nearest_row(rows: Tensor, others: Tensor) -> Tensor:
    """Return which of `others` [C, D] is most similar to each of `rows` [R, D] by cosine, the first of equal ones.

    Cosines are float64, to 12 decimals, and zero rows are similar to none. Memory is O(R + C D).
    """
    unit = directions(others, floor=BARE_NORM)
    parts = rows.split(max(1, TILE // max(rows.shape[1], len(others))))
    best = [(directions(part, floor=BARE_NORM) @ unit.T).round(decimals=DECIMALS).argmax(dim=1) for part in parts]
    return torch.cat(best)


class Cosine:
    """Similarities between rows of `unit` [N, D] (float64, of unit length or zero), to 12 decimals.

    Matrix kernels add up the rows of one product in different orders, so each distinct row goes in once: equal rows
    have equal similarities, bit for bit. Different rows have them where exact arithmetic says so, but for the rare case
    that a rounding boundary lies between the two products.

    Building it waits for the device once, asking it never does.

    Args:
        unit: [N, D].
        table: keep the similarities of all pairs, if N is at most TABLE_64, for those who ask more than N / 2 times.
        scale: similarities are multiples of 1 / `scale`.
    """

    def __init__(self, unit: Tensor, table: bool = False, scale: float = 10.0**DECIMALS) -> None:
        self.unit = unit
        self.scale = scale
        self.rows, self.row_of, self.copies = torch.unique(unit, dim=0, return_inverse=True, return_counts=True)
        self.table: Tensor | None = None
        if table and len(unit) <= TABLE_64:
            every = self.between(self.rows, self.rows)
            self.table = torch.maximum(every, every.T)

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the similarities [A, B] of tokens `a` [A] to tokens `b` [B], or to all N."""
        if self.table is not None:
            return self.table[self.row_of[a]].index_select(1, self.row_of if b is None else self.row_of[b])
        if b is not None:  # too many for a table: equal rows may then differ where a rounding boundary lies between
            return self.between(self.unit[a], self.unit[b])
        return self.between(self.unit[a], self.rows).index_select(1, self.row_of)

    def nearest(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarity [A] of each token of `a` to the most similar of `b`, and where in `b` [A] it is.

        Of equally similar ones the first counts. Memory O(A + B) beyond TABLE_64.
        """
        found = [self(part, b).max(dim=1) for part in a.split(max(1, TILE // len(b)))]
        return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])

    def along(self, direction: Tensor) -> Tensor:
        """Return the products [N] of all tokens with `direction` [D]."""
        return self.between(self.rows, direction[None])[self.row_of, 0]

    def between(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return the rounded products [R, O] of `rows` [R, D] with `others` [O, D]."""
        return (rows @ others.T).mul_(self.scale).round_().div_(self.scale)


def snap(scores: Tensor) -> Tensor:
    """Round float64 `scores` to 40 bits behind the point, in relative precision, so that tiny values keep their order.

    Kernels treat the last elements of a tensor otherwise than the rest and add up in orders of their own: softmax,
    exponential and sums of equal values differ in their last bits, which would then decide a tie.
    """
    bits = scores.view(torch.int64)  # sign and magnitude, so adding half rounds to nearest on both sides of zero
    return (((bits + (1 << (DROPPED - 1))) >> DROPPED) << DROPPED).view(torch.float64)
