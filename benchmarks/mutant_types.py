"""Which of the mutants that no test noticed the type checker refuses: `make mutants`, then this.

Each becomes a module of its own, its original with one function replaced, in a copy of the package; pyright reads
them all at once. mutmut can ask a type checker, too, but of all its mutants of a module in one file, a minute for 180 of them.
"""

import ast
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path

from experiments import command

MUTANTS = Path("mutants")
PACKAGE = "pdt_optax"
NOT_NOTICED = (0, 33)  # mutmut's exit codes: all tests passed, and no test ran the function


def functions(module: Path) -> dict[tuple[str | None, str], ast.FunctionDef]:
    """Of a module and of its classes, by the name of the class, None for the module's own, and the function's."""
    found = {}
    for node in ast.parse(module.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        of = node.name if isinstance(node, ast.ClassDef) else None
        found |= {(of, x.name): x for x in inside if isinstance(x, ast.FunctionDef)}
    return found


def replaced(mutant: ast.FunctionDef, mutants: list[str], old: ast.FunctionDef, original: list[str]) -> str:
    """The original module, in lines as are all mutants of it, with one of them in place of its function."""
    body = textwrap.dedent("\n".join(mutants[mutant.lineno - 1 : mutant.end_lineno]))
    new = textwrap.indent(body.replace(mutant.name, old.name), " " * old.col_offset)
    return "\n".join([*original[: old.lineno - 1], new, *original[old.end_lineno :], ""])


def write_out(metas: Sequence[Path], folder: Path) -> dict[str, str]:
    """Each mutant that no test noticed as a module in a folder: their names by those of the files."""
    names = {}
    for meta in metas:
        source = meta.with_suffix("")
        original = Path(PACKAGE) / source.name
        lines, original_lines = (x.read_text().splitlines() for x in (source, original))
        mutants = {name: x for (_, name), x in functions(source).items()}
        originals = functions(original)
        codes = json.loads(meta.read_text())["exit_code_by_key"]
        for name in (name for name, code in codes.items() if code in NOT_NOTICED):
            mangled = name.rpartition(".")[2]
            of, _, function = mangled.rpartition("__mutmut_")[0].removeprefix("x").rpartition("ǁ")
            old = originals[of[1:], function] if of else originals[None, function[1:]]
            alone = folder / f"{source.stem}__{len(names)}.py"
            alone.write_text(replaced(mutants[mangled], lines, old, original_lines))
            names[alone.name] = name
    return names


@command.line
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    command.Parser("benchmarks.mutant_types", __doc__).parse_args(argv)
    metas = sorted(MUTANTS.glob(f"{PACKAGE}/*.meta"))
    if not metas:
        raise command.RefusedError(f"There are no mutants in {MUTANTS.absolute()}: run `make mutants` first.")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PACKAGE
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        names = write_out(metas, copy)
        print(f"pyright reads {len(names)} modules.", file=sys.stderr)
        pyright = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", folder]
        done = subprocess.run(pyright, cwd=folder, capture_output=True, text=True)
    try:
        told = json.loads(done.stdout)
    except ValueError:
        raise command.RefusedError(
            f"pyright does not run here: {(done.stderr or done.stdout).strip()}"
        ) from None
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
