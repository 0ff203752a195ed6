"""Runs tests on faults, each in a fork of a process that has collected the tests.

The fork replaces the code of the faulty function, and runs those tests that call it, the fastest
and the most successful first. If a fault is in what runs on import, the fork imports and collects
again.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings

from tests.thorough.faults import Fault

T = TypeVar("T")
OUTPUT = Path("output.txt")  # of the forks
PATIENCE = 100  # a fault that makes a test this many times slower than its first inputs is killed
FIRST_INPUTS = 3  # that Hypothesis draws for each law, without a fault
Found = dict[tuple[str, int], str | None]  # by file and number of a fault, the test that kills it
Key = tuple[str, str, int, int]  # file, name, line and a hash of the positions of a function's code


class Learnt(NamedTuple):
    """What a run without a fault found for each test, by its id."""

    seconds: dict[str, float]
    calls: dict[str, set[Key]]  # code of the files that it calls
    failed: set[str]


class Session:
    """A plugin that hands pytest's collected tests to a function, and keeps which fail."""

    def __init__(self, loop: Callable[[Session], None]) -> None:
        self.loop, self.items, self.failed = loop, list[pytest.Item](), list[str]()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Replaces pytest's own loop."""
        if session.testsfailed:
            raise session.Interrupted("collection fails")
        self.items = session.items
        self.loop(self)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keeps the tests that fail."""
        if report.failed:
            self.failed.append(report.nodeid)

    def run(self, item: pytest.Item, limit: float = 0.0) -> bool:
        """Whether a test passes; beyond a limit of seconds, the process ends."""
        signal.setitimer(signal.ITIMER_REAL, limit)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return not self.failed

    def first_failure(self, items: list[pytest.Item], learnt: Learnt) -> str | None:
        """The first test that fails."""
        for item in items:
            if not self.run(item, 20.0 + PATIENCE * learnt.seconds.get(item.nodeid, 0.0)):
                return item.nodeid
        return None


class Search:
    """The state of a search: its files, their tests, and how useful each test was so far."""

    def __init__(self, files: list[Path], tests: list[str], end: float) -> None:
        self.tests, self.end = tests, end
        self.places = {str(Path.cwd() / file) for file in files}
        self.learnt = Learnt({}, {}, set())
        self.imported: set[Key] = set()  # code that runs before the first test
        self.kills = Counter[str]()

    def fast(self, drawn: list[Fault]) -> tuple[Found, Learnt, Counter[str]]:
        """In a fork: collects once; returns which test kills each fault that it could run."""
        found: Found = {}

        def loop(session: Session) -> None:
            sys.settrace(None)
            self.imported = {_key(code) for code in imported.values()}
            learnt = in_fork(lambda: self._learn(session))
            if learnt is None:
                raise SystemExit("the tests stop without a fault")
            self.learnt = learnt
            functions = [f for f in _functions() if f.__code__.co_filename in self.places]
            for fault in drawn:
                if time.monotonic() > self.end:
                    return
                new = self._replacements(fault, functions)
                if new is None:
                    continue
                items = [i for i in self._order(session) if self.learnt.calls[i.nodeid] & set(new)]

                def run(
                    new: dict[Key, CodeType] = new, items: list[pytest.Item] = items
                ) -> str | None:
                    session.failed = []
                    for function in functions:
                        if (key := _key(function.__code__)) in new:
                            function.__code__ = new[key]
                    return session.first_failure(items, learnt)

                found[str(fault.file), fault.number] = self._killer(run)

        imported: dict[int, CodeType] = {}
        sys.settrace(self._tracer(imported))
        _pytest(self.tests, Session(loop))
        return found, self.learnt, self.kills

    def slow(self, fault: Fault) -> str | None:
        """Imports the file with the fault; the test that kills it, if any."""
        source = fault.file.read_text()
        fault.file.write_text(ast.unparse(fault.tree()))
        killer = self._killer(self._anew)
        fault.file.write_text(source)
        return killer

    def _anew(self) -> str | None:
        killer: list[str | None] = ["the import"]

        def loop(session: Session) -> None:
            killer[0] = session.first_failure(self._order(session), self.learnt)

        _pytest(self.tests, Session(loop))
        return killer[0]

    def _killer(self, run: Callable[[], str | None]) -> str | None:
        """Runs a faulty fork; one that ends early is killed."""
        survived = "(none)"
        killer = in_fork(lambda: run() or survived) or "its end"
        if killer == survived:
            return None
        self.kills[killer] += 1
        return killer

    def _order(self, session: Session) -> list[pytest.Item]:
        """The tests that pass without a fault; what killed most per second comes first."""
        seconds = self.learnt.seconds
        known = [i for i in session.items if i.nodeid not in self.learnt.failed]
        return sorted(known, key=lambda i: seconds.get(i.nodeid, 0.0) / (1 + self.kills[i.nodeid]))

    def _learn(self, session: Session) -> Learnt:
        learnt = Learnt({}, {}, set())
        for item in session.items:
            start, session.failed = time.monotonic(), []
            called: dict[int, CodeType] = {}
            _draw_fewer(item)
            sys.settrace(self._tracer(called))
            if not session.run(item):
                learnt.failed.add(item.nodeid)
            sys.settrace(None)
            learnt.seconds[item.nodeid] = time.monotonic() - start
            learnt.calls[item.nodeid] = {_key(code) for code in called.values()}
        return learnt

    def _tracer(self, called: dict[int, CodeType]) -> Callable[[FrameType, str, Any], None]:
        def trace(frame: FrameType, event: str, argument: object) -> None:
            if frame.f_code.co_filename in self.places:
                called[id(frame.f_code)] = frame.f_code

        return trace

    def _replacements(
        self, fault: Fault, functions: list[FunctionType]
    ) -> dict[Key, CodeType] | None:
        """New code for functions; None if the fault takes effect on import."""
        where = str(Path.cwd() / fault.file)
        trees: list[Any] = [fault.file.read_text(), fault.tree()]
        pairs = list(_pairs(*(compile(tree, where, "exec", dont_inherit=True) for tree in trees)))
        if any(_key(old) in self.imported for old, new in pairs if not _same(old, new)):
            return None
        existing = {_key(f.__code__) for f in functions}
        changed = [(old, new) for old, new in pairs if old != new and _key(old) in existing]
        if any(old.co_freevars != new.co_freevars for old, new in changed):
            return None
        return {_key(old): new for old, new in changed} or None


def in_fork(run: Callable[[], T]) -> T | None:
    """What a function returns in a fork; None if that ends early."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        sender.send(run())
        os._exit(0)

    process = context.Process(target=work)
    process.start()
    sender.close()
    result: T | None = None
    with contextlib.suppress(EOFError):
        result = receiver.recv()
    process.kill()
    process.join()
    return result


def _pytest(tests: list[str], session: Session) -> None:
    """Runs in a fork: imports the copy in the current folder, writes nothing."""
    sys.dont_write_bytecode = True  # two faults within a second would share a .pyc file
    for name in [n for n in sys.modules if n.split(".")[0] in {"crossfuse", "examples"}]:
        raise RuntimeError(f"{name} was imported before the copy")
    for name in [n for n in sys.modules if n.split(".")[0] == "tests"]:
        if not name.startswith("tests.thorough"):  # whose classes the pipes carry
            del sys.modules[name]
    sys.path[:0] = [str(Path.cwd() / "src"), str(Path.cwd())]
    os.environ["PYTHONPATH"] = str(Path.cwd() / "src")  # of the processes that tests start
    with OUTPUT.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    late = "ignore::pytest.PytestAssertRewriteWarning"  # Hypothesis is imported before
    options = ["-q", "--tb=no", "-m", "not slow", "-p", "no:cacheprovider", "-W", late]
    pytest.main([*options, *tests], plugins=[session])
    imported = getattr(sys.modules.get("crossfuse"), "__file__", None) or str(Path.cwd())
    if not Path(imported).is_relative_to(Path.cwd()):
        raise RuntimeError("the tests did not import the copy")


def _draw_fewer(item: pytest.Item) -> None:
    """Draws the first inputs only, if the test is a law."""
    test: Any = getattr(item, "obj", None)
    usual = getattr(test, "_hypothesis_internal_use_settings", None)
    if usual is not None:
        fewer = settings(usual, max_examples=FIRST_INPUTS)
        getattr(test, "__func__", test)._hypothesis_internal_use_settings = fewer


def _functions() -> Iterator[FunctionType]:
    return (f for f in gc.get_objects() if type(f) is FunctionType)


def _key(code: CodeType) -> Key:
    return code.co_filename, code.co_qualname, code.co_firstlineno, hash(tuple(code.co_positions()))


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """A code object and those in it, with their counterparts."""
    yield old, new
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (old, new)]
    if len(inner[0]) == len(inner[1]):
        for one, other in zip(*inner, strict=True):
            yield from _pairs(one, other)


def _same(old: CodeType, new: CodeType) -> bool:
    """Whether two code objects are equal but for those in them."""
    alone = [
        code.replace(co_consts=tuple(c for c in code.co_consts if not isinstance(c, CodeType)))
        for code in (old, new)
    ]
    return alone[0] == alone[1]
