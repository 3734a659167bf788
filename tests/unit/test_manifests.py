"""The files of `cluster/`: every key is one that its reader knows, they agree with each other and with the project.

Offline, with no cluster. That a file is taken here does not say that somebody's cluster has what it asks for.
"""

import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from fedtalk_ray.actors.application import Settings, application
from fedtalk_ray.actors.placement import Node, rooms
from fedtalk_ray.actors.site_pool import Coordinator
from fedtalk_ray.commands import cli
from fedtalk_ray.config import load_config
from fedtalk_ray.errors import UserError
from fedtalk_ray.model.embedded import EMBEDDED
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig
from fedtalk_ray.tracking.prometheus import COUNTERS, GAUGES

MOUNT = "/mnt/fedtalk"

METRICS = {f"ray_{name}": ("run", *labels) for name, (_, labels) in GAUGES.items()}
METRICS |= {f"ray_{name}": ("run",) for name in COUNTERS}
"""metric -> its labels. None is about a single client."""


KUBERNETES = "1.33"
"""The oldest release that the manifests are checked against; later ones take the same fields."""

PROMQL = {"avg", "by", "max", "min", "rate", "increase", "sum", "label_values"}


def kubernetes_problems(tree: Mapping[str, Any]) -> list[str]:
    """Where one of Kubernetes' own objects leaves its schema; the first mistake only."""
    try:
        kubernetes_validate.validate(tree, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    return []


def ray_problems(tree: Mapping[str, Any]) -> list[str]:
    """Mistakes in the pods and in the number of workers of a RayCluster, a RayJob or a RayService."""
    inside = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(tree["kind"])
    spec = tree["spec"] if inside is None else tree["spec"][inside]
    groups = spec["workerGroupSpecs"]
    found = []
    for template in (group["template"] for group in (spec["headGroupSpec"], *groups)):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}
        found += kubernetes_problems(pod)
    for group in groups:
        least, most = group["minReplicas"], group["maxReplicas"]
        if not least <= group.get("replicas", least) <= most:
            found.append(f"{group['groupName']}: replicas must lie between minReplicas {least} and maxReplicas {most}")
    if spec["authOptions"]["mode"] != "token":
        found.append("authOptions.mode: a cluster that takes jobs from everybody is not on offer")
    return found


def launcher_problems(tree: dict[str, Any]) -> list[str]:
    """Mistakes of a file for `ray up`, as Ray itself finds them."""
    try:
        validate_config(prepare_config(tree))
    except (jsonschema.ValidationError, ValueError) as error:
        return [str(error) or "Ray refuses the file"]
    return []


def dashboard_problems(board: Mapping[str, Any]) -> list[str]:
    """Metrics that no panel draws, and names in an expression that are no metric, label or function."""
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    found = [f"no panel draws {name}" for name in METRICS if not re.search(rf"\b{name}\b", " ".join(queries))]
    queries += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    for expr in queries:
        names = re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r'"[^"]*"|\[[^\]]*\]', "", expr))
        drawn = [METRICS[name] for name in names if name in METRICS]
        known = PROMQL.union(METRICS, *drawn[:1]).difference(*(set().union(*drawn) - set(labels) for labels in drawn))
        found += [f"{name} is no metric, label or function, in {expr}" for name in names if name not in known]
    return found


def document(name: str, text: str) -> Any:
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


CHECKS: dict[str, Callable[[Any], list[str]]] = {
    "coordinator.yaml": lambda tree: kubernetes_problems(tree) or coordinator_problems(tree),
    "coordinator-service.yaml": kubernetes_problems,
    "grafana-dashboard.json": dashboard_problems,
    "launcher-aws.yaml": launcher_problems,
    "launcher-gcp.yaml": launcher_problems,
    "launcher-local.yaml": launcher_problems,
    "podmonitor.yaml": lambda tree: [] if tree["kind"] == "PodMonitor" else ["kind"],
    "prometheus.yml": lambda tree: [] if tree["scrape_configs"] else ["scrape_configs"],
    "raycluster.yaml": ray_problems,
    "rayservice.yaml": lambda tree: ray_problems(tree) or application_problems(tree["spec"]["serveConfigV2"]),
    "rayjob.yaml": lambda tree: ray_problems(tree) or job_problems(tree["spec"]["entrypoint"]),
    "volume.yaml": kubernetes_problems,
}
REPOSITORY = Path(__file__).resolve().parents[2]
RAY_VERSION = re.search(r"^ray==(.+)$", (REPOSITORY / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]  # type: ignore[index]
IMAGE = f"registry.example.com/fedtalk-ray:ray-{RAY_VERSION}"


RAY_FILES = ("raycluster.yaml", "rayjob.yaml", "rayservice.yaml")


def job_config(entrypoint: str) -> TrainConfig:
    """The configuration that a training job's command line means. Raises `UserError`, as the job would."""
    python, script, config, *overrides = shlex.split(entrypoint)
    for path in (script, config):
        if not (REPOSITORY / path).is_file():
            raise UserError(f"entrypoint: there is no file {path}")
    if (python, script) != ("python", "jobs/train.py"):
        raise UserError(f"entrypoint: {python} {script} is not python jobs/train.py")
    return load_config(REPOSITORY / config, [override for override in overrides if override != "--resume"])


def job_problems(entrypoint: str) -> list[str]:
    try:
        job_config(entrypoint)
    except UserError as error:
        return [str(error)]
    return []


def coordinator_problems(tree: Any) -> list[str]:
    """Of the one command that the coordinator's pod runs."""
    (container,) = tree["spec"]["template"]["spec"]["containers"]
    (line,) = container["args"]
    asked, _, command = line.partition("exec ")
    fedtalk, name, *words = [word for word in shlex.split(command) if word != "$again"]
    commands: Any = typer.main.get_command(cli.app)
    if (fedtalk, name) != ("fedtalk", "serve"):
        return [f"args: {fedtalk} {name} is not fedtalk serve"]
    try:
        given = commands.commands[name].make_context(name, words).params
        config = load_config(REPOSITORY / given["config"], given["overrides"])
    except Exception as error:  # typer's for a wrong option has no public name
        return [f"args: {error}"]
    if f"-f {RunFolder(Path(config.run)).config_file} " not in asked:
        return [f"args: {asked!r} does not look for the configuration of {config.run}"]
    return []


def application_problems(text: str) -> list[str]:
    """Of what a RayService has Serve run, by Serve's own schema and the application's."""
    try:
        (asked,) = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
        Settings.model_validate(asked.args)
    except ValueError as error:
        return [f"serveConfigV2: {error}"]
    if asked.import_path != f"{application.__module__}:{application.__name__}":
        return [f"serveConfigV2: import_path: {asked.import_path} is not the service"]
    return []


def values(tree: Any, key: str) -> Iterator[Any]:
    """Every value under this key, anywhere in the tree."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


@pytest.fixture(scope="session")
def manifests(repository: Path) -> dict[str, Any]:
    """File name -> the parsed file."""
    folder = repository / "cluster"
    return {name: document(name, (folder / name).read_text(encoding="utf-8")) for name in CHECKS}


def test_every_file_is_checked(repository: Path) -> None:
    assert {file.name for file in (repository / "cluster").iterdir()} == {*CHECKS, "Dockerfile", "README.md"}


@pytest.mark.parametrize("name", CHECKS)
def test_a_file_holds_only_what_its_reader_knows(name: str, manifests: dict[str, Any]) -> None:
    assert CHECKS[name](manifests[name]) == []


PLANTED = (
    # file, what is replaced, by what, what the line must say
    ("raycluster.yaml", "mode: token", "mode: disabled", "authOptions.mode"),
    ("raycluster.yaml", "            resources:", "            ressources:", "ressources"),
    ("raycluster.yaml", "replicas: 1\n", "replicas: 9\n", "gpu: replicas"),
    ("rayjob.yaml", "mountPath:", "mountPaths:", "'mountPath' is a required property"),
    ("rayjob.yaml", "configs/grid.yaml", "configs/gird.yaml", "configs/gird.yaml"),
    ("rayjob.yaml", "slots.at_least=4", "slots.at_least=9", "slots.at_least"),
    ("rayservice.yaml", "replica_gpus:", "replicas_gpus:", "replicas_gpus"),
    ("rayservice.yaml", "application:application", "aplication:application", "aplication"),
    ("coordinator.yaml", "--doors 2", "--dors 2", "--dors"),
    ("coordinator.yaml", "runs/sites/config.yaml", "runs/site/config.yaml", "does not look for the configuration"),
    ("coordinator-service.yaml", "targetPort:", "tragetPort:", "tragetPort"),
    ("volume.yaml", "accessModes:", "accessMode:", "accessMode"),
    ("launcher-aws.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type"),
    ("grafana-dashboard.json", "ray_fedtalk_cohort{", "ray_fedtalk_cohorts{", "ray_fedtalk_cohorts"),
    ("grafana-dashboard.json", "max by (run, term)", "max by (run, client)", "client is no metric"),
)


@pytest.mark.parametrize(("name", "old", "new", "says"), PLANTED, ids=[f"{name}-{new}" for name, _, new, _ in PLANTED])
def test_a_planted_mistake_is_refused(name: str, old: str, new: str, says: str, repository: Path) -> None:
    text = (repository / "cluster" / name).read_text(encoding="utf-8")
    assert old in text
    problems = CHECKS[name](document(name, text.replace(old, new, 1)))
    assert any(says in line for line in problems), problems


def test_one_version_of_ray_and_one_image_everywhere(manifests: dict[str, Any], repository: Path) -> None:
    assert list(values(manifests, "rayVersion")) == [RAY_VERSION] * 3
    images = [*values(manifests, "image")]
    assert len(images) == 12, "cluster and job three groups each, the service two, three launchers, the coordinator"
    assert set(images) == {IMAGE}
    for name in ("Dockerfile", "README.md"):
        assert f"docker build -f cluster/Dockerfile -t {IMAGE} ." in (repository / "cluster" / name).read_text("utf-8")


def test_every_container_gets_what_it_asks_for_and_no_more(manifests: dict[str, Any]) -> None:
    """A pod that may take more than it reserves is the first to be ended when its node runs short."""
    resources = [*values([manifests[name] for name in RAY_FILES], "resources")]
    assert len(resources) == 11, "three heads, three autoscalers, five groups of workers"
    for one in resources:
        assert one["requests"] == one["limits"]
        assert {"cpu", "memory"} <= one["requests"].keys()


@pytest.mark.parametrize("name", RAY_FILES)
def test_every_pod_has_the_volume_the_environment_and_the_port(name: str, manifests: dict[str, Any]) -> None:
    claim = manifests["volume.yaml"]["metadata"]["name"]
    endpoint = manifests["podmonitor.yaml"]["spec"]["podMetricsEndpoints"][0]["port"]
    templates = [*values(manifests[name], "template")]
    assert len(templates) == (2 if name == "rayservice.yaml" else 3)
    for template in templates:
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == [claim]
        assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": MOUNT}]
        environment = {one["name"]: one["value"] for one in container["env"]}
        assert environment == {"RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
        assert {"name": endpoint, "containerPort": 8080} in container["ports"]


def test_the_job_fits_its_cluster_at_the_least_and_at_the_most(manifests: dict[str, Any]) -> None:
    """A run is refused where `slots.at_least` slots have no room at the start; `slots.count` need the whole group."""
    spec = manifests["rayjob.yaml"]["spec"]
    config = job_config(spec["entrypoint"])
    assert [Path(path).is_relative_to(MOUNT) for path in (config.shards, config.run)] == [True] * 2
    assert config.pretrained == EMBEDDED, "the package brings it to every node; any other lies on the volume"
    gpu = next(group for group in spec["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    has = next(values(gpu, "limits"))

    def room(replicas: int) -> int:
        nodes = [Node(str(n), float(has["nvidia.com/gpu"]), float(has["cpu"]), 2.0**34) for n in range(replicas)]
        return sum(rooms(nodes, config.slots).values())

    assert config.slots.at_least is not None
    assert room(gpu["minReplicas"]) >= config.slots.at_least
    assert room(gpu["maxReplicas"]) >= config.slots.count > room(gpu["maxReplicas"] - 1)


def test_the_service_fits_its_cluster_at_the_least_and_at_the_most(manifests: dict[str, Any]) -> None:
    """A replica of a fraction of a GPU each, and one process without one."""
    spec = manifests["rayservice.yaml"]["spec"]
    settings = Settings.model_validate(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"])
    assert [Path(path).is_relative_to(MOUNT) for path in (settings.run, settings.tokens)] == [True] * 2
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    gpus = float(next(values(group, "limits"))["nvidia.com/gpu"])
    assert group["minReplicas"] * gpus >= settings.replicas * settings.replica_gpus
    assert group["maxReplicas"] * gpus >= settings.most() * settings.replica_gpus
    for template in values(spec, "template"):
        assert {"name": "serve", "containerPort": 8000} in template["spec"]["containers"][0]["ports"]


@pytest.mark.parametrize("name", ["launcher-aws.yaml", "launcher-gcp.yaml", "launcher-local.yaml"])
def test_a_launcher_asks_for_the_token_on_every_machine(name: str, manifests: dict[str, Any]) -> None:
    tree = manifests[name]
    assert "--env=RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert list(tree["file_mounts"]) == ["/home/ray/.ray/auth_token"]
    assert f"--volume={MOUNT}:{MOUNT}" in tree["docker"]["run_options"]
    assert all("0.0.0.0" not in command for command in tree["head_start_ray_commands"])


def test_sites_reach_the_coordinators_pod(manifests: dict[str, Any]) -> None:
    tree, service = manifests["coordinator.yaml"]["spec"], manifests["coordinator-service.yaml"]
    (container,), pod = tree["template"]["spec"]["containers"], tree["template"]
    assert tree["replicas"] == 1 and tree["serviceName"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == tree["selector"]["matchLabels"] == pod["metadata"]["labels"]
    (port,) = service["spec"]["ports"]
    assert {"name": port["targetPort"], "containerPort": Coordinator.port} in container["ports"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [MOUNT, "/dev/shm"]


def dockerfile_problems(text: str, root: Path) -> list[str]:
    """Where a Dockerfile leaves the project: its version of Ray, files that the build cannot have, secrets."""
    steps = [
        line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
    ]
    found = []
    if ["ARG", f"RAY_VERSION={RAY_VERSION}"] not in steps:
        found.append(f"ARG RAY_VERSION is not {RAY_VERSION}, the version of constraints.txt")
    if ["FROM", "rayproject/ray:${RAY_VERSION}-py311-gpu"] not in steps:
        found.append("FROM is not rayproject/ray:${RAY_VERSION}-py311-gpu")
    ignored = [line for line in (root / ".dockerignore").read_text("utf-8").splitlines() if line[:1] not in ("", "#")]
    copied: list[str] = []
    for name, rest in steps:
        if name == "COPY":
            copied += [word for word in rest.split() if not word.startswith("--")][:-1]
        if name in ("ARG", "ENV") and (secret := re.search(r"\w*(TOKEN|SECRET|PASSWORD|CREDENTIAL)\w*", rest)):
            found.append(f"{name} {secret[0]}: a secret in an image is everybody's")
    for source in copied:
        if not (root / source).exists():
            found.append(f"COPY {source}: there is no such file")
        found += [
            f"COPY {source}: .dockerignore leaves it out ({rule})" for rule in ignored if fnmatchcase(source, rule)
        ]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    needed = ["pyproject.toml", "constraints.txt", project["readme"], *project["license-files"], "fedtalk_ray", "jobs"]
    found += [f"COPY: {source} is missing" for source in needed if source not in copied]
    if not any(name == "RUN" and "pip install" in rest and "-c constraints.txt ." in rest for name, rest in steps):
        found.append("RUN: no pip install -c constraints.txt .")
    return found


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (" jobs ./jobs", " tests ./jobs", "COPY tests: .dockerignore leaves it out"),
        ("-c constraints.txt ", "", "no pip install"),
        ("ENV ", "ENV HF_TOKEN=x ", "HF_TOKEN"),
    ],
)
def test_a_mistake_in_the_dockerfile_is_refused(old: str, new: str, says: str, repository: Path) -> None:
    text = (repository / "cluster" / "Dockerfile").read_text("utf-8")
    assert old in text and dockerfile_problems(text, repository) == []
    assert any(says in line for line in dockerfile_problems(text.replace(old, new, 1), repository))


def costs(name: str, tree: Any) -> tuple[str, str]:
    """Nodes when idle and at the most, in the README's words: ("1 head, 1 GPU", "1 head, 4 GPU, 4 CPU")."""
    if name == "launcher-local.yaml":
        bounds = {"gpu": (tree["min_workers"], tree["max_workers"])}
    elif "available_node_types" in tree:
        nodes = {kind: node for kind, node in tree["available_node_types"].items() if kind != tree["head_node_type"]}
        bounds = {kind: (node["min_workers"], node["max_workers"]) for kind, node in nodes.items()}
        assert sum(most for _, most in bounds.values()) == tree["max_workers"]
    else:
        groups = next(values(tree, "workerGroupSpecs"))
        bounds = {group["groupName"]: (group["minReplicas"], group["maxReplicas"]) for group in groups}

    def words(which: int) -> str:
        return ", ".join(["1 head", *(f"{both[which]} {kind.upper()}" for kind, both in bounds.items() if both[which])])

    return words(0), words(1)


def test_the_readme_names_every_file_and_what_it_costs(manifests: dict[str, Any], repository: Path) -> None:
    text = (repository / "cluster" / "README.md").read_text("utf-8")
    for file in (repository / "cluster").iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text, f"README.md does not mention {file.name}"
    for path in re.findall(r"\b(?:cluster|jobs|docs|tests)/[\w/-]+\.\w+", text):
        assert (repository / path).exists(), f"README.md names {path}, which is not there"
    for name in ("raycluster.yaml", "rayjob.yaml", "launcher-local.yaml", "launcher-aws.yaml", "launcher-gcp.yaml"):
        idle, most = costs(name, manifests[name])
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {idle} | {most} |" in row, f"the row of {name} should say | {idle} | {most} |"
