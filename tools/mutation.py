"""Measure the share of small faults in the source that the tests catch.

Example:
    python tools/mutation.py --root . --count 600 --seed 0 --output results.jsonl --resume

The first run records which tests execute which lines, in the folder ``--cache``. Then the tests of
each mutant run in a forked process, which imports the mutated text in place of the file: nothing
under the root changes. The sample depends only on the seed, the source and ``--paths``. The output
has one JSON line per mutant, in random order. An outcome is "caught", "timeout" (counts as caught),
"survived", or "untested" if no test was found.
"""

import argparse
import ast
import contextlib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from pathlib import Path

PATHS = ["distributions", "likelihoods", "objectives", "priors", "evaluation", "training"]
UNTRACED = ["test_killed.py", "test_examples.py", "test_readme.py"]  # slow, in subprocesses
CPU_LIMIT, MAP_LIMIT, IDLE_LIMIT = 120, 1800, 60  # seconds
MEMORY = 8 << 30  # bytes of address space
FIRST_STAGE, BUDGET = 15, 60  # seconds of tests: those near by name, all
PAIRS = """Add Sub, Mult Div, BitAnd BitOr, And Or, Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn,
    min max, amin amax, argmin argmax, any all, sum mean, zeros ones, floor ceil, cumsum cumprod,
    zeros_like ones_like, new_zeros new_ones, minimum maximum"""
SWAPS = {"Mod": "Mult", "Pow": "Mult", "FloorDiv": "Mult"}
SWAPS |= {a: b for p in PAIRS.split(",") for a, b in (p.split(), p.split()[::-1])}
SKIPPED_NODES = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)
SKIPPED_FIELDS = ["annotation", "returns", "decorator_list"]
SKIPPED_NAMES = ["__repr__", "extra_repr", "__str__", "__dir__", "stacklevel", "strict"]
# Executed in the test process and, as sitecustomize, in the Python processes that it starts.
HOOK = """
import importlib.machinery, os
def _install(path, text, original=importlib.machinery.SourceFileLoader.get_code):
    def get_code(self, fullname):
        if os.path.realpath(self.path) == path:
            return compile(text, path, "exec", dont_inherit=True)
        return original(self, fullname)
    importlib.machinery.SourceFileLoader.get_code = get_code
if "MUTANT_PATH" in os.environ:
    with open(os.environ["MUTANT_TEXT"], "rb") as file:
        _install(os.environ["MUTANT_PATH"], file.read())
"""


def variants(node):
    """Yield the kind and the node of each replacement of a node."""

    def other(operator):
        return getattr(ast, SWAPS[type(operator).__name__])()

    match node:
        case ast.BinOp(left, ast.MatMult() | ast.LShift() | ast.RShift() | ast.BitXor(), right):
            return
        case ast.BinOp(left, op, right):
            values = [n.value if isinstance(n, ast.Constant) else n for n in (left, right)]
            if not any(isinstance(value, (str, ast.JoinedStr)) for value in values):
                yield "arithmetic", ast.BinOp(left, other(op), right)
        case ast.Compare(left, ops, right):
            for i, op in enumerate(ops):
                yield "comparison", ast.Compare(left, [*ops[:i], other(op), *ops[i + 1 :]], right)
        case ast.BoolOp(op, values):
            yield "and/or", ast.BoolOp(other(op), values)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert() as op, operand):
            yield "not" if isinstance(op, ast.Not) else "sign", operand
        case ast.Constant(bool(value)):
            yield "boolean", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield "number", ast.Constant(type(value)(0) if value == 1 else value + 1)
        case ast.Call(ast.Name(name), arguments, keywords) if name in SWAPS:
            yield "function", ast.Call(ast.Name(SWAPS[name]), arguments, keywords)
        case ast.Call(ast.Attribute(value, name), arguments, keywords) if name in SWAPS:
            yield "function", ast.Call(ast.Attribute(value, SWAPS[name]), arguments, keywords)
        case ast.Return(ast.expr() as value) if ast.unparse(value) != "None":
            yield "return", ast.Return()
        case ast.AugAssign(target, op, value):
            yield "statement", ast.Pass()
            yield "arithmetic", ast.AugAssign(target, other(op), value)
        case ast.Expr(ast.Call()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "statement", ast.Pass()


def sites(node, scopes):
    """Yield the kind, the node, its replacement and the line ranges around it, inner first.

    Attributes of classes and defaults of arguments are evaluated at import, outside any test: their
    innermost range is the class or the function.
    """
    name = getattr(node, "name", getattr(node, "arg", None))
    if isinstance(node, SKIPPED_NODES) or name in SKIPPED_NAMES:
        return
    match node:
        case ast.If(ast.Name("TYPE_CHECKING")) | ast.Assign([ast.Name("__all__")]):
            return
        case ast.FunctionDef():
            scopes = (("function", node.lineno, node.end_lineno), *scopes)
        case ast.ClassDef():
            scopes = (("class", node.lineno, node.end_lineno), *scopes)
        case ast.stmt() if scopes[0][0] in ("function", "statement"):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno
            scopes = (("statement", node.lineno, last), *scopes)
    is_alias = len(scopes) == 1 and isinstance(getattr(node, "op", None), ast.BitOr)
    in_statement = scopes[0][0] == "statement"
    for kind, new in () if is_alias else variants(node):
        own = [("expression", node.lineno, node.end_lineno)] if in_statement else []
        yield kind, node, new, (*own, *scopes)
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in SKIPPED_FIELDS:
                yield from sites(child, scopes)


def sample(args):
    """Draw mutants, from each file in proportion to its number of mutants.

    The order depends on a hash of the text, not on paths and line numbers: the samples of two trees
    with much text in common have much in common.
    """
    ranked = []
    for package, old in args.packages.items():
        base = args.root / "src/tinyvae" / package
        for path in sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]:
            lines, seen, drawn = path.read_bytes().splitlines(keepends=True), Counter(), []
            starts = [sum(map(len, lines[:i])) for i in range(len(lines) + 1)]
            for kind, node, new, scopes in sites(
                ast.parse(path.read_bytes()), (("file", 1, len(lines)),)
            ):
                before, after = ast.unparse(node), ast.unparse(new)
                name = f"{args.seed}|{lines[node.lineno - 1].strip()}|{before}|{after}"
                seen[name] += 1
                digest = hashlib.sha256(f"{name}|{seen[name]}".encode()).hexdigest()
                after = after if isinstance(new, ast.stmt) else f"({after})"
                mutant = {"package": old, "path": str(path.relative_to(args.root))}
                mutant |= {"line": node.lineno, "kind": kind, "before": before, "after": after}
                start = starts[node.lineno - 1] + node.col_offset
                end = starts[node.end_lineno - 1] + node.end_col_offset
                mutant |= {"span": [start, end], "scopes": scopes}
                drawn.append((digest, mutant["path"], start, len(drawn), mutant))
            # Ranks are even in (0, 1): the smallest ranks are the same share of each file.
            ranked += [((i + 0.5) / len(drawn), *entry) for i, entry in enumerate(sorted(drawn))]
    drawn = sorted(ranked)[: args.count]
    print(f"{len(drawn)} of {len(ranked)} mutants", flush=True)
    return [entry[-1] for entry in sorted(drawn, key=lambda entry: entry[1:])]


def stable(nodeid):
    """Return a test's id without addresses, which differ between processes."""
    return re.sub(r"0x[0-9a-f]+", "0x", nodeid)


class Plugin:
    """Order of the tests, and a record of them in ``result``."""

    def __init__(self, tests, tracer):
        self.order = {test: i for i, test in enumerate(tests or ())}
        self.switch = tracer.switch_context if tracer else lambda context: None
        self.result = {"seconds": {}, "failed": [], "lines": {}}

    def pytest_sessionstart(self):
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.reuse, Phase.generate)  # without shrinking
        settings.register_profile("mutation", settings(), phases=phases)
        settings.load_profile("mutation")

    def pytest_collection_finish(self, session):
        if self.order:
            chosen = [item for item in session.items if stable(item.nodeid) in self.order]
            session.items[:] = sorted(chosen, key=lambda item: self.order[stable(item.nodeid)])

    def pytest_runtest_logstart(self, nodeid):
        self.start = sum(os.times()[:4])
        self.switch(stable(nodeid))

    def pytest_runtest_logfinish(self, nodeid):
        self.switch("")
        self.result["seconds"][stable(nodeid)] = round(sum(os.times()[:4]) - self.start, 3)

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.result["failed"].append(stable(report.nodeid))

    pytest_collectreport = pytest_runtest_logreport


def run_child(args, folder, files, tests, mutant, trace):
    """Run tests in this process, and write ``result.json``."""
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    for number, target in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(target, number)
    os.chdir(args.root)
    os.environ |= {"TMPDIR": str(folder), "PYTEST_DEBUG_TEMPROOT": str(folder)}
    if not trace:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    if mutant:
        path = args.root / mutant["path"]
        text, (start, end) = path.read_bytes(), mutant["span"]
        text = text[:start] + mutant["after"].encode() + text[end:]
        (folder / "mutant.py").write_bytes(text)
        os.environ |= {"MUTANT_PATH": os.path.realpath(path), "MUTANT_TEXT": f"{folder}/mutant.py"}
        exec(HOOK, {})
    import coverage
    import pytest

    include = [f"{args.root}/src/tinyvae/*"]
    tracer = coverage.Coverage(data_file=None, include=include, config_file=False)
    plugin = Plugin(tests, tracer if trace else None)
    options = "-q --no-header -p no:cacheprovider -p no:xdist -p no:pytest_cov -W".split()
    options += ["ignore::pytest.PytestAssertRewriteWarning", *([] if trace else ["-x"])]
    options += ["-m", "slow or not slow"]  # all tests, whatever the default selection is
    with tracer.collect() if trace else contextlib.nullcontext():
        code = pytest.main([*options, *files], plugins=[plugin])
    for path in tracer.get_data().measured_files() if trace else ():
        lines = plugin.result["lines"][os.path.relpath(path, args.root)] = defaultdict(list)
        for line, contexts in tracer.get_data().contexts_by_lineno(path).items():
            for context in filter(None, contexts):
                lines[context].append(line)
    (folder / "result.json").write_text(json.dumps(plugin.result))
    return int(code)


def run(args, files, tests=None, mutant=None, trace=False):
    """Run tests in a forked process; return its exit status, or "timeout", and its result."""
    folder = args.cache / f"run-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            code = run_child(args, folder, files, tests, mutant, trace)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = watch(pid, MAP_LIMIT if trace else CPU_LIMIT)
    with contextlib.suppress(OSError, ValueError):
        return status, json.loads((folder / "result.json").read_text())
    return status, Plugin(None, None).result


def watch(pid, limit):
    """Wait for a session of processes; end it after ``limit`` CPU seconds or a minute of sleep."""
    idle, peak, status = 0.0, 0.0, None
    while status is None:
        time.sleep(0.1)
        members, states, cpu = [], "", 0.0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                state, _, _, session, *fields = path.read_text().rpartition(")")[2].split()
                if int(session) == pid:
                    members.append(int(path.parent.name))
                    states += state
                    cpu += sum(map(int, fields[7:11])) / os.sysconf("SC_CLK_TCK")
        idle = 0.0 if cpu > peak or set(states) & set("RD") else idle + 0.1
        peak = max(peak, cpu)
        finished, code = os.waitpid(pid, os.WNOHANG)
        if finished:
            status = os.waitstatus_to_exitcode(code)
        elif cpu > limit or idle > IDLE_LIMIT:
            status = "timeout"
    for member in members:
        with contextlib.suppress(OSError):
            if status == "timeout" or member != pid:
                os.kill(member, signal.SIGKILL)
    if status == "timeout":
        os.waitpid(pid, 0)
    return status


def trace_tests(args):
    """Return the record of each test file: seconds, failures and lines of each test."""
    files = [p for p in sorted(args.root.glob("tests/**/test_*.py")) if p.name not in UNTRACED]
    names = [str(p.relative_to(args.root)) for p in files]
    for name in [*names, *(f"src/tinyvae/{package}" for package in args.packages)]:
        path = args.cache / f"{name.replace('/', '-')}.json"
        if not path.exists():
            status, record = run(args, [name], trace=True)
            counts = f"{len(record['seconds'])} tests, failed or skipped: {record['failed']}"
            print(f"traced {name}: exit status {status}, {counts}", flush=True)
            path.write_text(json.dumps(record | {"status": status}))
        yield json.loads(path.read_text())


def distance(mutant, test):
    """Return 0 for tests named after the module, 1 for its package, else 2."""
    path, file = Path(mutant["path"]), test.partition("::")[0]
    if file == mutant["path"] or Path(file).stem.removeprefix("test_")[:6] == path.stem[:6]:
        return 0
    return 1 if path.parent.name[:5] in file else 2


class Selection:
    """Tests of a mutant: the files near by name first, then the fastest."""

    def __init__(self, records):
        self.seconds, self.tests = {}, defaultdict(lambda: defaultdict(set))
        for record in records:
            seconds = record["seconds"].items()
            self.seconds |= {test: s for test, s in seconds if test not in record["failed"]}
            for path, tests in record["lines"].items():
                for test in tests.keys() & self.seconds.keys():
                    for line in tests[test]:
                        self.tests[path][line].add(test)

    def stages(self, mutant):
        """Return the scope that the tests execute, and a short and a long list of tests."""
        lines = self.tests[mutant["path"]]
        for scope, first, last in mutant["scopes"]:  # noqa: B007
            tests = set().union(*(lines[i] for i in range(first, last + 1) if i in lines))
            if tests:
                break
        # Tests in other processes leave no lines: take those named after the module, too. Users of
        # a class attribute may run no line of the class: take all tests of the package.
        traced = set().union(*lines.values())
        tests |= {t for t in self.seconds if t not in traced and distance(mutant, t) == 0}
        if scope in ("class", "file"):
            tests |= {t for t in self.seconds if distance(mutant, t) < 2}
        stages, spent = ([], []), 0.0
        for test in sorted(tests, key=lambda t: (distance(mutant, t), self.seconds[t], t)):
            spent += self.seconds[test]
            if spent <= BUDGET:
                stages[distance(mutant, test) == 2 or spent > FIRST_STAGE].append(test)
        return scope, [stage for stage in stages if stage]


def test_mutant(args, selection, mutant):
    """Return the record of a mutant."""
    start = time.time()
    scope, stages = selection.stages(mutant)
    record = mutant | {"scopes": scope, "tests": sum(map(len, stages)), "by": None}
    record["outcome"] = "survived" if stages else "untested"
    for tests in stages:
        files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
        status, result = run(args, files, tests, None if args.control else mutant)
        if status != 0:
            record["outcome"] = "timeout" if status == "timeout" else "caught"
            record["by"] = (result["failed"] or [f"exit status {status}"])[-1]
            break
    return record | {"seconds": round(time.time() - start, 1)}


def identity(mutant):
    """Return what a mutant and its record have in common."""
    return mutant["path"], *mutant["span"], mutant["after"]


def read(path):
    """Return the records of an output file, of which a killed run may have left a broken line."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            records[identity(record)] = record
    return records


def summarize(records):
    """Print the share caught per package, with its standard error."""
    table = defaultdict(Counter)
    for record in records.values():
        for package in (record["package"], "all"):
            table[package][record["outcome"]] += 1
    for package, counts in table.items():
        total = counts.total()
        share = (counts["caught"] + counts["timeout"]) / total
        error = (share * (1 - share) / total) ** 0.5
        print(f"{package:14} {100 * share:5.1f} +- {100 * error:.1f} % of {total}, {dict(counts)}")


def main():
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Mutation testing of tinyvae.")
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder with src and tests")
    add("--output", type=Path, required=True, help="file of JSON lines")
    add("--count", type=int, default=600, help="number of mutants")
    add("--seed", type=int, default=0)
    add("--cache", type=Path, help="folder of the record of the tests, by default OUTPUT.cache")
    add("--paths", nargs="+", default=PATHS, help="packages and modules of tinyvae")
    add("--map", nargs="*", default=[], metavar="OLD=NEW", help="renamed packages in --paths")
    add("--jobs", type=int, default=1, help="number of processes")
    add("--resume", action="store_true", help="keep the records in the output")
    add("--control", action="store_true", help="change nothing: all mutants must survive")
    args = parser.parse_args()
    args.root, args.output = args.root.resolve(), args.output.resolve()
    args.cache = (args.cache or args.output.with_suffix(".cache")).resolve()
    renamed = dict(pair.split("=") for pair in args.map)
    args.packages = {renamed.get(path, path): path for path in args.paths}
    if not args.resume:
        args.output.unlink(missing_ok=True)
    (args.cache / "hook").mkdir(parents=True, exist_ok=True)
    (args.cache / "hook/sitecustomize.py").write_text(HOOK)
    sys.path.insert(0, f"{args.root}/src")
    sys.pycache_prefix = f"{args.cache}/pycache"
    os.environ |= {
        "PYTHONPATH": f"{args.cache}/hook:{args.root}/src",
        "PYTHONPYCACHEPREFIX": sys.pycache_prefix,
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{args.cache}/hypothesis",
        "COVERAGE_CORE": "ctrace",
        "OMP_NUM_THREADS": "1",
    }
    # The forked processes need these, and do not have to import them.
    for module in ("torch._dynamo", "scipy.stats", "hypothesis.extra.numpy", "zuko", "coverage"):
        importlib.import_module(module)
    mutants, selection = sample(args), Selection(trace_tests(args))
    finished = read(args.output)
    todo = [mutant for mutant in mutants if identity(mutant) not in finished]
    pids = []
    for job in range(args.jobs):
        pids.append(os.fork())
        if pids[-1] == 0:
            for mutant in todo[job :: args.jobs]:
                line = json.dumps(test_mutant(args, selection, mutant)) + "\n"
                with args.output.open("a") as file:  # one write, that jobs do not mix
                    file.write(line)
            os._exit(0)
    for pid in pids:
        os.waitpid(pid, 0)
    summarize(read(args.output))


if __name__ == "__main__":
    main()
