"""What a forked child inherits from its parent."""

import os
import threading
import time

from curation.processes import ProcessLocal, per_process


class Opened:
    """Ends the process that releases it."""

    def __del__(self):
        os._exit(9)


def in_child(do) -> int:
    """Return the exit code of a forked child that exits with `do()`."""
    if not (pid := os.fork()):
        code = 99
        try:
            code = do()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_makes_its_own_and_neither_uses_nor_closes_its_parents():
    own = ProcessLocal()
    own.put(Opened())
    parents = own.get()

    def child():
        if own.get() is not None:
            return 1
        own.put("mine")
        if own.get() != "mine":
            return 2
        own.put(None)
        return 0 if own.get() is None else 3

    del parents
    assert in_child(child) == 0
    assert isinstance(own.get(), Opened)
    Opened.__del__ = lambda self: None


def test_one_value_a_process_and_one_for_all_of_its_threads():
    made = []

    @per_process
    def value():
        time.sleep(0.01)
        made.append(os.getpid())
        return object()

    seen = []
    threads = [threading.Thread(target=lambda: seen.append(value())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == len(made) == 1
    assert in_child(lambda: int(value() in seen or value() is not value())) == 0
    assert value() is seen[0]
    value.cache_clear()
    assert value() is not seen[0]


def test_a_child_forked_while_a_thread_makes_its_value_does_not_wait_for_it():
    started, go_on = threading.Event(), threading.Event()

    @per_process
    def value():
        started.set()
        if os.getpid() == parent:
            go_on.wait()
        return os.getpid()

    parent = os.getpid()
    thread = threading.Thread(target=value)
    thread.start()
    started.wait()
    assert in_child(lambda: int(value() != os.getpid())) == 0
    go_on.set()
    thread.join()
    assert value() == parent
