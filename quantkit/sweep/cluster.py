"""A sweep on the machines of a Ray cluster: here the work is divided and what comes back is kept, nothing else.

A task is one group of windows and some candidates, the base beside them.  What a node has not finished when it is lost
is measured again by another; what it had finished is in the store.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import Any

import numpy as np

from quantkit import __version__
from quantkit.errors import BugError, ClusterError, Paused, QuantkitError, UnsafeError, UsageError
from quantkit.evaluate import Scores, n_scored
from quantkit.osio import cpu_count
from quantkit.sweep import remote
from quantkit.sweep.candidates import Importance
from quantkit.sweep.measurements import GOES_ON, Measurements, Types, Unit
from quantkit.units import size

LOCAL, AUTO = "local", "auto"
LOOPBACK = "127.0.0.1"
# Every part of a group runs the base again and packs types again, so there are no more than keep the nodes busy: twice
# what runs at once, so that the last to finish, or one that is done again, is not half of the work.
TURNS = 2
TASK_CPUS = 8  # beyond, the small matrices of one layer gain little from more
ATTEMPTS = 4  # of a task whose node or process is lost
_REACHED_WITHIN = 10.0  # seconds
_LOOK_EVERY = 5.0  # seconds, whether a node is left


class Cluster:
    """A cluster that is connected to.  Made by connect().

    n_nodes  that compute
    n_cpus   of a task: those of the smallest node, TASK_CPUS at most
    n_slots  tasks at once
    """

    def __init__(self) -> None:
        cpus = [int(node["Resources"].get("CPU", 0)) for node in _nodes()]
        cpus = [n for n in cpus if n]
        if not cpus:
            raise ClusterError("the cluster has no processors")
        self.n_nodes, self.n_cpus = len(cpus), min(TASK_CPUS, *cpus)
        self.n_slots = sum(n // self.n_cpus for n in cpus)

    def parts(self, measurements: Measurements, wanted: Sequence[Types]) -> int:
        """Into how many tasks each group of windows is divided: enough of them, and each fits the largest node.

        raises  ClusterError  not even one candidate fits
        """
        n_groups = len(measurements.units(wanted)) or 1
        most = max(int(node["Resources"].get("memory", 0)) for node in _nodes())
        n_candidates = len(wanted) or 1  # a shard of none has the base
        for parts in range(min(-(-TURNS * self.n_slots // n_groups), n_candidates), n_candidates + 1):
            needed = measurements.memory_bytes(wanted, parts)
            if needed <= most:
                return parts
        raise ClusterError("no node has the memory for one candidate", expected=size(needed), found=size(most))

    def measure(
        self, measurements: Measurements, wanted: Sequence[Types], progress: Callable[[], None] = lambda: None
    ) -> None:
        """As Measurements.measure(), on the nodes.

        raises  ClusterError  tasks are lost again and again, no node is left, or what comes back makes no sense
                InputError in its kinds, UsageError: of a node, which is named
        """
        import ray

        parts = self.parts(measurements, wanted)
        needs: dict[str, Any] = {"num_cpus": self.n_cpus, "memory": measurements.memory_bytes(wanted, parts)}
        if measurements.how.device.startswith("cuda"):
            needs["num_gpus"] = 1
        run = ray.remote(_on_node).options(max_retries=ATTEMPTS - 1, **needs)
        try:
            importance = ray.put(measurements.importance)
            pending = {
                run.remote(self._task(measurements, unit), importance): unit
                for unit in measurements.units(wanted, parts)
            }
            while pending:
                done, _ = ray.wait(list(pending), timeout=_LOOK_EVERY)
                if not done:
                    self._check_that_nodes_are_left()
                for finished in done:
                    unit = pending.pop(finished)
                    measurements.keep(unit, _checked(_received(finished), measurements, unit))
                    for _ in range(measurements.n_unit_steps(unit)):
                        progress()
        except KeyboardInterrupt:
            raise Paused("stopped", hint=GOES_ON) from None

    def _task(self, measurements: Measurements, unit: Unit) -> remote.Task:
        return remote.Task(
            __version__,
            measurements.model.path.resolve(),
            measurements.conditions["base_sha256"],
            measurements.model.network_sha256,
            [{name: qtype.name for name, qtype in types.items()} for types in unit.types],
            measurements.windows(unit),
            measurements.how,
            self.n_cpus,
            measurements.model.lora,
        )

    def _check_that_nodes_are_left(self) -> None:
        if not any(node["Resources"].get("CPU", 0) >= self.n_cpus for node in _nodes()):
            raise ClusterError("no node of the cluster is left", hint=GOES_ON)


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """The cluster at an address, for a `with` block.

    address  HOST:PORT of its head, "auto" for the one that this machine is part of, or "local" for one of this machine
             alone, started and ended here, which listens to nobody else
    raises   UsageError    ray is not installed, or that is no address
             ClusterError  nothing answers there
             UnsafeError   a local one would listen to other machines
    """
    if find_spec("ray") is None:
        raise UsageError("a sweep on a cluster needs ray", hint="pip install 'quantkit[eval,ray]'")
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        options |= {"num_cpus": cpu_count(), "include_dashboard": False, "_node_ip_address": LOOPBACK}
        # Ray reads these when it is imported and when it starts: no reports to its makers; and of all its processes,
        # only the loopback interface, which it has as a setting for two other systems alone.
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    elif address != AUTO:
        _check_reachable(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
    with redirect_stdout(sys.stderr):  # where Ray prints what it has to say of its nodes, among our data
        try:
            _start(options)
            if threading.current_thread() is threading.main_thread():
                for which, handler in handlers.items():  # Ray's would exit
                    signal.signal(which, handler)
            if address == LOCAL and any(node["NodeManagerAddress"] != LOOPBACK for node in _nodes()):
                raise UnsafeError("Ray would listen to other machines", hint="do not import ray before")
            yield Cluster()
        finally:
            ray.shutdown()


def _start(options: dict[str, Any]) -> None:
    import ray

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        cause = error.__cause__ or error
        raise ClusterError(
            "Ray does not connect", expected=options["address"], found=str(cause).strip().rpartition("\n")[2]
        ) from None


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes; raises UsageError, ClusterError."""
    found = re.fullmatch(r"\[?([0-9A-Za-z_.:-]+?)\]?:([0-9]{1,5})", address, re.ASCII)
    if found is None or int(found[2]) > 65535:
        raise UsageError("--ray takes an address", expected="HOST:PORT, auto or local", found=address)
    try:
        socket.create_connection((found[1], int(found[2])), _REACHED_WITHIN).close()
    except OSError as error:
        raise ClusterError(
            "nothing answers at this address", hint="`ray status` on its head shows it", expected=address, found=error
        ) from None


def _nodes() -> list[dict[str, Any]]:
    """That are alive."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _on_node(task: remote.Task, importance: Importance) -> list[Scores] | QuantkitError:
    """A task, on a node: an error that has a name comes back as a value, which Ray neither wraps nor tries again."""
    import ray

    try:
        return remote.measure(task, importance)
    except QuantkitError as error:
        node = ray.util.get_node_ip_address()
        return type(error)(f"on node {node}: {error.message}", hint=error.hint, **error.details)


def _received(finished: Any) -> Any:
    """What a task returned; raises what it says, or ClusterError."""
    import ray

    try:
        found = ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise ClusterError(
            "a node cannot do its part",
            hint="every node needs the same quantkit[eval,ray]",
            found=f"{type(error.cause).__name__}: {error.cause}",
        ) from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a task was lost {ATTEMPTS} times", hint=GOES_ON, found=f"{type(error).__name__}") from None
    if isinstance(found, QuantkitError):
        raise found
    return found


def _checked(found: Sequence[Scores], measurements: Measurements, unit: Unit) -> list[Scores]:
    """Scores with memory of their own, that are as many numbers as the unit has; raises BugError."""
    n_windows, n_positions = measurements.windows(unit).shape
    n = n_windows * n_scored(n_positions)
    own = []
    for i, scores in enumerate(found):
        parts = [scores.nll, scores.kld, scores.agree] if i else [scores.nll]
        if any(part is None or part.shape != (n,) or not np.isfinite(part).all() for part in parts):
            raise BugError("a node returned what is no measurement")
        own.append(Scores(*(np.array(part) for part in parts)))
    if len(own) != 1 + len(unit.types):
        raise BugError("a node returned what is no measurement", expected=1 + len(unit.types), found=len(own))
    return own
