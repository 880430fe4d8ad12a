"""Slices by name: v5e:2x4, h100:8, h100:2x8 (nodes x GPUs), cpu:8."""

import dataclasses
import math
import os
import re

from xmr.errors import UserError
from xmr.plan.chips import CHIPS, Chip, gpu_target

# What libtpu asks of the machine when it starts; on one without TPUs it warns of what is missing.
NOBODY = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# A v4 has two cores that work as one device; described without this, they are two.
OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# XLA tries tiles of products on the GPU that it compiles for. Without one it fails where its first
# guess does not fit (the 6,304 rows of a ViT-B/16), so products are left to cuBLAS.
COMPILER_OPTIONS = {"cuda": {"xla_gpu_enable_triton_gemm": False}}
MOST = 65_536  # devices; the largest slices have some 9,000, and each is described
FORM = re.compile(r"(\w+):(\d+(?:x\d+)*)")


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice: its chip and the sizes of its axes."""

  chip: Chip
  shape: tuple[int, ...]

  @property
  def name(self):
    """As it is written on the command line."""
    return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

  @property
  def size(self):
    """The number of devices."""
    return math.prod(self.shape)


def parse(text):
  """Returns the Topology that a name describes.

  Raises:
    UserError: an unknown chip, a shape that is none or too large.
  """
  found = FORM.fullmatch(text)
  if found is None or found[1] not in CHIPS or 0 in (shape := sizes(found[2])):
    known = ", ".join(CHIPS)
    raise UserError(f"--topology is {text!r}; expected CHIP:SHAPE, as v5e:2x4; chips: {known}")
  topology = Topology(CHIPS[found[1]], shape)
  if topology.size > MOST:
    raise UserError(f"--topology is {text!r}, {topology.size:,} devices; expected at most {MOST:,}")
  return topology


def sizes(text):
  """Returns (2, 4) of "2x4"."""
  return tuple(int(part) for part in text.split("x"))


def prepare(topology):
  """Sets what JAX reads of the environment when it starts; to be called before it is imported."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if topology.chip.platform == "tpu":
    for name, value in NOBODY.items():
      os.environ.setdefault(name, value)
  if topology.chip.platform == "cpu":
    flag = f"--xla_force_host_platform_device_count={topology.size}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def devices(topology):
  """Returns the devices of a slice: described, not there; on them programs compile and never run.

  Raises:
    UserError: the compiler of the chip is not installed, or does not know the shape.
  """
  import jax
  from jax.experimental import topologies

  chip = topology.chip
  if chip.platform == "cpu":
    found = jax.devices("cpu")
    if len(found) < topology.size:
      raise UserError(f"--topology: {len(found)} CPU devices; expected {topology.size}")
    return found[: topology.size]
  shape = "x".join(map(str, topology.shape))
  try:
    if chip.platform == "tpu":
      found = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip.name}:{shape}", **OPTIONS.get(chip.name, {})
      )
      return list(found.devices)
    hosts = topology.shape[0] if len(topology.shape) > 1 else 1
    described = topologies.get_topology_desc(
      platform="cuda",
      topology_name=chip.name,
      target_config=gpu_target(chip.name),
      topology=f"{hosts}x{topology.size // hosts}x1",
    )
    return list(described.devices)
  except Exception as error:  # Each compiler has errors of its own.
    extra = "plan" if chip.platform == "tpu" else "plan-cuda"
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"--topology={topology.name}: no compiler for it ({reason}); pip install -e '.[{extra}]', "
      "or another shape"
    ) from None


def executable(traced, platform):
  """Compiles a traced program for a platform, "tpu", "cuda" or "cpu"; it need not be there."""
  return traced.lower(lowering_platforms=(platform,)).compile(COMPILER_OPTIONS.get(platform))
