"""Which of the mutants that no test noticed the type checker refuses: `make mutants`, then this.

Each becomes a module of its own, its original with one function replaced, in a copy of the package; pyright reads
them all at once. mutmut can ask a type checker, too, but of all its mutants of a module in one file, a minute for 180 of them.
"""

import ast
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments import command

MUTANTS = Path("mutants")
PACKAGE = "pdt_optax"


def functions(module: Path) -> dict[tuple[str | None, str], ast.FunctionDef]:
    """Of a module and of its classes, by the name of the class, None for the module's own, and the function's."""
    found = {}
    for node in ast.parse(module.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        of = node.name if isinstance(node, ast.ClassDef) else None
        found |= {(of, x.name): x for x in inside if isinstance(x, ast.FunctionDef)}
    return found


def written_out(
    name: str, all_mutants: list[str], mutants: dict[str, ast.FunctionDef], original: Path
) -> str:
    """The original module with the function of a mutant in place of its own."""
    mangled = name.rpartition(".")[2]
    *of, function = mangled.rpartition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").split("ǁ")
    new, old = mutants[mangled], functions(original)[of[0] if of else None, function]
    body = textwrap.dedent("\n".join(all_mutants[new.lineno - 1 : new.end_lineno])).replace(mangled, function)
    lines = original.read_text().splitlines()
    lines[old.lineno - 1 : old.end_lineno] = textwrap.indent(body, " " * old.col_offset).splitlines()
    return "\n".join(lines) + "\n"


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    command.Parser("benchmarks.mutant_types", __doc__).parse_args(argv)
    metas = sorted(MUTANTS.glob(f"{PACKAGE}/*.meta"))
    if not metas:
        raise command.RefusedError(f"There are no mutants in {MUTANTS.absolute()}: run `make mutants` first.")
    with tempfile.TemporaryDirectory() as folder:
        copy, names = Path(folder) / PACKAGE, {}
        for path in Path(PACKAGE).rglob("*.py"):
            target = copy / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        for meta in metas:
            codes = json.loads(meta.read_text())["exit_code_by_key"]
            source = meta.with_suffix("")
            lines = source.read_text().splitlines()
            mutants = {name: x for (_, name), x in functions(source).items()}
            for name in (name for name, code in codes.items() if code == 0):
                text = written_out(name, lines, mutants, Path(PACKAGE) / source.name)
                alone = copy / f"{source.stem}__{len(names)}.py"
                alone.write_text(text)
                names[alone.name] = name
        pyright = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", folder]
        told = json.loads(subprocess.run(pyright, cwd=folder, capture_output=True, text=True).stdout)
    errors = [Path(x["file"]).name for x in told["generalDiagnostics"] if x["severity"] == "error"]
    if others := {*errors} - names.keys():
        raise command.RefusedError(
            f"pyright finds errors without a mutant, too: in {', '.join(sorted(others))}."
        )
    refused = sorted({names[x] for x in errors})
    print("\n".join(refused))
    print(f"{len(refused)} of {len(names)} that no test noticed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
