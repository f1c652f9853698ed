"""What a training step costs, by tinyvae and by others, on the same models and data.

    pip install pythae==0.1.2 lightning==2.6.6 jax==0.10.2
    python benchmarks/training.py

Everybody trains in a process of its own, with its own allocator and nothing of the others imported,
and with another interpreter where one is given: ``--python pythae=other/bin/python``. Who is not
installed is left out. Rounds, an epoch each, are interleaved, so that what disturbs the machine
disturbs all alike; a pause before each lets the threads of the last one fall asleep. The first
rounds, in which some compile, are not counted. Reported are medians and quartiles over the rounds
of the time of a step, and of its ratio to tinyvae's in the same round.

Beside the printed table, ``training.json`` and ``training.png`` are written to the output folder.
Where ``limits.json`` tells the machine's peak, the table has the share of it that is reached by the
matrix products and convolutions of a step.
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
START_LIMIT = 300.0  # seconds to import a library, beside others that do
REFERENCE = "tinyvae"

Results = dict[str, dict[str, Any]]  # by competitor: versions and seconds, or why there are none


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
    """Add an answer to what there is of a competitor, and end one that has none."""
    if "seconds" in answer:
        results[worker.name].setdefault("seconds", []).append(answer["seconds"])
        return
    results[worker.name] = answer
    if "versions" not in answer:
        worker.end()


def _report(text: str) -> None:
    print(text, file=sys.stderr)


def step_times(result: dict[str, Any], workload: Workload) -> np.ndarray:
    """Seconds of a step in the rounds that count."""
    return np.array(result["seconds"][WARM_UP:]) / workload.steps


def ratios(results: Results) -> dict[str, np.ndarray]:
    """Time over the reference's in the same round: quartiles, the median in the middle."""
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
    """Markdown: who takes how long."""
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
    """Ratios to the reference: a panel per workload, a row per competitor."""
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
    panels[0].set_xscale("log")  # of all: before the ticks, which it sets anew
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
    """Peak of the machine in GFLOP/s, where it is known."""
    return json.loads(path.read_text()).get("fma_gflops") if path.exists() else None


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    add("--competitors", nargs="+", choices=COMPETITORS, default=list(COMPETITORS), metavar="NAME")
    add("--threads", type=int, default=2, help="threads, and cores, of everybody")
    add("--rounds", type=int, default=9, help=f"rounds, of which {WARM_UP} are not counted")
    add("--limit", type=float, default=60.0, help="seconds of a round after which one is dropped")
    add("--allocator", choices=("default", "tuned"), default="default", help="everybody's")
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
    """Measure, print and write."""
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
