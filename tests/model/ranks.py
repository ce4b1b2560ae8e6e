"""Programs of tests in several ranks on this machine."""

import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Ranks:
    """A program in so many ranks, which do one task after another: to start them takes longer than most tasks."""

    def __init__(self, program, count, errors):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
        every = {**os.environ, **where, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        self._errors = errors
        with errors.open("a") as stderr:
            self._ranks = [
                subprocess.Popen(
                    [sys.executable, str(program)],
                    env={**every, "RANK": str(rank)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                )
                for rank in range(count)
            ]

    def do(self, *words):
        """Rank 0's answer. AssertionError with the words of an error in the task, or the end of stderr where a rank ended."""
        task = json.dumps([word if isinstance(word, int) else str(word) for word in words]) + "\n"
        for rank in self._ranks:
            rank.stdin.write(task)
            rank.stdin.flush()
        line = self._ranks[0].stdout.readline()
        assert line, self._errors.read_text()[-1500:]
        answer = json.loads(line)
        assert not (isinstance(answer, dict) and "error" in answer), answer["error"]
        return answer

    def stop(self):
        for rank in self._ranks:
            rank.stdin.close()
        for rank in self._ranks:
            rank.wait(60)
            rank.stdout.close()


@contextmanager
def ranks_of(program, tmp_path_factory):
    """Yield a function: count -> that many ranks of a program, started once. They end with the context."""
    running = {}

    def of(count):
        if count not in running:
            running[count] = Ranks(program, count, tmp_path_factory.mktemp("ranks") / "stderr.txt")
        return running[count]

    yield of
    for each in running.values():
        each.stop()
