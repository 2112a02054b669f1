"""Measure every quant of a checkpoint without writing one, keep what was measured, and choose what fits a card."""

from __future__ import annotations

from quantkit.sweep.bounds import Bounds
from quantkit.sweep.cluster import Cluster, connect
from quantkit.sweep.cost import memory_bytes
from quantkit.sweep.mix import Budget, Mix, Optimized
from quantkit.sweep.optimizer import Optimizer, optimize
from quantkit.sweep.pick import Option, Pick, pick
from quantkit.sweep.request import Request, Shard
from quantkit.sweep.sweep import Sweep, sweep

__all__ = [
    "Bounds",
    "Budget",
    "Cluster",
    "Mix",
    "Optimized",
    "Optimizer",
    "Option",
    "Pick",
    "Request",
    "Shard",
    "Sweep",
    "connect",
    "memory_bytes",
    "optimize",
    "pick",
    "sweep",
]
