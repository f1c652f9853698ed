"""Time of a training step with tinyvae and with other libraries, on the same models and data.

    pip install pythae==0.1.2 lightning==2.6.6 jax==0.10.2
    python benchmarks/training.py

Each competitor trains in its own process, optionally with another interpreter: ``--python
pythae=other/bin/python``. Competitors that are not installed are left out. Rounds of one epoch are
interleaved, so that other load on the machine affects all of them equally; a pause before each
round lets the threads of the previous one go to sleep. The first rounds, in which some compile, do
not count. The script reports medians and quartiles of the time of a step, and of its ratio to
tinyvae's in the same round.

It writes ``training.json`` and ``training.png`` to the output folder. If ``limits.json`` has the
peak of the machine, the table also shows which share of the peak the matrix products and
convolutions reach.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from competitors import COMPETITORS
from competitors.process import Worker
from reporting import head, spread
from workloads import WORKLOADS, Workload, flops

PAUSE = 0.3  # seconds; OpenMP's threads spin for 0.2
WARM_UP = 2  # rounds
START_LIMIT = 300.0  # seconds to import a library while others are imported
REFERENCE = "tinyvae"

Results = dict[
    str, dict[str, Any]
]  # by competitor: versions and seconds, or the reason why there are none


def measure(workload: Workload, names: Iterable[str], args: argparse.Namespace) -> Results:
    """Run the rounds of a workload."""
    results: Results = {}
    with ExitStack() as stack:
        workers = [_start(name, workload, args) for name in names]
        for worker in workers:
            stack.callback(worker.end)
        for worker in workers:
            _keep(results, worker, worker.answer(START_LIMIT))
        for done in range(args.rounds):
            _report(f"{workload.name}: round {done + 1} of {args.rounds}")
            for worker in workers:
                if "versions" in results[worker.name]:
                    time.sleep(PAUSE)
                    _keep(results, worker, worker.round(args.limit))
    return results


def _start(name: str, workload: Workload, args: argparse.Namespace) -> Worker:
    return Worker(
        name,
        workload.name,
        python=args.python.get(name, sys.executable),
        threads=args.threads,
        allocator=args.allocator,
    )


def _keep(results: Results, worker: Worker, answer: dict[str, Any]) -> None:
    """Add an answer to the results of a competitor; end it if there is no answer."""
    if "seconds" in answer:
        results[worker.name].setdefault("seconds", []).append(answer["seconds"])
        return
    results[worker.name] = answer
    if "versions" not in answer:
        worker.end()


def _report(text: str) -> None:
    print(text, file=sys.stderr)


def step_times(result: dict[str, Any], workload: Workload) -> np.ndarray:
    """Return seconds of a step in the rounds that count."""
    return np.array(result["seconds"][WARM_UP:]) / workload.steps


def ratios(results: Results) -> dict[str, np.ndarray]:
    """Return quartiles of the ratio to the reference's time in the same round."""
    measured = {name: result["seconds"][WARM_UP:] for name, result in _measured(results).items()}
    if REFERENCE not in measured:
        return {}
    return {
        name: np.quantile(np.divide(seconds, measured[REFERENCE]), (0.25, 0.5, 0.75))
        for name, seconds in measured.items()
    }


def _measured(results: Results) -> Results:
    return {name: result for name, result in results.items() if "seconds" in result}


def table(workload: Workload, results: Results, peak: float | None) -> str:
    """Return a table of times in Markdown."""
    heads = ["", "step", "quartiles", f"times {REFERENCE}'s", "quartiles"]
    rows = [[*heads, *(["share of peak"] if peak else [])]]
    rows.append(["---"] * len(rows[0]))
    quotients = ratios(results)
    for name, result in _measured(results).items():
        quartiles = np.quantile(step_times(result, workload), (0.25, 0.5, 0.75))
        row = [COMPETITORS[name].title, *spread(quartiles, _duration)]
        row += spread(quotients[name], "{:.2f}".format) if quotients else ["", ""]
        if peak:
            row.append(f"{flops(workload) / quartiles[1] / peak / 1e9:.1%}")
        rows.append(row)
    lines = [f"**{workload.name}**: {workload.title}", ""]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    for name, result in results.items():
        if "seconds" not in result:
            why = result.get("absent") or result.get("error")
            lines += ["", f"Without {COMPETITORS[name].title}: {why}"]
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2f} ms"


def figure(measured: dict[str, Results], subtitle: str) -> Any:
    """Draw ratios to the reference: a panel per workload, a row per competitor."""
    from matplotlib.figure import Figure

    quotients = {name: ratios(results) for name, results in measured.items()}
    quotients = {name: values for name, values in quotients.items() if len(values) > 1}
    names = [n for n in COMPETITORS if any(n in values for values in quotients.values())]
    columns = min(2, len(quotients)) or 1
    rows = -(-len(quotients) // columns) or 1
    size = (5.2 * columns + 1.8, rows * (0.9 + 0.3 * len(names)) + 0.9)
    drawing = Figure(figsize=size, layout="constrained")
    drawing.suptitle(f"Time of a training step over {REFERENCE}'s\n{subtitle}", fontsize=12)
    panels = drawing.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(quotients) :]:
        panel.set_axis_off()
    panels[0].set_xscale("log")  # shared by all panels; it resets the ticks
    for panel, (name, values) in zip(panels, quotients.items(), strict=False):
        _draw(panel, names, values)
        panel.set_title(f"{name}: {WORKLOADS[name].title}", loc="left", fontsize=10)
    highest = max((v[1] for values in quotients.values() for v in values.values()), default=1)
    lowest = min((v[1] for values in quotients.values() for v in values.values()), default=1)
    panels[0].set_xlim(lowest / 1.5, highest * 1.9)
    return drawing


def _draw(panel: Any, names: list[str], values: dict[str, np.ndarray]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.axvline(1, color="#888888", linewidth=1)
    for row, name in enumerate(names):
        if name in values:
            low, middle, high = values[name]
            color = "#D55E00" if name == REFERENCE else "#0072B2"
            panel.plot([1, middle], [row, row], color=color, linewidth=1.5, alpha=0.4)
            panel.plot([low, high], [row, row], color=color, linewidth=4, alpha=0.5)
            panel.plot(middle, row, "o", color=color)
            panel.annotate(
                f"{middle:.2f}",
                (max(high, 1), row),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    panel.set_yticks(range(len(names)), [COMPETITORS[name].title for name in names], fontsize=9)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelbottom=True)
    panel.spines[["top", "right", "left"]].set_visible(False)


def read_peak(path: Path) -> float | None:
    """Return the peak of the machine in GFLOP/s, None if unknown."""
    return json.loads(path.read_text()).get("fma_gflops") if path.exists() else None


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    add("--competitors", nargs="+", choices=COMPETITORS, default=list(COMPETITORS), metavar="NAME")
    add("--threads", type=int, default=2, help="number of threads and cores of each process")
    add("--rounds", type=int, default=9, help=f"rounds; the first {WARM_UP} do not count")
    add("--limit", type=float, default=60.0, help="seconds after which a round is given up")
    add(
        "--allocator",
        choices=("default", "tuned"),
        default="default",
        help="allocator of all processes",
    )
    add("--python", action="append", type=_interpreter, default=[], metavar="NAME=PATH")
    add("--output", type=Path, default=Path(__file__).parent / "results")
    add("--peak", type=Path, help="limits.json, if it is not in the output folder")
    args = parser.parse_args()
    if args.rounds <= WARM_UP:
        parser.error(f"expected more than {WARM_UP} rounds, got {args.rounds}")
    args.python = dict(args.python)
    return args


def _interpreter(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    program = shutil.which(path)
    if name not in COMPETITORS or program is None:
        raise argparse.ArgumentTypeError(f"expected NAME=PATH of an interpreter, got {text!r}")
    return name, str(Path(program).absolute())


def main() -> None:
    """Measure, print and write the results."""
    args = parse()
    peak = read_peak(args.peak or args.output / "limits.json")
    record = {
        **head(args.threads),
        "allocator": args.allocator,
        "warm_up": WARM_UP,
        "steps": {name: WORKLOADS[name].steps for name in args.workloads},
        "flops": {name: flops(WORKLOADS[name]) for name in args.workloads},
        "results": {},
    }
    args.output.mkdir(parents=True, exist_ok=True)
    for workload in map(WORKLOADS.__getitem__, args.workloads):
        fitting = [n for n in args.competitors if COMPETITORS[n].fits(workload.name)]
        record["results"][workload.name] = measure(workload, fitting, args)
        print(table(workload, record["results"][workload.name], peak))
        (args.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    subtitle = f"{record['machine']['cpu']}, {args.threads} threads, {args.allocator} allocator"
    try:
        drawing = figure(record["results"], subtitle)
    except ImportError:
        _report("No training.png without matplotlib: pip install matplotlib")
    else:
        drawing.savefig(args.output / "training.png", dpi=200, metadata={"Software": None})


if __name__ == "__main__":
    main()
