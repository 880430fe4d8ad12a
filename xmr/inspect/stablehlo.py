"""The towers of a run as compiled programs, which run where xmr is not."""

import importlib.util
import json
import pathlib

import jax
import numpy as np

from xmr import checkpoint
from xmr.data import Subwords
from xmr.errors import UserError
from xmr.inspect import export

PLATFORMS = ("cpu", "cuda", "tpu")
WORDS = 64  # of a row of text.stablehlo where the run has a vocabulary of words


def write(run, folder):
  """Writes image.stablehlo and text.stablehlo: programs that need JAX and NumPy, and no xmr.

  Each is called with {name: array}, the tensors of model.safetensors that begin with its name in
  `stablehlo.json`, and with a batch of any size: pixels [b, S, S, 3] uint8, or ids [b, L] int32 and
  their number [b] int32. It returns the embeddings [b, D] float32. One file serves CPU, CUDA and
  TPU.

  Raises:
    UserError: a tower that reads features, or the package flatbuffers is missing.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise UserError("format stablehlo needs flatbuffers: pip install -e '.[export]'")
  folder, size = pathlib.Path(folder), run.config.data.image_size
  for side in ("image", "text"):
    if run.config.data[side] == "features":
      raise UserError(
        f"{run.workdir} reads {side} features; expected a run on pixels and words for stablehlo"
      )
  arrays = export.arrays_of(export.merged(run)[0])
  words = (
    run.vocabulary.length(run.config.data.max_length)
    if isinstance(run.vocabulary, Subwords)
    else WORDS
  )
  (b,) = jax.export.symbolic_shape("b")
  inputs = {
    "image": (jax.ShapeDtypeStruct((b, size, size, 3), np.uint8),),
    "text": (jax.ShapeDtypeStruct((b, words), np.int32), jax.ShapeDtypeStruct((b,), np.int32)),
  }
  # Without adapters, which are merged.
  model = getattr(run.model, "model", run.model)
  told = {}
  for side, specs in inputs.items():

    def encode(arrays, *inputs, side=side):
      nested = checkpoint.nest(arrays)
      return model.apply(nested, *inputs, method=f"encode_{side}")

    own = {name: x for name, x in arrays.items() if f".{side}_encoder." in name}
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in own.items()}
    exported = jax.export.export(jax.jit(encode), platforms=PLATFORMS)(shapes, *specs)
    (folder / f"{side}.stablehlo").write_bytes(exported.serialize())
    told[side] = {
      "tensors": sorted(own),
      "inputs": [f"{x.dtype}{list(map(str, x.shape))}" for x in specs],
    }
  (folder / "stablehlo.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
