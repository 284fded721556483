"""What a plan of measurements is. Plans of earlier tools load unchanged: their members are listed, too."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from taskrunner.model.part import Part, json_schema

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="part of file names")]
Template = Annotated[str, Field(pattern=r"^[A-Za-z0-9{][A-Za-z0-9._{}-]*$")]
Count = Annotated[int, Field(ge=1)]
Free = dict[str, Any]
FABRICS = Literal["efa", "srd", "tcp", "tcp-host", "cuda_ipc", "infiniband", "roce", "cpu"]


class Settings(Part):
    """What a pattern, its layer and the whole plan can say; the nearest one wins."""

    mode: Literal["unified", "disaggregated"] | None = Field(
        default=None, description="one server, or a pair"
    )
    transport: FABRICS | None = Field(default=None, description="the fabric that the KV cache crosses")
    backend: str | None = Field(default=None, description="name of what is measured, for ids and metadata")
    prompt_tokens: Count | None = Field(default=None, description="exact length of each prompt")
    prompt_label: str | None = Field(default=None, description="that length in ids, such as 12k")
    max_tokens: Count | None = Field(default=None, description="exact length of each answer (128)")
    concurrency: Count | None = Field(default=None, description="requests at a time (1)")
    warmup_iterations: int | None = Field(default=None, ge=0, description="requests before, not counted (10)")
    measurement_iterations: Count | None = Field(default=None, description="measured requests (30)")
    iterations: Count | None = Field(default=None, description="the same; of a tool: its messages")
    max_model_len: Count | None = Field(
        default=None, description="longest sequence; its group has the largest"
    )
    requires_yarn: bool | None = Field(
        default=None, description="prompts longer than the model's native length"
    )
    enable_cross_layers_blocks: bool | None = Field(default=None, description="one block for all layers")
    prefix_cache: bool | None = Field(default=None, description="the same as enable_prefix_caching")
    enable_prefix_caching: bool | None = Field(default=None, description="default: only in unified servers")
    enable_chunked_prefill: bool | None = None
    enforce_eager: bool | None = Field(default=None, description="true: no CUDA graphs")
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    max_num_batched_tokens: Count | None = None
    tp_size: Count | None = Field(default=None, description="GPUs of each server")
    kv_buffer_size: float | None = None
    health_check_timeout: float | None = Field(
        default=None, gt=0, description="seconds until a server is ready"
    )
    measurement_type: str | None = None
    temperature: float | None = None
    streaming: bool | None = None
    vllm_arguments: str | None = Field(default=None, description="more arguments of vLLM, as in a shell")


class ToolSettings(Part):
    """What a pattern of a network or GPU tool can say."""

    model_config = ConfigDict(protected_namespaces=())

    tool: str | None = Field(default=None, description="iperf3, fi_pingpong, nixlbench, nccl-tests, ...")
    node: str | None = None
    pattern_id: str | None = None
    provider: str | None = None
    message_size: int | str | None = None
    message_size_human: str | None = None
    message_sizes: list[int | str] | None = None
    initiator_seg_type: str | None = None
    target_seg_type: str | None = None
    kv_cache_equivalent_tokens: int | None = None
    num_threads: int | None = None
    scheme: str | None = None
    test_type: str | None = None
    memory_type: str | None = None
    role: str | None = None
    action: str | None = None
    model_config_: Any = Field(default=None, alias="model_config")
    model_params: Any = None
    expected: Any = None
    adhoc: bool | None = Field(default=None, description="runs only when it is named")


class AnalysisSettings(Part):
    """What a pattern of the analysis can say: it reads results, and measures nothing."""

    type: str | None = None
    inputs: Any = None
    method: str | None = None
    output_metrics: Any = None


class Pattern(Settings, ToolSettings, AnalysisSettings):
    """One measurement."""

    id: Template
    description: str | None = None
    metrics: Any = None


class Matrix(Part):
    """Patterns by all combinations of lists."""

    id: Template | None = Field(
        default=None,
        description="such as p2-{backend}-{prompt_label}-c{concurrency}-{suffix}; {layer}, {phase}, members",
    )
    suffix: str | None = Field(default=None, description="end of the ids")
    values: dict[str, list[Any]] = Field(description="lists, by the names of settings")
    exclude: list[Free] | None = Field(default=None, description="combinations that are left out")
    override: list[Free] | None = Field(
        default=None, description='`{"when": {...}, "set": {...}}`: other settings of some combinations'
    )


class Layer(Settings, ToolSettings):
    """Patterns that belong together."""

    id: Id
    name: str | None = None
    priority: str | int | None = None
    description: str | None = None
    estimated_time_minutes: float | None = None
    vllm_config: Free | None = Field(default=None, description="settings of this layer")
    depends_on: list[str] | str | None = Field(default=None, description="layers that come before")
    prerequisite: Any = None
    mlflow_config: Free | None = None
    patterns: list[Pattern] | None = None
    matrix: list[Matrix] | Matrix | None = None


class Replicates(Part):
    """How often servers are started anew: a restart is the unit of replication."""

    blocks: Count = Field(default=1, description="passes over all replicated configurations")
    order: Literal["alternating", "same"] = Field(
        default="alternating", description="alternating: every other block runs backwards"
    )
    configurations: Literal["compared", "all"] = Field(
        default="compared", description="compared: only those that a comparison names; the rest run once"
    )


class Requests(Part):
    """Measured requests of a pattern and start: the larger of both."""

    per_start: Count = 12
    per_concurrency: Count = 2


class Comparison(Part):
    """Two sides of matched patterns."""

    id: Id | None = None
    comparison_id: str | None = None
    name: str | None = None
    layers: list[str] | None = None
    metric: str | None = None
    metrics: Any = None
    a: Free | None = Field(default=None, description='settings of one side, such as {"backend": "efa"}')
    b: Free | None = None
    match: list[str] | None = Field(default=None, description="settings that are equal (prompt, concurrency)")
    margin: float | str | None = Field(default=None, description="difference that is equivalent")
    smallest_effect: float | str | None = Field(default=None, description="difference that matters")
    hypothesis: str | None = None


class Budget(Part):
    """What may be spent."""

    hours: float = Field(gt=0)


class PlanFile(Part):
    """A plan of measurements."""

    schema_: str | None = Field(default=None, alias="$schema")
    include: list[str] | str | None = Field(
        default=None, description="files with more layers and comparisons"
    )
    phase: str | int | None = None
    name: str | None = None
    description: str | None = None
    created: str | None = None
    version: str | None = None
    mlflow_config: Free | None = None
    infrastructure: Free | None = Field(
        default=None, description="model, instance_type, gpu_type, tp_size, ..."
    )
    common_settings: Settings | None = Field(default=None, description="settings of all layers")
    prompt_lengths: Free | None = None
    concurrency_levels: Any = None
    kv_cache_reference: Free | None = Field(
        default=None, description="bytes_per_token: the KV cache of a token, for kvbench"
    )
    layers: list[Layer] | None = None
    execution_order: list[Any] | None = None
    analysis_plan: Free | None = None
    estimated_duration: Any = None
    validation_targets: Any = None
    task_definition_paths: Any = None
    generate_tasks_script: Any = None
    replicates: Replicates | None = None
    requests: Requests | None = None
    comparisons: list[Comparison] | None = None
    budget: Budget | None = None
    price_per_hour: float | None = Field(default=None, ge=0, description="of one node")


def generate() -> dict[str, Any]:
    """The JSON Schema of a plan (draft 2020-12)."""
    return json_schema(PlanFile, "taskrunner plan")
