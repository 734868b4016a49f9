"""GPUs through NVML: their points, the processes that hold their memory, and which engine these belong to."""

from llm_headroom.gpu.reading import GpuError, Gpus, Reading

__all__ = ["GpuError", "Gpus", "Reading"]
