"""Kill runs at seeded random moments, run them again, and compare the output with that of an undisturbed run.

A history is one output folder. Its command is started, something is killed (a worker process, the driver, the driver with all
its workers, the store's connections; with `--nodes` a node of a Ray cluster, or its raylet), and the command is started again
until it exits with status 0. Then the shards must equal those of the undisturbed run byte for byte, and the rows of the ledger
must be equal. Only a clip that really crashes its worker (`poison`) may be quarantined. No note, lock, chunk or scratch file
may be left.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.machine import describe
from bench.process_tree import descendants
from bench.ray_nodes import RayNodes
from bench.tiny_videos import write_tiny_video
from curation import shards, storage
from curation.schema import Row
from pipelines import ledger
from pipelines.unit_files import FOLDERS, newest_manifest
from pipelines.verify import verify

MODES = ("worker", "driver", "group", "terminate", "poison", "outage", "ray-worker", "ray-driver")
NODE_MODES = ("node", "raylet", "ray-worker", "ray-driver", "ray-outage")
"""What is killed on a cluster of several nodes. A node that is killed is replaced by another."""
_SOURCES = 6
_KILLS_PER_HISTORY = 8
_MAX_RUNS = 25
_ORPHANS_S = 20.0
_BUCKET = "s3://chaos"
_OUR_BUG = 70  # the exit status of a run that ended with an exception of ours
# Changes what the runs do. CHAOS_POISON: the worker that encodes the first clip of source 3 dies, as by a segmentation fault in
# a codec. CHAOS_PACK: files of units are packed after every phase, from two files on, so that kills hit that too.
_CHANGES = """
import importlib.abc, importlib.machinery, os, signal, sys
def poison(module):
    real = module.encode
    def encode(uri, *rest):
        if uri.endswith("3.mp4"):
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(uri, *rest)
    module.encode = encode
def pack(module):
    module.MIN_UNITS = 2
class Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name, change):
        self.name, self.change = name, change
    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            self.change(module)
        spec.loader.exec_module = exec_module
        return spec
if os.environ.get("CHAOS_POISON") and "pipelines.worker" in sys.orig_argv:
    sys.meta_path.insert(0, Finder("curation.media.encode", poison))
if os.environ.get("CHAOS_PACK"):
    sys.meta_path.insert(0, Finder("pipelines.compact", pack))
"""


@dataclass
class History:
    """What happened to one output folder."""

    mode: str  # what is killed: one of MODES, or of NODE_MODES on a cluster
    seed: int
    packs: bool  # whether files of units are packed after each phase
    kills: int = 0
    runs: int = 0
    exit_codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # differences from the undisturbed run, and the end of the log


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the environment, one JSON line per history, and the totals. Exit with 1 if a history has problems."""
    parser = argparse.ArgumentParser(prog="gamecraft bench chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="total number of kills over all modes; default 100")
    parser.add_argument("--modes", help=f"what to kill, separated by commas; default {','.join(MODES)}, or those of --nodes")
    parser.add_argument(
        "--nodes", type=int, default=0, help=f"run on a Ray cluster of this many nodes; modes are then {','.join(NODE_MODES)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first history; default 0")
    parser.add_argument(
        "--pack", choices=("some", "all", "none"), default="some", help="which histories pack files of units after each phase"
    )
    options = parser.parse_args(arguments)
    known = NODE_MODES if options.nodes else MODES
    modes = options.modes.split(",") if options.modes else [*known]
    if unknown := set(modes) - set(known):
        parser.error(f"--modes: unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    if options.nodes < 0 or options.nodes == 1:
        parser.error("--nodes: the head has no cores, so a cluster has at least two nodes")
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        histories = list(_run_histories(Path(folder), modes, options.kills, options.seed, options.pack, options.nodes))
    bad = [history for history in histories if history.problems]
    print(f"{sum(h.kills for h in histories)} kills, {len(histories)} histories, {len(bad)} of them with problems")
    if bad:
        raise SystemExit(1)


def _run_histories(folder: Path, modes: Sequence[str], kills: int, seed: int, pack: str, nodes: int) -> Iterator[History]:
    """Run histories, one mode after the other, until the number of kills is reached. Every second round packs."""
    _make_sources(folder / "in")
    (folder / "changes").mkdir()
    (folder / "changes" / "sitecustomize.py").write_text(_CHANGES)
    references: dict[bool, tuple[str, float]] = {}
    done = 0
    with _run_store() as store:
        os.environ |= store.environment
        while done < kills:
            mode = modes[seed % len(modes)]
            poisoned = mode == "poison"
            if poisoned not in references:
                references[poisoned] = _run_undisturbed(folder, poisoned)
            packs = pack == "all" or (pack == "some" and seed // len(modes) % 2 == 1)
            history = History(mode, seed, packs)
            _run_history(folder, history, min(_KILLS_PER_HISTORY, kills - done), references[poisoned], store, nodes)
            print(json.dumps(vars(history)), flush=True)
            done += history.kills
            seed += 1
            yield history


def _make_sources(folder: Path) -> None:
    folder.mkdir()
    for seed in range(_SOURCES):
        write_tiny_video(folder / f"{seed}.mp4", seed)


def _command(source: str, out: str, runner: str) -> list[str]:
    gamecraft = str(Path(sys.executable).with_name("gamecraft"))
    return [gamecraft, "curate", source, "--out", out, "--recipe", "smoke", "--runner", runner, "--wait", "150"]


def _environment(folder: Path, temporary: Path, poisoned: bool, packs: bool) -> dict[str, str]:
    paths = [str(folder / "changes"), os.environ.get("PYTHONPATH", "")]
    changes = {"CHAOS_POISON": "1" if poisoned else "", "CHAOS_PACK": "1" if packs else ""}
    path = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return {**os.environ, **path, **changes, "TMPDIR": str(temporary), "RAY_AUTH_MODE": "disabled"}


def _run_undisturbed(folder: Path, poisoned: bool) -> tuple[str, float]:
    """Run without kills. Return the output folder and the duration in seconds."""
    out, began = folder / f"reference-{poisoned}", time.monotonic()
    temporary = folder / f"tmp-reference-{poisoned}"
    temporary.mkdir()
    environment = _environment(folder, temporary, poisoned, packs=False)
    subprocess.run(_command(str(folder / "in"), str(out), "local"), env=environment, check=True, stdout=subprocess.DEVNULL)
    return str(out), time.monotonic() - began


def _run_history(
    folder: Path, history: History, kills: int, reference: tuple[str, float], store: "_FlakyStore", nodes: int
) -> None:
    """Run one history and fill in what happened."""
    mode, seed, rng = history.mode, history.seed, random.Random(history.seed)
    temporary = folder / f"t{seed}"
    temporary.mkdir()
    environment = _environment(folder, temporary, mode == "poison", history.packs)
    source, out = str(folder / "in"), str(folder / f"out-{seed}")
    if mode.endswith("outage"):
        source, out = f"{_BUCKET}/in", f"{_BUCKET}/out-{seed}"
        store.fill(folder / "in")
    command = _command(source, out, "ray" if nodes or mode.startswith("ray") else "local")
    # The death of a worker or a node does not end a run, so one run can have several kills.
    longest_s = reference[1] * (0.4 if mode.endswith(("driver", "group", "terminate")) else 0.15)
    with (folder / f"log-{seed}").open("w") as log, ExitStack() as stack:
        cluster = stack.enter_context(closing(RayNodes(nodes, folder / f"r{seed}", environment))) if nodes else None
        if cluster:
            environment |= {"RAY_ADDRESS": cluster.address}
        while history.runs < _MAX_RUNS and (not history.exit_codes or history.exit_codes[-1]):
            history.runs += 1
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            while history.kills < kills and _outlives(driver, rng.uniform(0.3, longest_s)):
                history.kills += _kill_something(mode, driver, rng, store, temporary, cluster)
            history.exit_codes.append(driver.wait())
    _end_orphans(temporary)
    history.problems = list(_find_problems(out, reference[0], history)) + _leftover_scratch(temporary)
    words = (folder / f"log-{seed}").read_text().splitlines()
    if _OUR_BUG in history.exit_codes:
        end = next(number for number, line in enumerate(words) if "this is a bug in gamecraft" in line)
        history.problems += ["a run ended with a traceback", *words[max(0, end - 40) : end + 1]]
    elif history.problems or history.exit_codes[-1]:
        history.problems += words[-5:]


def _outlives(driver: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _kill_something(
    mode: str,
    driver: "subprocess.Popen[bytes]",
    rng: random.Random,
    store: "_FlakyStore",
    temporary: Path,
    cluster: RayNodes | None,
) -> int:
    """Kill something, depending on the mode. Return the number of kills, 0 or 1."""
    if mode.endswith("outage"):
        store.fail_for(rng.uniform(1, 8))
        return 1
    if cluster and mode in ("node", "raylet"):
        cluster.kill_node(rng, whole=mode == "node")
        return 1
    family = _processes_of(temporary) if cluster else descendants(driver.pid)
    victims = [driver.pid]
    if mode in ("worker", "poison"):
        victims = [rng.choice(workers)] if (workers := [pid for pid in family if _is_worker(pid)]) else []
    elif mode == "ray-worker":
        workers = [pid for pid in family if _is_worker(pid) or _is_ray_worker(pid)]
        victims = [rng.choice(workers)] if workers else []
    elif mode in ("group", "terminate"):
        victims += family
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM if mode == "terminate" else signal.SIGKILL)
    return int(bool(victims))


def _end_orphans(temporary: Path) -> None:
    """Wait for processes that a killed driver left behind, as Ray's end by themselves, and kill those that remain."""
    deadline = time.monotonic() + _ORPHANS_S
    while (orphans := _processes_of(temporary)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for pid in orphans:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _processes_of(temporary: Path) -> list[int]:
    """Return the processes that were started with this temporary folder."""
    pids = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"TMPDIR={temporary}\0".encode() in (entry / "environ").read_bytes():
                pids.append(int(entry.name))
    return pids


def _name(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _is_worker(pid: int) -> bool:
    return "pipelines.worker" in _name(pid)


def _is_ray_worker(pid: int) -> bool:
    """Whether a process is a worker of Ray, idle or not. Without its agents a node ends, which the modes of nodes do."""
    return re.match(r"ray::(?!\w*Agent)", _name(pid)) is not None


def _find_problems(out: str, reference: str, history: History) -> Iterator[str]:
    """Yield differences from the undisturbed run, and files that should not exist."""
    ours, theirs = (_shards(uri) for uri in (out, reference))
    if ours != theirs:
        yield f"shards differ: {sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))}"
    if _rows(out) != _rows(reference):
        yield "rows of clips differ"
    status, expected = ({Path(v["uri"]).name: v["status"] for v in ledger.videos(uri).to_pylist()} for uri in (out, reference))
    if status != expected:
        yield f"sources differ: {status}"
    quarantined = [row["clip_id"] for row in ledger.clips(out).to_pylist() if (row["reject"] or "").startswith("quarantined")]
    if len(quarantined) != int(history.mode == "poison"):
        yield f"{len(quarantined)} clips are quarantined instead of {int(history.mode == 'poison')}"
    yield from (f"verify: {problem.kind}: {problem.uri} {problem.words}" for problem in verify(out, deep=True).problems)
    files, expected_files = (_files_per_folder(uri, history.packs) for uri in (out, reference))
    if history.packs and not newest_manifest(out).number:
        yield "nothing was packed"
    if files != expected_files:
        yield f"files differ: {files} instead of {expected_files}"
    listed = {shard["name"] for shard in (shards.read_dataset(out) or {"shards": []})["shards"]}
    if listed != set(shards.list_committed(out)):
        yield "dataset.json lists other shards"


def _shards(out: str) -> dict[str, bytes]:
    folder = storage.join(out, "shards")
    return {name: storage.read(storage.join(folder, name)) for name in storage.names(folder)}


def _rows(out: str) -> list[Row]:
    """Return the rows without the columns that differ between runs.

    Names of units contain a hash of the source's version, which is a modification time or an ETag.
    """
    excluded = ("source_uri", "source_token", "unit_id")
    return [{k: v for k, v in row.items() if k not in excluded} for row in ledger.clips(out).to_pylist()]


def _files_per_folder(out: str, packs: bool) -> dict[str, int]:
    """Count the files in each folder of an output, hidden files of a local folder included, but for the cache of embeddings.

    packs: without the files of units, segments and manifests, whose number depends on when a run was killed. `verify` has
    checked those.
    """
    uris = [entry.uri for entry in storage.list_files(out)]
    if not storage.is_s3(out):
        uris = [str(path) for path in Path(out).rglob("*") if path.is_file()]
    counts: dict[str, int] = {}
    for uri in uris:
        folder = uri[len(out) :].rpartition("/")[0].lstrip("/")
        if folder.startswith("sidecar/embeddings/"):  # a cache, in as many files as workers embedded new texts
            continue
        if packs and (folder in FOLDERS or folder.partition("/")[0] in ("segments", "manifests")):
            continue
        counts[folder] = counts.get(folder, 0) + 1
    return counts


def _leftover_scratch(temporary: Path) -> list[str]:
    """Return a problem if scratch files are left that no process will use any more."""
    leftover = [path.name for path in temporary.iterdir() if path.name.startswith("gamecraft")]
    return [f"left in the temporary folder: {leftover}"] if leftover else []


class _FlakyStore:
    """An S3 server behind a relay that can cut its connections."""

    def __init__(self, port: int) -> None:
        self._server_port, self._open, self._cut = port, set[socket.socket](), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", **keys}

    def fill(self, folder: Path) -> None:
        """Upload the sources to the bucket."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
                              aws_access_key_id="chaos", aws_secret_access_key="chaos")  # fmt: skip
        bucket = _BUCKET.removeprefix("s3://")
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.iterdir()):
            client.put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())

    def fail_for(self, seconds: float) -> None:
        """Cut all connections, and refuse new ones for this time."""
        self._cut.set()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._cut.clear()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._cut.is_set():
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._server_port))
            for sender, receiver in ((client, server), (server, client)):
                self._open.add(sender)
                threading.Thread(target=self._pump, args=(sender, receiver), daemon=True).start()

    def _pump(self, sender: socket.socket, receiver: socket.socket) -> None:
        with suppress(OSError):
            while data := sender.recv(1 << 16):
                receiver.sendall(data)
        for end in (sender, receiver):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.discard(sender)
        sender.close()


@contextmanager
def _run_store() -> Iterator[_FlakyStore]:
    """Run a store in a separate process. Its data are deleted at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield _FlakyStore(port)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
