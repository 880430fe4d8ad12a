"""Chips that a plan can be made for: peaks as their makers state them, and what XLA has to know."""

import dataclasses

GB = 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  flops: dense bfloat16 operations per second.  memory: bytes.  bandwidth: of memory, bytes per
  second.  link: to other chips, both directions together, bytes per second.  source: who says so.
  """

  name: str
  platform: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  source: str


TPU_PAGE = "cloud.google.com/tpu/docs/system-architecture-tpu-vm"
NVIDIA_PAGE = "nvidia.com data sheet"
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", "tpu", 275e12, 32 * GB, 1228 * GB, 300 * GB, TPU_PAGE),
    Chip("v5e", "tpu", 197e12, 16 * GB, 819 * GB, 200 * GB, TPU_PAGE),
    Chip("v5p", "tpu", 459e12, 95 * GB, 2765 * GB, 600 * GB, TPU_PAGE),
    Chip("v6e", "tpu", 918e12, 32 * GB, 1640 * GB, 400 * GB, TPU_PAGE),
    Chip("a100", "cuda", 312e12, 80 * GB, 2039 * GB, 600 * GB, NVIDIA_PAGE),
    Chip("h100", "cuda", 989e12, 80 * GB, 3352 * GB, 900 * GB, NVIDIA_PAGE),
    Chip("h200", "cuda", 989e12, 141 * GB, 4800 * GB, 900 * GB, NVIDIA_PAGE),
    Chip("b200", "cuda", 2250e12, 180 * GB, 7672 * GB, 1800 * GB, NVIDIA_PAGE),
    # Of no machine: one that shows what a program takes, with the peaks of a small laptop.
    Chip("cpu", "cpu", 1e11, 16 * GB, 20 * GB, 10 * GB, "assumed"),
  )
}

# What differs between GPUs: (streaming multiprocessors, units of each, clock in GHz, L2 bytes,
# memory bytes, shared memory of a core and of a block that asks for it, major capability, name).
GPUS = {
  "a100": (108, 64, 1.41, 41943040, 85100068864, 167936, 166912, 8, "NVIDIA A100-SXM4-80GB"),
  "h100": (132, 128, 1.98, 52428800, 84942979072, 233472, 232448, 9, "NVIDIA H100 80GB HBM3"),
  "h200": (132, 128, 1.98, 52428800, 151397597184, 233472, 232448, 9, "NVIDIA H200 141GB HBM3e"),
  "b200": (148, 128, 1.965, 132644864, 191514411008, 233472, 232448, 10, "NVIDIA B200"),
}


def gpu_target(name):
  """Returns the description of a GPU from which XLA compiles for it, as the text of a protocol
  buffer.
  """
  cores, units, clock, l2, memory, shared, optin, major, full = GPUS[name]
  return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(CHIPS[name].bandwidth)}
  l2_cache_size: {l2}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.0"
  device_address_bits: 64
  name: "{full}"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{full}"
"""
