"""What deploy/ ships: commands that our command line takes, images of what pyproject.toml has, metrics that a run reports."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

from pipelines import cli, lock
from pipelines.commands import data
from pipelines.progress import METRICS

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def parse(line):
    """The command and its arguments, as our command line reads them."""
    program, *words = shlex.split(line)
    assert program == "gamecraft"
    group = typer.main.get_command(cli.app)
    with group.make_context("gamecraft", list(words)) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        with command.make_context(name, rest, parent=context) as inner:
            return name, inner.params


def test_the_jobs_command_is_one_of_ours_and_waits_for_the_lock(job):
    command, _, rest = job["spec"]["entrypoint"].partition("||")
    assert rest.strip() == f"test $? -eq {data.LOST_SOURCES}", "lost sources are no reason to start again"
    name, arguments = parse(command)
    assert name == "curate"
    assert (arguments["runner"], arguments["wait"]) == ("ray", float("inf"))
    assert arguments["wait"] > lock._EXPIRY_S
    assert job["spec"]["backoffLimit"] > 0, "exit status 1 is started again"


def test_the_cluster_runs_the_ray_of_this_project_and_scales(job, project):
    (ray,) = [item for item in project["dependencies"] if item.startswith("ray[")]
    cluster = job["spec"]["rayClusterSpec"]
    assert ray == f"ray[data]=={cluster['rayVersion']}"
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert [item["secretRef"]["name"] for item in container["envFrom"]] == ["gamecraft-s3"]


def test_the_images_install_what_the_project_has(project):
    text = (DEPLOY / "Containerfile").read_text()
    for extras in re.findall(r"\.whl\)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert set(re.findall(r"ray\[data,default\]==([\d.]+)", text)) == {"2.60.0"}
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE))
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert copied == packages, "the wheel has every package"
    for name in re.findall(r"^COPY ((?:[\w.-]+ )+)\./$", text, re.MULTILINE)[0].split():
        assert (ROOT / name).exists()


def test_a_job_gets_what_s3_needs(job):
    variables = json.loads((DEPLOY / "runtime-env.json").read_text())["env_vars"]
    needed = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}
    assert set(variables) == needed
    comment = (DEPLOY / "rayjob.yaml").read_text()
    assert all(f"--from-literal={name}=" in comment for name in needed)


def test_the_dashboard_shows_the_metrics_that_a_run_reports():
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name.removesuffix("_bucket") for query in queries for name in re.findall(r"ray_(gamecraft_\w+)", query)}
    assert shown == set(METRICS)
    for query in queries:
        (name,) = re.findall(r"ray_(gamecraft_\w+)", query)
        tags = METRICS[name.removesuffix("_bucket")][2]
        by = [tag.strip() for tags in re.findall(r"by \(([^)]*)\)", query) for tag in tags.split(",")]
        labels = re.findall(r"[{,](\w+)!?=", query)
        assert set(by) - {"le"} | set(labels) <= set(tags), query
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
