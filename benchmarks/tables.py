"""Benchmarks on tables: anomaly detection, imputation, calibration, synthesis, speed.

    python benchmarks/tables.py anomalies --data DATA
    python benchmarks/tables.py imputation --data DATA --seeds 0 1 2 3 4
    python benchmarks/tables.py mixed --data DATA
    python benchmarks/tables.py synthesis --data DATA
    python benchmarks/tables.py conditional --data DATA
    python benchmarks/tables.py speed --data DATA
    python benchmarks/tables.py development --data DATA --seeds 0
    python benchmarks/tables.py merge RECORD... --output FOLDER

DATA is a folder with ``adbench/*.npz`` (arrays X and y), ``uci/banknote.csv``,
``uci/concrete.csv.gz``, ``hivae/{Adult,Wine,defaultCredit}`` and ``adult/adult.{data,test}.gz``.
Competitors run in the same run. The settings of the library are its defaults for every set. The
recipe was chosen on the tasks of the part ``development``. It uses labels of the anomaly sets only
to leave the anomalies out, and no set of the part ``imputation`` for imputation.

Each part prints a table in Markdown, and writes ``tables_PART.json`` to the output folder, after
every record. ``merge`` makes one record and one table of several runs of a part, such as one per
seed.
"""

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from reporting import head

PARTS = ("anomalies", "imputation", "mixed", "synthesis", "conditional", "speed", "development")


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
    merge = parts.add_parser("merge")
    merge.add_argument("files", nargs="+", type=Path, metavar="RECORD")
    merge.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write the results."""
    args = parse()
    if args.part == "merge":
        merge(args.files, args.output)
        return
    part = import_module(f"tabular.{args.part}")
    torch.set_num_threads(args.threads)
    record = {**head(args.threads), "part": args.part, "records": []}
    for result in part.measure(args):
        print(json.dumps(result), file=sys.stderr, flush=True)
        record["records"].append(result)
        write(record, args.output)
    print(part.table(record["records"]))


def merge(files: list[Path], output: Path) -> None:
    """Print and write the results of several runs of one part."""
    runs = [json.loads(file.read_text()) for file in files]
    (name,) = {run["part"] for run in runs}
    record = runs[0] | {"records": [result for run in runs for result in run["records"]]}
    write(record, output)
    print(import_module(f"tabular.{name}").table(record["records"]))


def write(record: dict[str, Any], folder: Path) -> None:
    """Write a record to a folder, one line per result."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n    ".join(map(json.dumps, record["records"]))
    text = json.dumps(record | {"records": []}, indent=2)
    text = text.replace('"records": []', f'"records": [\n    {lines}\n  ]')
    (folder / f"tables_{record['part']}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
