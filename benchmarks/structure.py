"""The shape of the code: its length, its long functions, the way from the command to the batches.

All but the last two figures are read from the source tree, which may be another checkout.  With a
finished run, `evaluate` is watched: which files it hands the run through, and how often it asks the
tracking store for that run.

    python -m benchmarks.structure [--root FOLDER] [--run-id RUN --data-dir FOLDER]
"""

import argparse
import ast
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("dermalyze", "serving")
MOST_PARAMETERS = 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(root: Path) -> dict[str, tuple[Path, ast.Module]]:
    """Read the source tree: name of a module -> its file and syntax tree."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): (
            path.relative_to(root),
            ast.parse(path.read_text(encoding="utf-8")),
        )
        for path in paths
    }


def functions_of(tree: ast.AST) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def is_command(function: Function) -> bool:
    """Return whether click calls a function with its options."""
    texts = [ast.unparse(decorator) for decorator in function.decorator_list]
    return any("command(" in text for text in texts)


def num_parameters(function: Function) -> int:
    """Count the parameters that a caller gives; `self` is none."""
    of = function.args
    names = [a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def called_names(node: ast.AST) -> list[str]:
    """Return every name that is mentioned, be it called here or handed on."""
    found = []
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            found.append(part.id)
        elif isinstance(part, ast.Attribute):
            found.append(part.attr)
    return found


def called_once(tree: ast.Module) -> tuple[int, int]:
    """Count the private functions of a module that one place mentions, and all of them."""
    mentions = Counter(called_names(tree))
    private = {f.name for f in tree.body if isinstance(f, Function) and f.name.startswith("_")}
    return sum(mentions[name] == 1 for name in private), len(private)


def calls(found: dict[str, tuple[Path, ast.Module]]) -> dict[str, set[str]]:
    """Return which functions of the project each function mentions, by `module:name`."""
    graph: dict[str, set[str]] = {}
    for module, (_, tree) in found.items():
        own = {f.name for f in tree.body if isinstance(f, Function)}
        for function in tree.body:
            if not isinstance(function, Function):
                continue
            known = {name: f"{module}:{name}" for name in own}
            for part in (*tree.body, *ast.walk(function)):
                if isinstance(part, ast.ImportFrom) and part.module in found:
                    known |= {a.asname or a.name: f"{part.module}:{a.name}" for a in part.names}
            graph[f"{module}:{function.name}"] = {
                known[name] for name in called_names(function) if name in known
            }
    return graph


def way(graph: dict[str, set[str]], start: str, end: str) -> list[str]:
    """Return the shortest way from one function to another."""
    ways = {start: [start]}
    todo = [start]
    for here in todo:
        for there in sorted(graph.get(here, ())):
            if there not in ways:
                ways[there] = [*ways[here], there]
                todo.append(there)
    return ways[end]


def watched(run_id: str, data_dir: Path) -> tuple[set[str], int]:
    """Evaluate a run; return the files that it goes through, and how often the store is asked."""
    from mlflow.tracking._tracking_service.client import TrackingServiceClient

    from dermalyze.tracking import StoredRun
    from dermalyze.workflows.evaluate import evaluate_run
    from dermalyze.workflows.finished_run import FinishedRun
    from dermalyze.workflows.run_context import Here

    files: set[str] = set()
    root = str(Path(__file__).parents[1])
    requests = 0
    real = TrackingServiceClient.get_run

    def get_run(self: Any, asked: str) -> Any:
        nonlocal requests
        requests += asked == run_id
        return real(self, asked)

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event != "call" or not path.startswith(root) or "site-packages" in path:
            return
        names = frame.f_code.co_varnames[
            : frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
        ]
        for value in (frame.f_locals.get(name) for name in names):
            if isinstance(value, FinishedRun | StoredRun) or (
                isinstance(value, str) and value == run_id
            ):
                files.add(str(Path(path).relative_to(root)))

    TrackingServiceClient.get_run = get_run  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as output:
        sys.setprofile(profile)
        try:
            evaluate_run(run_id, "test", output=Path(output), here=Here(data_dir=data_dir))
        finally:
            sys.setprofile(None)
            TrackingServiceClient.get_run = real  # type: ignore[method-assign]
    return {name for name in files if name.startswith(PACKAGES)}, requests


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    options.add_argument("--run-id")
    options.add_argument("--data-dir", type=Path)
    chosen = options.parse_args()
    found = modules(chosen.root)
    sources = {module: (chosen.root / path).read_text() for module, (path, _) in found.items()}
    functions = [(path, f) for path, tree in found.values() for f in functions_of(tree)]
    longest = max(functions, key=lambda pair: (pair[1].end_lineno or 0) - pair[1].lineno)
    many = [
        f"{path}:{function.name}"
        for path, function in functions
        if num_parameters(function) > MOST_PARAMETERS and not is_command(function)
    ]
    once, private = map(sum, zip(*(called_once(tree) for _, tree in found.values()), strict=True))
    hops = way(calls(found), "dermalyze.cli.train:train", "dermalyze.training.loop:_train_epoch")
    length = (longest[1].end_lineno or 0) - longest[1].lineno + 1
    print(f"product lines: {sum(text.count(chr(10)) for text in sources.values()):,}")
    print(f"longest function: {length} lines ({longest[0]}:{longest[1].name})")
    print(f"functions with more than {MOST_PARAMETERS} parameters: {len(many)}")
    print("".join(f"  {name}\n" for name in many), end="")
    print(f"private functions that one place calls: {once} of {private} ({once / private:.0%})")
    print(f"hops from the train command to the batches: {len(hops) - 1}")
    print(f"  {' -> '.join(hops)}")
    if chosen.run_id:
        files, requests = watched(chosen.run_id, chosen.data_dir)
        print(f"files that evaluate hands the run through: {len(files)}")
        print("".join(f"  {name}\n" for name in sorted(files)), end="")
        print(f"requests for the run: {requests}")


if __name__ == "__main__":
    main()
