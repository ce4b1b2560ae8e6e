"""What start_ray and preflight do with addresses and simulated clusters, and on_cluster with errors. No cluster is started."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

ray = pytest.importorskip("ray")

from ray.exceptions import ActorDiedError, ObjectLostError, ObjectStoreFullError, RayTaskError, WorkerCrashedError  # noqa: E402

from curation.errors import InputError, Unavailable  # noqa: E402
from curation.vlm import EngineSettings, VlmSettings  # noqa: E402
from pipelines import recipes, runners  # noqa: E402
from pipelines.phases import Phase  # noqa: E402


@contextmanager
def service(says):
    """Run a server that sends these bytes on each connection; None: it sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve():
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return
                if says is not None:
                    held[-1].recv(100)
                    held[-1].sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        for connection in held:
            connection.close()


@pytest.fixture
def started(monkeypatch):
    """Collect the calls of ray.init."""
    calls = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: calls.append(1))
    monkeypatch.setattr(runners, "_PROBE_TIMEOUT_S", 0.2)
    return calls


def refusal(address, monkeypatch) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match="RAY_ADDRESS is") as caught:
        runners.start_ray()
    return str(caught.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_an_address_where_nothing_of_ray_answers_is_one_line(form, started, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = closed.getsockname()[1]
    words = refusal(form.format(nobody), monkeypatch)
    assert words.startswith(
        f"RAY_ADDRESS is {form.format(nobody)}: no Ray head answers there ([Errno 111] Connection refused). "
    )
    assert words.endswith(
        "Check the address and that the cluster runs (`ray status` there), or unset RAY_ADDRESS to use this machine's cores"
    )
    with service(b"HTTP/1.1 400 Bad Request\r\n\r\n") as web:
        assert "answers there (another service answers)" in refusal(form.format(web), monkeypatch)
    with service(None) as silent:
        assert "answers there (timed out)" in refusal(form.format(silent), monkeypatch)
    assert "\n" not in words
    assert started == []


def test_a_name_that_is_not_known_is_said(started, monkeypatch):
    assert "no Ray head answers there ([Errno -" in refusal("no-such-host.invalid:6379", monkeypatch)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "https://head:8265", "ray://:10001", "head:port", "head:99999", ":6379"]
)
def test_an_address_of_another_form_is_explained(address, started, monkeypatch):
    assert refusal(address, monkeypatch) == (
        f"RAY_ADDRESS is {address}: it must be HOST:PORT of a Ray head (port 6379 by default), ray://HOST:10001, auto or "
        "local; an http:// address is the dashboard, for `ray job submit`"
    )
    assert started == []


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto", "local", ""])
def test_what_may_be_ray_is_left_to_ray(form, started, monkeypatch):
    with service(bytes([0, 0, 18, 4, 0, 0, 0, 0, 0]) + bytes(18)) as grpc:
        monkeypatch.setenv("RAY_ADDRESS", form.format(grpc))
        runners.start_ray()
    assert started == [1]


def test_what_ray_itself_refuses_is_one_line(started, monkeypatch):
    def refuse(**_):
        raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")

    monkeypatch.setattr(ray, "init", refuse)
    words = refusal("auto", monkeypatch)
    said = "Could not find any running Ray instance. Please specify the one to connect to."
    assert words == f"RAY_ADDRESS is auto: Ray cannot be started: {said}"


# Simulated clusters


GIB = 1 << 30
CORES, GPUS = {"CPU": 64.0, "memory": 200 * GIB}, {"CPU": 16.0, "GPU": 4.0, "memory": 200 * GIB}


@pytest.fixture
def cluster(monkeypatch):
    """Simulate nodes, and an autoscaler that may add groups of nodes: (resources, max count)."""

    def describe(*nodes, groups=None, scales=False):
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        kinds = [SimpleNamespace(resources=resources, max_count=most) for resources, most in groups or []]
        config = SimpleNamespace(node_group_configs=kinds) if groups is not None else None
        monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: config)
        monkeypatch.setattr(runners, "_has_autoscaler", lambda: scales)

    return describe


def engines(replicas, gpus):
    base = recipes.gamecraft2()
    model = VlmSettings("vllm", "a-model", engine=EngineSettings(replicas=replicas, gpus=gpus))
    return replace(base, caption=replace(base.caption, vlm=model))


def preflight(name, recipe):
    runners.preflight(Phase(name, recipe, "/out"))


def test_engines_need_their_gpus(cluster):
    cluster(CORES, CORES)
    for phase in ("caption", "relate"):
        with pytest.raises(
            ValueError,
            match=rf"^phase {phase}: caption\.vlm\.engine needs 2 x 4 GPU for vLLM, the cluster has 2 nodes of 64 CPU, 0 GPU, "
            r"200\.0 GiB\. Change its replicas or gpus, or set caption\.vlm\.backend to http",
        ):
            preflight(phase, engines(2, 4))
    with pytest.raises(
        ValueError, match=r"^phase partition: scan_source needs 1 CPU, 0\.25 GPU.*partition\.gpus: 0 runs it on"
    ):
        preflight("partition", engines(2, 4))
    preflight("caption", engines(2, 0))
    preflight("caption", recipes.smoke())
    cluster(GPUS)
    with pytest.raises(ValueError, match="needs 2 x 4 GPU for vLLM, the cluster has 16 CPU, 4 GPU"):
        preflight("caption", engines(2, 4))
    preflight("caption", engines(1, 4))
    cluster(GPUS, GPUS)
    preflight("caption", engines(2, 4))


def test_nodes_that_an_autoscaler_may_add_count(cluster, caplog):
    head = {"memory": 4.0 * GIB}
    cluster(head, groups=[(CORES, 10), (GPUS, 2), ({"CPU": 4096.0, "GPU": 100.0, "memory": 1}, 0)])
    preflight("partition", recipes.smoke())
    preflight("caption", engines(2, 4))
    preflight("annotate", engines(2, 4))
    with pytest.raises(ValueError, match=r"its autoscaler may add 10 of 64 CPU, .*; 2 of 16 CPU, 4 GPU, 200\.0 GiB\. Change"):
        preflight("caption", engines(3, 4))
    cluster(head, groups=[(GPUS, -1)])
    preflight("caption", engines(300, 4))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("node", "scales"), [({"memory": 4.0 * GIB}, False), ({"CPU": 0.0}, False), ({"CPU": 1.0, "memory": 1}, True)]
)
def test_an_autoscaler_that_tells_no_limits_is_waited_for_with_a_word(node, scales, cluster, caplog):
    cluster(node, scales=scales)
    preflight("partition", recipes.smoke())
    (words,) = caplog.messages
    assert words.startswith("phase partition: ")
    assert words.endswith("; its autoscaler does not report what it can add, so this run waits for it")


def test_what_later_phases_lack_is_said_at_the_start(cluster, caplog):
    cluster(CORES)
    runners.warn_of_shortages(Phase(name, engines(1, 1), "/out") for name in recipes.CLIP_PHASES)
    start = "this cluster cannot run a later phase, which will be refused: phase "
    assert [line.removeprefix(start).partition(":")[0] for line in caplog.messages] == [
        *("partition", "annotate", "caption", "relate")
    ]


def _of_task(cause):
    return RayTaskError("f", "a traceback", cause).as_instanceof_cause()


AGAIN = "run the same command again to resume"


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (WorkerCrashedError(), Unavailable, rf"the Ray cluster lost a part of this run \(The worker died.*\); {AGAIN}"),
        (_of_task(ObjectLostError("00", None, "here")), Unavailable, f"lost a part of this run.*{AGAIN}"),
        (ActorDiedError(), Unavailable, f"lost a part of this run.*{AGAIN}"),
        (ObjectStoreFullError("no room"), Unavailable, r"^Ray: "),
        (_of_task(InputError("a wrong value")), InputError, "^a wrong value$"),
        (_of_task(ZeroDivisionError("ours")), RayTaskError, "a traceback"),
        (ActorDiedError(RayTaskError("f", "a traceback", KeyError("ours"))), ActorDiedError, "in its creation task"),
    ],
)
def test_what_ray_lost_is_one_line_and_what_a_task_raised_stays(raised, kind, words, monkeypatch):
    monkeypatch.setattr(runners, "start_ray", lambda: None)
    with pytest.raises(kind, match=words) as caught, runners.on_cluster():
        raise raised
    assert (AGAIN in str(caught.value)) == (AGAIN in words)


def test_a_local_run_starts_no_ray(monkeypatch):
    monkeypatch.setattr(runners, "start_ray", lambda: pytest.fail("started"))
    with pytest.raises(ZeroDivisionError), runners.on_cluster("local"):
        raise ZeroDivisionError
