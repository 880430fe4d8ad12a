"""How tests compile: quickly, as most of their time is compilation.

LLVM's passes cost half of a compilation; MLIR's emitters of fused kernels, and the parts in which
LLVM gets a program, half of the rest. None of them changes a promise of a test. In an environment
with JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests compile as a user's commands do.
"""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

FLAGS = (
  "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
  else ""
)


def keep_from_libtpu():
  """Takes the flags out of the environment: CPUs have read them, and libtpu, which reads them when
  it is loaded, ends a process for those that it does not know.
  """
  import jax

  jax.devices("cpu")
  os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(FLAGS, "")
