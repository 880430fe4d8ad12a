"""How tests compile: most of their time is compilation.

MLIR's emitters of fused kernels and the parts in which LLVM gets a program cost more than half of a
compilation and change no promise of a test.
"""

FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
