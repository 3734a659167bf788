"""Checks of the files of `cluster/` that need no cluster and no network.

Each takes a parsed file and returns lines, one per mistake, that say where it is and name the key.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import click
import jsonschema
import kubernetes_validate

from tests.unit.manifest_schemas import (
    CONTAINER_FIELDS,
    DASHBOARD,
    DOCKER,
    NODES,
    PROVIDERS,
    RAY_CLUSTER,
    RAY_JOB,
    RAY_SERVICE,
)

KUBERNETES = "1.33"
"""The oldest release that the manifests are checked against; later ones take the same fields."""

PROMQL = {"avg", "by", "max", "min", "rate", "increase", "sum", "label_values"}


def schema_problems(document: Any, schema: Mapping[str, Any], where: str = "") -> list[str]:
    """Where a document leaves its schema."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{_path(where, error.absolute_path)}: {error.message}" for error in errors]


def kubernetes_problems(document: Mapping[str, Any], where: str = "") -> list[str]:
    """Where one of Kubernetes' own objects leaves its schema; the first mistake only."""
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{_path(where, error.absolute_path)}: {error.message}"]
    return []


RAY_KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "RayJob": (RAY_JOB, "rayClusterSpec"),
    "RayService": (RAY_SERVICE, "rayClusterConfig"),
}
"""kind -> its schema, and the key under which its cluster stands."""


def ray_problems(document: Mapping[str, Any]) -> list[str]:
    """Mistakes of a RayCluster, a RayJob or a RayService."""
    schema, inside = RAY_KINDS.get(str(document.get("kind")), (RAY_CLUSTER, None))
    found = schema_problems(document, schema)
    if found:
        return found
    spec = document["spec"] if inside is None else document["spec"][inside]
    options = spec.get("autoscalerOptions", {})
    container = {"name": "autoscaler"} | {key: options[key] for key in CONTAINER_FIELDS if key in options}
    found += _template_problems({"spec": {"containers": [container]}}, "autoscalerOptions")
    if "submitterPodTemplate" in document["spec"]:
        found += _template_problems(document["spec"]["submitterPodTemplate"], "submitterPodTemplate")
    found += _template_problems(spec["headGroupSpec"]["template"], "headGroupSpec.template")
    for group in spec["workerGroupSpecs"]:
        where = f"workerGroupSpecs.{group['groupName']}"
        found += _template_problems(group["template"], f"{where}.template")
        least, most = group["minReplicas"], group["maxReplicas"]
        if not least <= group.get("replicas", least) <= most:
            found.append(f"{where}: replicas must lie between minReplicas {least} and maxReplicas {most}")
    return found


def launcher_problems(document: dict[str, Any]) -> list[str]:
    """Mistakes of a file for `ray up`, the first of Ray's own only."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    provider = document.get("provider", {})
    kind = provider.get("type")
    if kind not in PROVIDERS:
        return [f"provider.type: {kind!r} is none of {', '.join(PROVIDERS)}"]
    found = schema_problems(provider, PROVIDERS[kind], "provider")
    found += schema_problems(document.get("docker", {}), DOCKER, "docker")
    for name, node in document.get("available_node_types", {}).items():
        found += schema_problems(node.get("node_config", {}), NODES[kind], f"available_node_types.{name}.node_config")
    if found:
        return found
    try:
        validate_config(prepare_config(document))
    except jsonschema.ValidationError as error:
        return [f"{_path('', error.absolute_path)}: {error.message}"]
    except (ValueError, click.ClickException) as error:
        return [str(error) or "Ray refuses the file"]
    return []


def dashboard_problems(board: Mapping[str, Any], labels: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Mistakes of a Grafana dashboard. labels: metric -> the labels that its series carry, as Prometheus shows them."""
    found = schema_problems(board, DASHBOARD)
    if found:
        return found
    panels = board["panels"]
    counts = Counter(panel["id"] for panel in panels)
    found += [f"panels: the id {number} is given {count} times" for number, count in counts.items() if count > 1]
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            found.append(f"panel {panel['title']}: reaches beyond the 24 columns")
        for cell in _cells(place):
            if taken.setdefault(cell, panel["title"]) != panel["title"]:
                found.append(f"panel {panel['title']}: lies on panel {taken[cell]}")
                break
    queries = [(f"panel {panel['title']}", target["expr"]) for panel in panels for target in panel["targets"]]
    drawn = " ".join(expr for _, expr in queries)
    found += [f"panels: none draws {name}" for name in labels if not re.search(rf"\b{name}\b", drawn)]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            queries.append((f"variable {variable['name']}", variable["query"]["query"]))
    return found + [f"{where}: {line}" for where, expr in queries for line in expression_problems(expr, labels)]


def expression_problems(expr: str, labels: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Names in a PromQL expression that are no metric of ours, no function that we use, or no label of its metric."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expr)  # without texts and time ranges
    names = re.findall(r"[a-zA-Z_:][\w:]*", bare)
    metrics = [name for name in names if name in labels]
    if not metrics:
        return [f"no known metric in {expr}"]
    known = set.intersection(*(set(labels[name]) for name in metrics)) | set(metrics) | PROMQL
    return [f"{name} is no metric, label or function known here, in {expr}" for name in names if name not in known]


def _template_problems(template: Any, where: str) -> list[str]:
    pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "checked"}, "template": template}
    found = kubernetes_problems(pod)
    return [f"{where}.{line.removeprefix('template.')}" for line in found]


def _cells(place: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(place["x"], place["x"] + place["w"]):
        for y in range(place["y"], place["y"] + place["h"]):
            yield x, y


def _path(where: str, path: Any) -> str:
    return ".".join([*filter(None, [where]), *map(str, path)]) or "top level"
