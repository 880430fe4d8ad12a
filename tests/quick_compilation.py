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
