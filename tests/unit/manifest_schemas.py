"""JSON schemas of what the files of `cluster/` may hold, for `manifest_checks`.

Nothing is allowed that is not listed: Kubernetes, Ray and Grafana pass over many an unknown key in silence, and what it
was meant to set stays as it is by default. Ray's own objects follow KubeRay's API (ray.io/v1); pods and volumes are
left to `kubernetes_validate`, and most of a launcher's file to Ray. A field that is not here yet needs a line here.
"""

from typing import Any

TEXT, YES_NO, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "number"}
WHOLE = {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT}
LABELS = {"type": "object", "additionalProperties": TEXT}
CHECKED_BY_KUBERNETES: dict[str, Any] = {}


def closed(needs: tuple[str, ...] = (), /, **fields: Any) -> dict[str, Any]:
    """An object with these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": list(needs), "properties": fields}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def listed(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


METADATA = closed(("name",), name=TEXT, namespace=TEXT, labels=LABELS, annotations=LABELS)

GROUP = {"rayStartParams": LABELS, "resources": LABELS, "labels": LABELS, "template": CHECKED_BY_KUBERNETES}

CONTAINER_FIELDS = (
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "resources",
    "securityContext",
    "volumeMounts",
)
"""Those of `autoscalerOptions` that a container has too."""

CLUSTER_SPEC = closed(
    ("rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"),
    rayVersion=TEXT,
    # A cluster that takes jobs from everybody who reaches its port is not on offer.
    authOptions=closed(("mode",), mode=one_of("token"), secretName=TEXT, enableK8sTokenAuth=YES_NO),
    suspend=YES_NO,
    managedBy=TEXT,
    upgradeStrategy=closed(type=one_of("Recreate", "None")),
    headServiceAnnotations=LABELS,
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=closed(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=WHOLE,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
        **dict.fromkeys(CONTAINER_FIELDS, CHECKED_BY_KUBERNETES),
    ),
    headGroupSpec=closed(
        ("rayStartParams", "template"),
        serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
        enableIngress=YES_NO,
        **GROUP,
    ),
    workerGroupSpecs=listed(
        closed(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=TEXT,
            replicas=WHOLE,
            minReplicas=WHOLE,
            maxReplicas=WHOLE,
            numOfHosts=WHOLE,
            idleTimeoutSeconds=WHOLE,
            priority=WHOLE,
            scaleStrategy=closed(workersToDelete=TEXTS),
            **GROUP,
        )
    ),
)


def kubernetes_object(version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion=one_of(version),
        kind=one_of(kind),
        metadata=METADATA,
        spec=spec,
    )


RAY_CLUSTER = kubernetes_object(
    "ray.io/v1",
    "RayCluster",
    CLUSTER_SPEC,
)

RAY_JOB = kubernetes_object(
    "ray.io/v1",
    "RayJob",
    closed(
        ("entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes"),
        entrypoint=TEXT,
        entrypointNumCpus=NUMBER,
        entrypointNumGpus=NUMBER,
        entrypointResources=TEXT,
        runtimeEnvYAML=TEXT,
        jobId=TEXT,
        metadata=LABELS,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
        submitterConfig=closed(backoffLimit=WHOLE),
        submitterPodTemplate=CHECKED_BY_KUBERNETES,
        clusterSelector=LABELS,
        suspend=YES_NO,
        managedBy=TEXT,
        backoffLimit=WHOLE,
        activeDeadlineSeconds=WHOLE,
        # Without it a cluster with GPUs would outlive its job, and ttlSecondsAfterFinished would do nothing.
        shutdownAfterJobFinishes={"const": True},
        ttlSecondsAfterFinished=WHOLE,
        rayClusterSpec=CLUSTER_SPEC,
    ),
)

RAY_SERVICE = kubernetes_object(
    "ray.io/v1",
    "RayService",
    closed(
        ("serveConfigV2", "rayClusterConfig"),
        serveConfigV2=TEXT,
        rayClusterConfig=CLUSTER_SPEC,
        serveService=CHECKED_BY_KUBERNETES,
        excludeHeadPodFromServeSvc=YES_NO,
        serviceUnhealthySecondThreshold=WHOLE,
        deploymentUnhealthySecondThreshold=WHOLE,
        rayClusterDeletionDelaySeconds=WHOLE,
        upgradeStrategy=closed(type=one_of("NewCluster", "None", "NewClusterWithIncrementalUpgrade")),
        suspend=YES_NO,
    ),
)

POD_MONITOR = kubernetes_object(
    "monitoring.coreos.com/v1",
    "PodMonitor",
    closed(
        ("selector", "podMetricsEndpoints"),
        jobLabel=TEXT,
        podTargetLabels=TEXTS,
        namespaceSelector=closed(any=YES_NO, matchNames=TEXTS),
        selector=closed(("matchLabels",), matchLabels=LABELS),
        podMetricsEndpoints=listed(
            closed(("port",), port=TEXT, path=TEXT, scheme=TEXT, interval=TEXT, scrapeTimeout=TEXT, honorLabels=YES_NO)
        ),
    ),
)

PROMETHEUS = closed(
    ("scrape_configs",),
    **{"global": closed(scrape_interval=TEXT, scrape_timeout=TEXT, evaluation_interval=TEXT)},
    scrape_configs=listed(
        closed(
            ("job_name", "file_sd_configs"),
            job_name=TEXT,
            scrape_interval=TEXT,
            scrape_timeout=TEXT,
            metrics_path=TEXT,
            file_sd_configs=listed(closed(("files",), files=TEXTS, refresh_interval=TEXT)),
        )
    ),
)

# What Ray's own schema of a launcher leaves open, or comes to too late to name the key.
DOCKER = closed(("image", "container_name"), image=TEXT, container_name=TEXT, pull_before_run=YES_NO, run_options=TEXTS)
PROVIDERS = {
    "local": closed(("head_ip", "worker_ips"), type=TEXT, head_ip=TEXT, worker_ips=TEXTS, external_head_ip=TEXT),
    "aws": closed(
        ("region",), type=TEXT, region=TEXT, availability_zone=TEXT, cache_stopped_nodes=YES_NO, use_internal_ips=YES_NO
    ),
    "gcp": closed(
        ("region", "availability_zone", "project_id"),
        type=TEXT,
        region=TEXT,
        availability_zone=TEXT,
        project_id=TEXT,
        use_internal_ips=YES_NO,
    ),
}
NODES = {
    "aws": closed(
        ("InstanceType",),
        InstanceType=TEXT,
        ImageId=TEXT,
        KeyName=TEXT,
        SubnetIds=TEXTS,
        SecurityGroupIds=TEXTS,
        InstanceMarketOptions=closed(("MarketType",), MarketType=one_of("spot")),
        BlockDeviceMappings=listed(
            closed(
                ("DeviceName", "Ebs"), DeviceName=TEXT, Ebs=closed(("VolumeSize",), VolumeSize=WHOLE, VolumeType=TEXT)
            )
        ),
    ),
    "gcp": closed(
        ("machineType", "disks"),
        machineType=TEXT,
        disks=listed(
            closed(
                ("boot", "initializeParams"),
                boot=YES_NO,
                autoDelete=YES_NO,
                type=TEXT,
                initializeParams=closed(("sourceImage",), diskSizeGb=WHOLE, sourceImage=TEXT),
            )
        ),
        guestAccelerators=listed(closed(acceleratorType=TEXT, acceleratorCount=WHOLE)),
        metadata=closed(("items",), items=listed(closed(("key", "value"), key=TEXT, value=TEXT))),
        scheduling=listed(closed(preemptible=YES_NO, onHostMaintenance=one_of("TERMINATE", "MIGRATE"))),
    ),
}

DATASOURCE = closed(("type", "uid"), type=one_of("prometheus"), uid=one_of("${datasource}"))
SIDE = {"type": "integer", "minimum": 1, "maximum": 24}
PANEL = closed(
    ("id", "type", "title", "description", "datasource", "gridPos", "fieldConfig", "targets"),
    id={"type": "integer", "minimum": 1},
    type=one_of("stat", "timeseries"),
    title=TEXT,
    description=TEXT,
    datasource=DATASOURCE,
    gridPos=closed(("x", "y", "w", "h"), x=WHOLE, y=WHOLE, w=SIDE, h=SIDE),
    fieldConfig=closed(
        ("defaults", "overrides"),
        defaults=closed(
            # Palettes follow the theme; a colour by its number suits either the dark one or the light one.
            color=closed(("mode",), mode=one_of("palette-classic")),
            unit=one_of("none", "s", "Bps", "bytes"),
            decimals=WHOLE,
            custom=closed(
                lineWidth=WHOLE,
                fillOpacity=WHOLE,
                showPoints=TEXT,
                spanNulls=YES_NO,
                stacking=closed(mode=TEXT, group=TEXT),
            ),
        ),
        overrides={"type": "array", "maxItems": 0},
    ),
    options=closed(
        reduceOptions=closed(calcs=TEXTS),
        colorMode=one_of("none"),
        graphMode=TEXT,
        legend=closed(displayMode=TEXT, placement=TEXT),
        tooltip=closed(mode=TEXT, sort=TEXT),
    ),
    targets=listed(
        closed(("refId", "datasource", "expr"), refId=TEXT, datasource=DATASOURCE, expr=TEXT, legendFormat=TEXT)
    ),
)
VARIABLE = closed(
    ("name", "type", "query"),
    name=TEXT,
    label=TEXT,
    type=one_of("datasource", "query"),
    query={"anyOf": [TEXT, closed(("query",), query=TEXT, refId=TEXT)]},
    definition=TEXT,
    datasource=DATASOURCE,
    refresh=WHOLE,
    sort=WHOLE,
    hide=WHOLE,
    multi=YES_NO,
    includeAll=YES_NO,
    allValue=TEXT,
    current=closed(text=TEXTS, value=TEXTS),
)
DASHBOARD = closed(
    ("uid", "title", "schemaVersion", "templating", "panels"),
    uid=TEXT,
    title=TEXT,
    tags=TEXTS,
    schemaVersion=WHOLE,
    version=WHOLE,
    editable=YES_NO,
    graphTooltip=WHOLE,
    refresh=TEXT,
    time=closed(**{"from": TEXT, "to": TEXT}),
    timezone=TEXT,
    templating=closed(("list",), list=listed(VARIABLE)),
    annotations=closed(list={"type": "array"}),
    links={"type": "array"},
    panels=listed(PANEL),
)
