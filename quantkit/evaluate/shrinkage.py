"""How much of what second moments say of two columns together holds on a text that they are not of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# From most to least.  About its least the cost is so flat that finer steps would choose by chance.
KEPT = (0.9, 0.7, 0.5, 0.3)
_ROWS = 128  # of random errors, the same for every candidate: by them KEPT is compared, not by what each costs alone


def chosen_shrinkage(halves: tuple[Tensor, Tensor], damping: float) -> float:
    """What the second moments of one matrix are best multiplied by beside the diagonal: of KEPT, by cross-validation.

    Error feedback rounds with a factor of shrunk second moments: kept H beside the diagonal and diag H + damping
    mean(diag H) on it, = M D M^T with M unit triangular.  It leaves errors e = u M^-1 of a row, where u are those of
    plain rounding, taken as independent and equally large in all columns (as Chee et al. 2023 do for QuIP), and e
    costs e H' e^T on a text with second moments H'.  Here each half is H once and the other H'; the two costs, each as
    a part of what u itself would cost, are multiplied.  Candidates are tried from the greatest on, until one that costs
    less than plain rounding is followed by one that costs more.

    Counts of tokens are not needed: neither M nor the part of the cost depends on how large H and H' are.

    halves   float32 (k, k), symmetric, on one device: x x^T added up over the tokens of either half of a text.  The
             first half and the second, not every other window, which would be too much like the rest
    damping  > 0, as a part of the mean square of all columns
    returns  the least of KEPT if none costs less than plain rounding, or nothing can be asked: where a half is all
             zeros or has a value that is no finite number.  Of a few tokens the answer is one of KEPT by chance
    memory   2 arrays of (k, k) beside the halves
    """
    first, second = halves
    best, chosen = 1.0, KEPT[-1]
    for kept in KEPT:
        cost = _cost(first, second, kept, damping) * _cost(second, first, kept, damping)
        if cost <= best:
            best, chosen = cost, kept
        elif best < 1:
            break
    return chosen


def _cost(known: Tensor, unseen: Tensor, kept: float, damping: float) -> float:
    """What errors with feedback by the one second moments cost on the other, as a part of what plain ones cost.

    returns  infinity if the shrunk moments are not positive definite in float32; NaN, which is not less than anything,
             if unseen is all zeros or not finite
    """
    diagonal = known.diagonal()
    scale = (diagonal + damping * diagonal.mean()).sqrt()
    shrunk = known * kept
    shrunk /= scale
    shrunk /= scale[:, None]
    shrunk.fill_diagonal_(1)
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    if failed:
        return math.inf
    del shrunk
    generator = torch.Generator().manual_seed(0)
    plain = torch.randint(0, 2, (_ROWS, len(known)), generator=generator).mul(2).sub(1).to(known)  # -1 or 1
    # M = scale factor / (diagonal of factor, scale): the former by rows, the latter two by columns
    errors = torch.linalg.solve_triangular(factor, plain * factor.diagonal() * scale, upper=False, left=False) / scale
    return float((errors @ unseen * errors).sum() / (_ROWS * unseen.trace()))
