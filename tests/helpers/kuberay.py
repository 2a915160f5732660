"""Schema of a KubeRay ``RayJob``: the fields that esplug's manifest uses, which are those of ``ray.io/v1``.

KubeRay's own schema has 1.2 MB, most of it that of Kubernetes' pods. This one is strict: it knows no other fields.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[int, Field(ge=1)] | Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Path = Annotated[str, Field(pattern="^/")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(_Strict):
    name: Name


class Variable(_Strict):
    name: str
    value: str


class Mount(_Strict):
    name: Name
    mount_path: Path


class Resources(_Strict):
    limits: dict[Literal["cpu", "memory", "nvidia.com/gpu"], Quantity]


class Container(_Strict):
    name: Name
    image: str
    env: list[Variable]
    resources: Resources
    volume_mounts: list[Mount]


class Claim(_Strict):
    claim_name: Name


class Memory(_Strict):
    medium: Literal["Memory"]
    size_limit: Quantity


class Volume(_Strict):
    name: Name
    persistent_volume_claim: Claim | None = None
    empty_dir: Memory | None = None
    config_map: Metadata | None = None


class SecurityContext(_Strict):
    run_as_non_root: bool
    run_as_user: int
    fs_group: int


class PodSpec(_Strict):
    security_context: SecurityContext
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]


class PodTemplate(_Strict):
    spec: PodSpec


class HeadGroup(_Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(HeadGroup):
    group_name: Name
    replicas: Annotated[int, Field(ge=0)]
    min_replicas: Annotated[int, Field(ge=0)]
    max_replicas: Annotated[int, Field(ge=0)]


class RayClusterSpec(_Strict):
    ray_version: str
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup]


class RayJobSpec(_Strict):
    entrypoint: str
    backoff_limit: Annotated[int, Field(ge=0)]
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)]
    ray_cluster_spec: RayClusterSpec


class RayJob(_Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


class ConfigMap(_Strict):
    api_version: Literal["v1"]
    kind: Literal["ConfigMap"]
    metadata: Metadata
    data: dict[str, str]
