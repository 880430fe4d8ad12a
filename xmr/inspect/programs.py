"""A run's towers as programs that run without xmr: StableHLO for JAX, ONNX for others."""

import contextlib
import importlib.util
import json
import logging
import pathlib
import warnings

import jax
import numpy as np

from xmr import checkpoint
from xmr.data import Subwords
from xmr.errors import UserError
from xmr.inspect import export

PLATFORMS = ("cpu", "cuda", "tpu")
WORDS = 64  # of a row of text where the run has a vocabulary of words
NAMES = {"image": ("pixels",), "text": ("ids", "count")}
NEEDED = {
  "stablehlo": {"flatbuffers": "pip install -e '.[export]'"},
  "onnx": {
    "onnxruntime": "pip install -e '.[onnx]'",
    # Its requirements exclude our version of orbax, which it does not use.
    "jax2onnx": "pip install --no-deps jax2onnx",
  },
}


def check(run, format):
  """Raises UserError where a package is missing, or an encoder reads features."""
  for package, command in NEEDED[format].items():
    if importlib.util.find_spec(package) is None:
      raise UserError(f"format {format} needs {package}: {command}")
  for side in ("image", "text"):
    if run.config.data[side] not in ("pixels", "words"):
      raise UserError(
        f"{run.workdir} reads {side} {run.config.data[side]}; expected a run on pixels and words "
        f"for {format}"
      )


def sides(run):
  """Yields (side, tensors, encode, inputs) of both encoders, adapters merged.

  tensors: {name: array}, as in model.safetensors.  encode: (tensors, *inputs) -> [b, D] float32.
  inputs: ((shape, type), ...), "b" in place of the number of rows.
  """
  arrays, size = export.arrays_of(export.merged(run)[0]), run.config.data.image_size
  words = WORDS
  if isinstance(run.vocabulary, Subwords):
    words = run.vocabulary.length(run.config.data.max_length)
  # Without adapters, which are merged.
  model = getattr(run.model, "model", run.model)
  inputs = {
    "image": ((("b", size, size, 3), np.uint8),),
    "text": ((("b", words), np.int32), (("b",), np.int32)),
  }
  for side, specs in inputs.items():

    def encode(arrays, *inputs, side=side):
      return model.apply(checkpoint.nest(arrays), *inputs, method=f"encode_{side}")

    parts = (f".{side}_encoder.", ".shared.")
    yield side, {n: x for n, x in arrays.items() if any(p in n for p in parts)}, encode, specs


def write(run, folder):
  """Writes image.stablehlo and text.stablehlo: programs that need JAX and NumPy, and no xmr.

  Each takes {name: array}, the tensors of model.safetensors that `stablehlo.json` names, and a
  batch of any size: pixels [b, S, S, 3] uint8, or ids [b, L] int32 and their number [b] int32. It
  returns embeddings [b, D] float32. One file serves CPU, CUDA and TPU.
  """
  folder, told = pathlib.Path(folder), {}
  (b,) = jax.export.symbolic_shape("b")
  for side, own, encode, inputs in sides(run):
    specs = [jax.ShapeDtypeStruct((b, *shape[1:]), dtype) for shape, dtype in inputs]
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in own.items()}
    exported = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(shapes, *specs)
    (folder / f"{side}.stablehlo").write_bytes(exported.serialize())
    told[side] = {
      "tensors": sorted(own),
      "inputs": [f"{x.dtype}{list(map(str, x.shape))}" for x in specs],
    }
  (folder / "stablehlo.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def write_onnx(run, folder):
  """Writes image.onnx and text.onnx with their weights inside, for ONNX Runtime.

  Inputs are called pixels [b, S, S, 3] uint8, or ids [b, L] int32 and count [b] int32; the output
  is embeddings [b, D] float32.
  """
  with _quiet():
    import jax2onnx

    for side, own, encode, inputs in sides(run):
      jax2onnx.to_onnx(
        lambda *given, own=own, encode=encode: encode(own, *given),
        [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs],
        model_name=side,
        input_names=NAMES[side],
        output_names=["embeddings"],
        return_mode="file",
        output_path=str(pathlib.Path(folder) / f"{side}.onnx"),
      )


@contextlib.contextmanager
def _quiet():
  """Silences what jax2onnx logs and warns about its own examples and unused types."""
  before = logging.root.manager.disable
  logging.disable(logging.ERROR)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  finally:
    logging.disable(before)
