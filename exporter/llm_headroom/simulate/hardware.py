"""What a step of a model costs on a GPU: a stated roofline, not a measurement.

A step reads the weights once and the cached tokens of every decoding sequence, and computes two floating-point
operations per parameter and token. It takes the longer of the two, at an assumed share of the peak rates, plus a fixed
overhead; see docs/simulator.md for how far that is from published measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 1024**3
_ACTIVATIONS = 2 * GIB  # assumed
_GRAPHS = GIB  # assumed


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's data sheet.

    Attributes:
        name: as NVML reports it.
        memory_bytes: as NVML reports it.
        bandwidth: bytes per second of device memory.
        flops: dense bf16 operations per second with fp32 accumulation.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float


H100_SXM = Gpu("NVIDIA H100 80GB HBM3", 81_559 * 1024**2, 3.35e12, 989e12)  # NVIDIA H100 datasheet, SXM column
A100_80GB = Gpu("NVIDIA A100-SXM4-80GB", 81_920 * 1024**2, 2.039e12, 312e12)  # NVIDIA A100 80GB datasheet
L4 = Gpu("NVIDIA L4", 23_034 * 1024**2, 300e9, 121e12)  # NVIDIA L4 datasheet; half of its figure with sparsity
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", 24_564 * 1024**2, 1008e9, 165.2e12)  # NVIDIA Ada GPU architecture, appendix A
GPUS = {"h100": H100_SXM, "a100-80gb": A100_80GB, "l4": L4, "rtx4090": RTX_4090}


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer.

    Attributes:
        name: its repository on the Hugging Face hub, where config.json holds these figures.
        layers: decoder layers.
        hidden: width of the residual stream.
        heads: attention heads; `kv_heads` those that have keys and values.
        vocab: tokens.
        parameters: all of them, embeddings included.
        head_width: width of a head; 0 means `hidden` / `heads`.
        bytes_per_parameter: 2 for bf16.
        bytes_per_element: of a cached key or value; 2 for bf16.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocab: int
    parameters: int
    head_width: int = 0
    bytes_per_parameter: float = 2.0
    bytes_per_element: float = 2.0

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return round(self.parameters * self.bytes_per_parameter)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token, over all layers."""
        width = self.head_width or self.hidden // self.heads
        return round(2 * self.layers * self.kv_heads * width * self.bytes_per_element)


LLAMA_3_8B = Model("meta-llama/Meta-Llama-3-8B", 32, 4096, 32, 8, 128_256, 8_030_261_248)
LLAMA_3_70B = Model("meta-llama/Meta-Llama-3-70B", 80, 8192, 64, 8, 128_256, 70_553_706_496)
LLAMA_2_70B = Model("meta-llama/Llama-2-70b-hf", 80, 8192, 64, 8, 32_000, 68_976_648_192)
QWEN_2_5_7B = Model("Qwen/Qwen2.5-7B", 28, 3584, 28, 4, 152_064, 7_615_616_512)
TINY_LLAMA = Model("tiny-llama", 2, 256, 4, 2, 314, 1_500_000, bytes_per_parameter=4.0, bytes_per_element=4.0)
MODELS = {
    "llama-3-8b": LLAMA_3_8B, "llama-3-70b": LLAMA_3_70B, "llama-2-70b": LLAMA_2_70B, "qwen2.5-7b": QWEN_2_5_7B,
    "tiny-llama": TINY_LLAMA,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Roofline:
    """The cost of steps of one model on `tensor_parallel` equal GPUs; fits `engine_state.StepCost`.

    Attributes:
        model: what runs.
        gpu: on what.
        tensor_parallel: GPUs that share each layer.
        memory_efficiency: share of the peak bandwidth that is reached.
        compute_efficiency: share of the peak operations that is reached.
        overhead: seconds of every step: launches, sampling, scheduling.
        sequence_overhead: seconds per sequence in the step: sampling and bookkeeping.
        reduce_latency: seconds of each of the two all-reduces per layer with more than one GPU.
    """

    model: Model
    gpu: Gpu
    tensor_parallel: int = 1
    memory_efficiency: float = 0.75
    compute_efficiency: float = 0.6
    overhead: float = 0.003
    sequence_overhead: float = 3e-5
    reduce_latency: float = 2e-5

    def step_seconds(
        self, prefill_tokens: int, decode_sequences: int, context_tokens: int, attention_pairs: int = 0
    ) -> float:
        """The seconds of one step; see `engine_state.StepCost` for the arguments."""
        model, gpus = self.model, self.tensor_parallel
        read = model.weights_bytes + context_tokens * model.kv_bytes_per_token
        tokens = prefill_tokens + decode_sequences
        # two operations per parameter and token; query-key and score-value products: 4 x width per pair and layer
        attention = 4 * model.layers * model.hidden * (attention_pairs + context_tokens)
        operations = 2 * model.parameters * tokens + attention
        memory = read / (gpus * self.gpu.bandwidth * self.memory_efficiency)
        compute = operations / (gpus * self.gpu.flops * self.compute_efficiency)
        reduce = 2 * model.layers * self.reduce_latency if gpus > 1 else 0.0
        return max(memory, compute) + reduce + self.overhead + self.sequence_overhead * decode_sequences


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What an engine's start leaves of each GPU's memory; bytes of one GPU.

    Attributes:
        weights: its share of the weights.
        activations: peak of a profiled step.
        graphs: CUDA graphs and the CUDA context.
        kv_pool: what is left of `utilisation` x memory.
        kv_tokens: tokens that the pool holds.
    """

    weights: int
    activations: int
    graphs: int
    kv_pool: int
    kv_tokens: int


def plan_memory(model: Model, gpu: Gpu, *, tensor_parallel: int = 1, utilisation: float = 0.9) -> MemoryPlan:
    """How an engine that preallocates divides a GPU's memory.

    Raises:
        ValueError: nothing is left for the KV cache.
    """
    weights = model.weights_bytes // tensor_parallel
    pool = round(gpu.memory_bytes * utilisation) - weights - _ACTIVATIONS - _GRAPHS
    tokens = pool * tensor_parallel // model.kv_bytes_per_token
    if tokens < 1:
        raise ValueError(
            f"{model.name} leaves no memory for the KV cache on {tensor_parallel} x {gpu.name} at {utilisation:.0%}"
        )
    return MemoryPlan(weights, _ACTIVATIONS, _GRAPHS, pool, tokens)
