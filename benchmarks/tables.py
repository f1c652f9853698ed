"""Benchmarks on tables: anomaly detection, imputation, calibration, synthesis, speed.

    python benchmarks/tables.py anomalies --data DATA
    python benchmarks/tables.py imputation --data DATA --seeds 0 1 2 3 4
    python benchmarks/tables.py mixed --data DATA
    python benchmarks/tables.py synthesis --data DATA
    python benchmarks/tables.py conditional --data DATA
    python benchmarks/tables.py speed --data DATA

DATA is a folder with ``adbench/*.npz`` (arrays X and y), ``uci/banknote.csv``,
``uci/concrete.csv.gz``, ``hivae/{Adult,Wine,defaultCredit}`` and ``adult/adult.{data,test}.gz``.
Competitors run in the same run. The settings of the library are its defaults for every set; they
were chosen on other data.

Each part prints a table in Markdown, and writes ``tables_PART.json`` to the output folder, after
every record.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

import torch
from reporting import head

PARTS = ("anomalies", "imputation", "mixed", "synthesis", "conditional", "speed")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        part.add_argument("--data", type=Path, required=True, help="folder of the data sets")
        part.add_argument("--sets", nargs="+", metavar="NAME", help="sets, by default all")
        part.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
        part.add_argument("--threads", type=int, default=2)
        part.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
        import_module(f"tabular.{name}").add_arguments(part)
    return parser.parse_args()


def main() -> None:
    """Measure, print and write the results."""
    args = parse()
    part = import_module(f"tabular.{args.part}")
    torch.set_num_threads(args.threads)
    record = {**head(args.threads), "part": args.part, "records": []}
    args.output.mkdir(parents=True, exist_ok=True)
    for result in part.measure(args):
        print(json.dumps(result), file=sys.stderr, flush=True)
        record["records"].append(result)
        path = args.output / f"tables_{args.part}.json"
        path.write_text(json.dumps(record, indent=2) + "\n")
    print(part.table(record["records"]))


if __name__ == "__main__":
    main()
