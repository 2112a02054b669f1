"""On a cluster the work is divided and the report is the same; a node may be lost, and errors name theirs."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from quantkit import __version__, osio
from quantkit.errors import BugError, ClusterError, InputError, UsageError
from quantkit.evaluate import Scores, network
from quantkit.osio import machine
from quantkit.sweep import Request, Sweep, cluster, remote, sweep

Ask = Callable[..., Request]
OPTIONS = ("-t", "Q2_K", "-t", "Q4_K_M", "-t", "Q8_0", "--vram", "3MiB", "--overhead", "0MiB", "--ubatch", "64")
OPTIONS += ("--ctx", "1024", "--window", "32", "--windows", "5", "-q", "-o")
N_UNITS = 3 * 3  # groups of windows, of which each is divided into as many parts as there are types

# The second node is lost in the middle of a task: a worker of it is held there, and then all its processes are killed.
# Nodes have the loopback interface's address, which Ray on Linux takes for another one without the variable.
TWO_NODES = """
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
import ray
from ray.cluster_utils import Cluster
from quantkit.cli import main
from quantkit.evaluate import measure
from quantkit.sweep import cluster

measure.GROUP_TOKENS = 2 * 32
a_node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
nodes = Cluster(initialize_head=True, head_node_args=a_node)
second = nodes.add_node(**a_node)
raylet = second.all_processes["raylet"][0].process.pid
wait, lost, kept = ray.wait, [], []

def titles(of):
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == of:
                found[int(path.name)] = (path / "cmdline").read_text()
        except OSError:
            pass
    return found

def wait_and_lose(pending, **options):
    while not lost:
        for pid, title in titles(raylet).items():
            if title.startswith("ray::_on_node"):
                os.kill(pid, signal.SIGSTOP)
                if titles(raylet)[pid].startswith("ray::_on_node"):
                    nodes.remove_node(second)
                    lost.append(len(pending))
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                break
        time.sleep(0.001)
    return wait(pending, **options)

def run(*arguments):
    try:
        main([*arguments, "--ray", nodes.address])
    except SystemExit as stop:
        print(stop.code, flush=True)

ray.wait = wait_and_lose
run("sweep", sys.argv[1], *sys.argv[4:], sys.argv[3])
print(lost[0], flush=True)
run("sweep", sys.argv[2], "-t", "F16", *sys.argv[4:], sys.argv[3] + " of another", "--vram", "1GiB")
nodes.shutdown()
"""


def start(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.usefixtures("groups_of_two")
def test_a_node_is_lost_and_the_report_is_the_same(ask: Ask, tmp_path: Path) -> None:
    def plant(tensors: small.Tensors) -> None:
        small.lively(tensors)
        tensors["model.layers.1.mlp.down_proj.weight"][77, 5] = 1e6

    large = small.write(tmp_path / "large", edit_tensors=plant)
    run = start(TWO_NODES, ask().source, large, tmp_path / "spread", *OPTIONS)
    codes = run.stdout.split()
    assert len(codes) == 3 and codes[0] == "0" and codes[2] == "65", run.stdout + run.stderr
    assert 0 < int(codes[1]) <= N_UNITS
    assert "large, tensor blk.1.ffn_down.weight, row 77, column 5: on node 127.0.0.1: " in run.stderr
    assert "Traceback" not in run.stderr

    sweep(ask(out=tmp_path / "undisturbed"))
    spread, undisturbed = (
        {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.*")) if path.suffix != ".note"}
        for out in (tmp_path / "spread", tmp_path / "undisturbed")
    )
    assert {path: spread[path] for path in undisturbed} == undisturbed
    assert {path.suffix for path in undisturbed} == {".scores", ".json", ".csv", ".gguf"}
    assert sum(path.suffix == ".scores" for path in spread) == 4 * 3


# All that this process and those it started listen to, while a task of it is under way; then it is told to stop.
LOCAL = """
import os, signal, sys
from pathlib import Path
from quantkit.cli import main
from quantkit.evaluate import measure
from quantkit.sweep.measurements import Measurements

measure.GROUP_TOKENS = 2 * 32
keep = Measurements.keep

def descendants():
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return ours

def sockets(pid):
    for file in Path(f"/proc/{pid}/fd").iterdir():
        try:
            yield os.readlink(file)
        except OSError:
            pass

def listening():
    ours = {name for pid in descendants() for name in sockets(pid)}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in ours:
                yield fields[1].partition(":")[0]

def keep_and_stop(*arguments):
    keep(*arguments)
    print(" ".join(sorted(set(listening()))), file=sys.__stdout__, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

Measurements.keep = keep_and_stop
main([*sys.argv[1:], "--ray", "local"])
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1 as /proc/net/tcp and tcp6 have it


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system does not show who listens to what")
def test_a_local_one_listens_to_this_machine_alone_and_stops(ask: Ask, tmp_path: Path) -> None:
    run = start(LOCAL, "sweep", ask().source, *OPTIONS, tmp_path / "out")
    assert run.returncode == 75, run.stderr
    assert run.stderr.endswith("error: stopped\nhint: the same command goes on from what is measured\n")
    found = set(run.stdout.split())
    assert found and found <= LOOPBACK
    kept = list((tmp_path / "out" / "measurements").glob("*.scores"))
    assert 0 < len(kept) < 4 * 3


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:70000", "head:", "", "local "])
def test_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="takes an address"), cluster.connect(address):
        pass


def test_nothing_answers() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=f"nothing answers.*expected {address}") as caught,
            cluster.connect(address),
        ):
            pass
    assert caught.value.exit_code == 69


def test_without_the_extra_it_says_how_to_have_it(ask: Ask, tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None\nfrom quantkit.cli import main\nmain(sys.argv[1:])"
    run = start(code, "sweep", ask().source, *OPTIONS, tmp_path / "out", "--ray", "local")
    assert (run.returncode, run.stdout) == (2, "")
    assert "needs ray" in run.stderr and "quantkit[eval,ray]" in run.stderr


# ---- what a node does


@pytest.fixture
def task(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> remote.Task:
    """What measures two windows; no processor is taken from the other tests."""
    monkeypatch.setattr(machine, "_cpu_limit", None)
    monkeypatch.setattr(network.torch, "set_num_threads", lambda n: None)
    with Sweep.open(ask(windows=2), pytest.fail) as opened:
        wanted = opened.candidates[0]
        return remote.Task(
            __version__,
            ask().source,
            opened.source_sha256,
            opened.measurements.model.network_sha256,
            [{name: qtype.name for name, qtype in wanted.types.items()}],
            opened.measurements.sample.windows,
            opened.request.how,
            1,
        )


def test_a_node_measures_what_this_process_would(task: remote.Task, ask: Ask) -> None:
    report = sweep(ask(windows=2), write=False)
    base, scores = remote.measure(task, {})
    assert report is not None and base.kld is None and scores.kld is not None
    assert report["candidates"][0]["kld"]["mean"] == scores.kld.mean()
    assert osio.cpu_count() == 1


def other_weights(source: Path) -> None:
    small.write(source)


def other_theta(source: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["rope_theta"] = 10000.0

    small.write(source, edit_tensors=small.lively, edit_config=edit)


@pytest.mark.parametrize(("write", "words"), [(other_weights, "weights"), (other_theta, "network")])
def test_a_source_that_is_another_on_a_node(task: remote.Task, tmp_path: Path, write: Any, words: str) -> None:
    write(tmp_path / "other")
    with pytest.raises(InputError, match=f"the {words} of the source are others here") as caught:
        remote.measure(replace(task, source=tmp_path / "other"), {})
    assert caught.value.hint is not None and "under the same path" in caught.value.hint


def test_a_source_that_is_missing_on_a_node(task: remote.Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none") as caught:
        remote.measure(replace(task, source=tmp_path / "none"), {})
    assert caught.value.hint is not None and "under the same path" in caught.value.hint


def test_another_quantkit_on_a_node(task: remote.Task) -> None:
    with pytest.raises(UsageError, match=r"expected quantkit 9, found"):
        remote.measure(replace(task, quantkit="9"), {})


# ---- how the work is divided


def node(cpus: float, gib: float = 64) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"CPU": cpus, "memory": gib * 2**30}}


@pytest.mark.usefixtures("groups_of_two")
@pytest.mark.parametrize(
    ("nodes", "n_cpus", "n_slots", "parts"),
    [
        ([node(1)], 1, 1, 1),
        ([node(1), node(1)], 1, 2, 2),
        ([node(0), node(4), node(13)], 4, 4, 3),
        ([node(64), node(32), {"Alive": False, "Resources": {}}], 8, 12, 3),
    ],
)
def test_the_parts(
    nodes: list[dict[str, Any]], n_cpus: int, n_slots: int, parts: int, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three groups of windows, and three candidates."""
    monkeypatch.setattr(cluster, "_nodes", lambda: [one for one in nodes if one["Alive"]])
    found = cluster.Cluster()
    assert (found.n_cpus, found.n_slots) == (n_cpus, n_slots)
    with Sweep.open(ask(), pytest.fail) as opened:
        wanted = [candidate.types for candidate in opened.candidates]
        assert found.parts(opened.measurements, wanted) == parts
        units = opened.measurements.units(wanted, parts)
    assert len(units) == 3 * -(-3 // -(-3 // parts))
    assert [unit.number for unit in units if unit.wants_base] == [0, 1, 2]
    assert sum(unit.n_measurements for unit in units) == 4 * 3


@pytest.mark.usefixtures("groups_of_two")
def test_what_does_not_fit_a_node(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with Sweep.open(ask(), pytest.fail) as opened:
        wanted = [candidate.types for candidate in opened.candidates]
        needs = [opened.measurements.memory_bytes(wanted, parts) for parts in (1, 2, 3)]
        assert needs[0] > needs[1] > needs[2]
        for nbytes, parts in ((needs[0], 1), (needs[0] - 1, 2), (needs[2], 3)):
            monkeypatch.setattr(cluster, "_nodes", lambda n=nbytes: [node(1, n / 2**30)])
            assert cluster.Cluster().parts(opened.measurements, wanted) == parts
        monkeypatch.setattr(cluster, "_nodes", lambda: [node(1, (needs[2] - 1) / 2**30)])
        with pytest.raises(ClusterError, match="no node has the memory"):
            cluster.Cluster().parts(opened.measurements, wanted)


def test_of_no_candidates_the_base_is_a_part(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: [node(8)])
    with Sweep.open(ask(), pytest.fail) as opened:
        assert cluster.Cluster().parts(opened.measurements, []) == 1


def test_no_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_nodes", lambda: [node(0)])
    with pytest.raises(ClusterError, match="no processors"):
        cluster.Cluster()


@pytest.mark.parametrize("fault", ["no candidate", "few", "infinite", "no divergence"])
def test_what_comes_back_is_looked_at(ask: Ask, fault: str) -> None:
    with Sweep.open(ask(types=("Q2_K",), windows=2), pytest.fail) as opened:
        (unit,) = opened.measurements.units([opened.candidates[0].types])
        n = 2 * 15
        good = Scores(np.ones(n), np.ones(n), np.ones(n, bool))
        faults = {
            "no candidate": [good],
            "few": [good, Scores(np.ones(n - 1), good.kld, good.agree)],
            "infinite": [good, Scores(np.full(n, np.inf), good.kld, good.agree)],
            "no divergence": [good, Scores(np.ones(n))],
        }
        assert len(cluster._checked([Scores(np.ones(n)), good], opened.measurements, unit)) == 2
        with pytest.raises(BugError, match="no measurement"):
            cluster._checked(faults[fault], opened.measurements, unit)
