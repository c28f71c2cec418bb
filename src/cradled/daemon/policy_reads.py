"""Pure. The methods that only look: what ``read`` means in a policy.

Each is named, none is guessed from its name: ``PluginInfo`` runs a program that its caller names,
so it is not here. Reading a blob or subscribing to events is looking, too.
"""

from __future__ import annotations

_SERVICES = "containerd.services"

_BY_SERVICE = {
    f"{_SERVICES}.containers.v1.Containers": "Get List ListStream",
    f"{_SERVICES}.content.v1.Content": "Info List Read Status ListStatuses",
    f"{_SERVICES}.events.v1.Events": "Subscribe",
    f"{_SERVICES}.images.v1.Images": "Get List",
    f"{_SERVICES}.introspection.v1.Introspection": "Plugins Server",
    f"{_SERVICES}.leases.v1.Leases": "List ListResources",
    f"{_SERVICES}.mounts.v1.Mounts": "Info List",
    f"{_SERVICES}.namespaces.v1.Namespaces": "Get List",
    f"{_SERVICES}.sandbox.v1.Controller": "Platform Wait Status Metrics",
    f"{_SERVICES}.sandbox.v1.Store": "List Get",
    f"{_SERVICES}.snapshots.v1.Snapshots": "Mounts Stat List Usage",
    f"{_SERVICES}.tasks.v1.Tasks": "Get List ListPids Metrics Wait",
    f"{_SERVICES}.version.v1.Version": "Version",
    "cradled.v1.Daemon": "Outcome",
    "cradled.v1.Journal": "Follow",
    "grpc.health.v1.Health": "Check List Watch",
    "grpc.reflection.v1.ServerReflection": "ServerReflectionInfo",
    "grpc.reflection.v1alpha.ServerReflection": "ServerReflectionInfo",
    "runtime.v1.ImageService": "ListImages StreamImages ImageStatus ImageFsInfo",
    "runtime.v1.RuntimeService": (
        "Version Status RuntimeConfig PodSandboxStatus ListPodSandbox StreamPodSandboxes"
        " ContainerStatus ListContainers StreamContainers ContainerStats ListContainerStats"
        " StreamContainerStats PodSandboxStats ListPodSandboxStats StreamPodSandboxStats"
        " GetContainerEvents ListMetricDescriptors ListPodSandboxMetrics StreamPodSandboxMetrics"
    ),
}

READS = frozenset(
    f"{service}/{method}" for service, methods in _BY_SERVICE.items() for method in methods.split()
)
