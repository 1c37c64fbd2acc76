"""`make mutants`: mutmut, with one process for all mutants.

mutmut forks a process for each. A process that has used JAX cannot be forked, and a fresh one takes longer
to start than most mutants take to be told. But a mutant is chosen when its function is called: it is enough
to forget what JAX has traced.
"""

import itertools
import multiprocessing
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false
# mutmut comes with the extra `mutants` alone.
import mutmut.__main__
from mutmut.mutation.trampoline import get_mutant_under_test, set_mutant_under_test
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.workers.isolation import ForkServerRunner, recv_message, send_message

TIMEOUT = 24  # mutmut's exit code for it
CHECK_EVERY = 50  # mutants
# A mutant is shown the tests that run its function until they take so long, each compiling all that it needs: first
# those that noticed other mutants of the function or its module, most often first, then the quickest. One that is
# noticed mostly is by the first of them, and one that is not would take minutes.
SECONDS = 30


class Failures:
    """A pytest plugin: forgets what was traced, and remembers what failed."""

    def __init__(self) -> None:
        self.failed: set[str] = set()

    def pytest_sessionstart(self) -> None:
        forget()

    def pytest_runtest_setup(self) -> None:
        if get_mutant_under_test() == "stats":  # every test must trace all that it runs, to be known for it
            forget()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed.add(report.nodeid)


def forget() -> None:
    import jax  # not in the parent, which forks

    jax.clear_caches()
    ours = [module for name, module in sys.modules.items() if name.partition(".")[0] == "pdt_optax"]
    for x in itertools.chain.from_iterable(vars(module).values() for module in ours):
        if hasattr(x, "cache_clear"):
            x.cache_clear()


class Runner(PytestRunner):
    def __init__(self) -> None:
        super().__init__()
        self.failures = Failures()

    def execute_pytest(self, params: list[str], **kwargs: Any) -> int:
        quick = ["-p", "no:unraisableexception"]  # which collects garbage five times, a second a mutant
        return super().execute_pytest(
            params + quick, plugins=[*kwargs.pop("plugins", ()), self.failures], **kwargs
        )


def work(connection: Any) -> None:
    """Answers the names of mutants, and of tests, with exit codes of pytest."""
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    runner = Runner()
    runner.warm_up()
    while True:
        name, tests = connection.recv()
        set_mutant_under_test(name)
        code = runner.run_tests(mutant_name=name, tests=tests)
        connection.send((code, runner.failures.failed))
        runner.failures.failed = set()


def seconds(test: str) -> float:
    return state().duration_by_test.get(test, 0)


def within(budget: float, tests: Sequence[str], *noticed: Counter[str]) -> list[str]:
    """Those to show, in order: as many as take no longer, and at least one."""
    best = sorted(tests, key=lambda test: (*(-counter[test] for counter in noticed), seconds(test)))
    spent = itertools.accumulate(map(seconds, best))
    return [test for test, so_far in zip(best, spent, strict=True) if so_far <= budget] or best[:1]


class OneProcess(ForkServerRunner):
    """One worker, replaced when a mutant hangs or breaks it."""

    def _forkserver_main(self, work_fd: int, result_fd: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.worker: Any = None
        # Of a function, and of a module: by which tests.
        noticed: dict[str, Counter[str]] = defaultdict(Counter)
        told, killers = 0, set()
        while True:
            try:
                name, tests, _ = recv_message(work_fd)
            except EOFError:
                break
            function = name.rpartition("__mutmut_")[0]
            module = function.rpartition(".")[0]
            shown = within(SECONDS, tests, noticed[function], noticed[module])
            code, failed = self._run(name, shown, 15 + 3 * sum(map(seconds, shown)))
            send_message(result_fd, (name, code))
            noticed[function].update(failed)
            noticed[module].update(failed)
            told, killers = told + 1, killers | failed
            if told % CHECK_EVERY == 0:
                self._check(killers)
                killers = set()
        self._check(killers)

    def _run(self, name: str, tests: Sequence[str], seconds: float) -> tuple[int, set[str]]:
        if self.worker is None:
            self.worker, end = multiprocessing.Pipe()
            self.process = multiprocessing.Process(target=work, args=[end], daemon=True)
            self.process.start()
            end.close()
        self.worker.send((name, list(tests)))
        try:
            if self.worker.poll(seconds):
                return self.worker.recv()
            code = TIMEOUT
        except EOFError:
            code = -signal.SIGSEGV
        self.process.kill()
        self.worker = None
        return code, set()

    def _check(self, killers: set[str]) -> None:
        """What killed mutants must pass without one, or a mutant has left something behind."""
        if killers and (code := self._run("", sorted(killers), 3600)[0]):
            raise RuntimeError(f"These fail without a mutant: {sorted(killers)}. pytest ended with {code}.")


if __name__ == "__main__":
    mutmut.__main__.get_mutant_runner = lambda children=1: OneProcess(1, Runner, {})
    mutmut.__main__.cli()
