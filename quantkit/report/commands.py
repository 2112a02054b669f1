"""The commands that a report comes from and those that follow, without the folders of the machine it was made on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from shlex import join

from quantkit.recipe import families
from quantkit.report.record import Optimized, Report

_DTYPES = {"float32": "f32", "bfloat16": "bf16"}  # torch's name: --dtype's
_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6}


def commands(report: Report) -> dict[str, str]:
    """What each command does: the command."""
    name = f"{report.source}-{report.pick.name}.gguf"
    types = [] if _is_file(report, report.pick.name) else [report.pick.name]
    recipe = f"{report.pick.name}.toml" if not types else report.recipe
    convert = ["quantkit", "convert", *_source(report), *_candidates(report, types, recipe), "-o", name]
    return {
        "Measure it again": join(["quantkit", "sweep", *_source(report), *_sweep(report)]),
        "Write the file": join(convert),
        "Run it": served(report, name),
    }


def served(report: Report, file: str) -> str:
    """The command that runs a file as was reckoned."""
    return join(["llama-server", "-m", file, *_run(report)])


def memory_option(nbytes: int) -> str:
    """Bytes as --vram takes them, in the largest unit that leaves no more than two decimals."""
    for unit, factor in _UNITS.items():
        if nbytes >= factor and 100 * nbytes % factor == 0:
            return f"{_short(nbytes / factor, 2)}{unit}"
    return f"{_short(nbytes / 2**20, 6)}MiB"


def _short(number: float, decimals: int) -> str:
    """In so many decimals at most."""
    return f"{number:.{decimals}f}".rstrip("0").rstrip(".")


def _source(report: Report) -> Iterator[str]:
    yield report.merged.base if report.merged else report.source
    for adapter in report.merged.lora if report.merged else ():
        yield from ("--lora", str(adapter))


def _is_file(report: Report, name: str) -> bool:
    """Whether a candidate's recipe is a file of its own, not a preset of a family."""
    return report.recipe not in families() or name in {mix.name for mix in report.mixes}


def _sweep(report: Report) -> Iterator[str]:
    run = report.run
    yield from ("--vram", memory_option(report.vram_bytes), "--ctx", str(run.context))
    presets = [one.name for one in report.candidates if one not in report.mixes]
    of_the_card = report.mixes and not {f"OPT-{name}" for name in presets} & {mix.name for mix in report.mixes}
    yield from _candidates(report, [] if of_the_card else presets, report.recipe)
    if report.optimized:
        yield from _optimize(report.optimized)
    # option: its value here, and the usual one
    options = {
        "--kv-type": (run.kv_type, "f16"),
        "--parallel": (run.parallel, 1),
        "--ubatch": (run.ubatch, 512),
        "--gpu-layers": (run.gpu_layers, None),
        "--overhead": (memory_option(run.overhead_bytes), "512MiB"),
        "--window": (report.window, 512),
        "--dtype": (_DTYPES.get(report.dtype, report.dtype), "f32"),
        "--device": (report.device, "cpu"),
    }
    yield from _changed(options)
    for text in report.text:
        if text != "eval.txt":
            yield from ("--text", text)
    yield from ("--windows", str(report.windows), "-o", "out/")


def _optimize(optimized: Optimized) -> Iterator[str]:
    yield "--optimize"
    for pattern in optimized.keep:
        yield from ("--keep", pattern)
    if optimized.min_type:
        yield from ("--min-type", optimized.min_type)
    for pattern in optimized.same_type:
        yield from ("--same-type", pattern)
    if optimized.n_probed < len(optimized.matrices):
        yield from ("--probes", str(optimized.n_probed))


def _candidates(report: Report, types: Sequence[str], recipe: str) -> Iterator[str]:
    if recipe in families():
        for name in types:
            yield from ("-t", name)
        if recipe != families()[0]:
            yield from ("--recipe", recipe)
    else:
        yield from ("--recipe", recipe if recipe.endswith(".toml") else f"{recipe}.toml")
    if report.imatrix_sha256:
        yield from ("--imatrix", "imatrix.gguf")
    if report.strategy:
        yield from ("--strategy", report.strategy.name, "--covariance", "moments/")


def _run(report: Report) -> Iterator[str]:
    """llama-server's options; its -c is of all sequences."""
    run = report.run
    yield from ("-c", str(run.context * run.parallel))
    cache = (run.kv_type, "f16")
    flash = ("on" if run.kv_type != "f16" else None, None)  # llama.cpp quantizes no cache without it
    options = {"-np": (run.parallel, 1), "-ub": (run.ubatch, 512), "-ngl": (run.gpu_layers, None)}
    yield from _changed(options | {"-ctk": cache, "-ctv": cache, "-fa": flash})


def _changed(options: dict[str, tuple[object, object]]) -> Iterator[str]:
    """Options whose value is not the usual one."""
    for name, (value, usual) in options.items():
        if value != usual:
            yield from (name, str(value))
