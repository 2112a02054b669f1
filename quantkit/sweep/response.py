"""From the sum of costs to the KL divergence that is measured: costs add up only while they are small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Response:
    """A rising curve through measured mixes.

    points  (sum of costs, measured KL divergence) in nats, of mixes of several sizes, both above 0
    """

    points: Sequence[tuple[float, float]]

    def predict(self, cost: float) -> float:
        """The KL divergence of a mix whose costs have this sum, both in nats.

        Between the points log KLD is linear in log cost; beyond them the ratio of both is that of the last point.
        """
        if cost <= 0:
            return 0.0
        logs = np.log(sorted(self.points))
        ratio = np.interp(math.log(cost), logs[:, 0], np.maximum.accumulate(logs[:, 1]) - logs[:, 0])
        return cost * math.exp(ratio)
