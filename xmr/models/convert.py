"""Turns PyTorch weights of a backbone into ours.

  python -m xmr.models.convert --kind=resnet152 --input=resnet152-394f9c45.pth
  --output=resnet152.safetensors

Input: torchvision or timm weights, `.safetensors` or what torch.save wrote (needs the extra
`convert`); for towers (clip_vit, siglip_vit, dinov2, clip_text, siglip_text, bert, mpnet) a folder
of Hugging Face or open_clip. The fields of a config that a tower needs are printed. The output
names our variables, "params/..." and "batch_stats/...", and keeps the source's name and SHA-256 in
its metadata. Nothing in a file is ever executed.
"""

import dataclasses
import pathlib
import shlex
from collections.abc import Callable

from xmr import command_line
from xmr.errors import UserError, reported

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
EFFICIENTNETS = ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l")
TF_EFFICIENTNETS = ("tf_efficientnetv2_s", "tf_efficientnetv2_m", "tf_efficientnetv2_l")
IMAGE_KINDS = (*RESNETS, "vgg19", *EFFICIENTNETS, *TF_EFFICIENTNETS)
TEXT_KINDS = ("bert", "mpnet")
TOWER_KINDS = {
  "clip_vit": ("image", "clip"),
  "siglip_vit": ("image", "siglip"),
  "dinov2": ("image", "dinov2"),
  "clip_text": ("text", "clip"),
  "siglip_text": ("text", "siglip"),
}
KINDS = (*IMAGE_KINDS, *TOWER_KINDS, *TEXT_KINDS)


@dataclasses.dataclass(frozen=True)
class Kind:
  """An image backbone: our module, and the names of the tensors of each source."""

  module: Callable  # () -> linen module called as (images, train=)
  names: tuple  # functions from our path to the source's name, the likelier source first
  ignored: tuple  # prefixes of the classifier


def kind(name):
  """The Kind of that name; UserError lists the known names for any other."""
  if name in RESNETS:
    from xmr.models import resnet

    return Kind(lambda: resnet.ResNet(*resnet.RESNETS[name]), (resnet.torchvision_name,), ("fc.",))
  if name == "vgg19":
    from xmr.models import vgg

    return Kind(vgg.VGG, (vgg.torchvision_name, vgg.timm_name), ("classifier.6.", "head.fc."))
  if name in EFFICIENTNETS + TF_EFFICIENTNETS:
    from functools import partial

    from xmr.models import efficientnet

    stages = efficientnet.STAGES[name[-1]]
    source = efficientnet.torchvision_name if name in EFFICIENTNETS else efficientnet.timm_name
    return Kind(
      lambda: efficientnet.EfficientNetV2(stages, name in TF_EFFICIENTNETS),
      (partial(source, stages=stages),),
      ("classifier.",),
    )
  raise UserError(f"--kind is {name!r}; expected one of {', '.join(KINDS)}")


def shapes(name):
  """Shapes of the variables of an image backbone, {"params": nested, "batch_stats": nested}."""
  import jax
  import numpy as np

  from xmr.interop.torch_files import template

  return template(kind(name).module(), jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32))


def image_variables(name, tensors, *, source):
  """Our variables from the tensors of torchvision or timm.

  Args:
    name: one of IMAGE_KINDS.  tensors: {PyTorch name: array}.  source: path, for errors.
  Returns:
    {"params": nested NumPy float32, "batch_stats": nested}.
  Raises:
    UserError: missing, extra or misshapen tensors; it names all of them, or the kind that the file
      really holds.
  """
  from xmr.interop.torch_files import compare, refuse

  def attempts(name):
    found, want = kind(name), shapes(name)
    return [compare(want, tensors, name=naming, ignored=found.ignored) for naming in found.names]

  results = attempts(name)
  variables, problems = min(results, key=lambda result: len(result[1]))
  if problems:
    # Another architecture differs in far more than a tenth, and trying all others takes a while.
    for other in IMAGE_KINDS if len(problems) > len(tensors) / 10 else ():
      if other != name and any(not found for _, found in attempts(other)):
        raise UserError(f"{source}: holds {other}; --kind says {name}")
    refuse(problems, source=source, kind=name)
  return variables


def convert(name, source, target):
  """Converts one file or folder and writes the result.

  Args:
    name: one of KINDS.  source: path of the weights; a folder for towers.
    target: path of the .safetensors file to write.
  Returns:
    dict of "kind", "source" and "sha256" as in the metadata, "tensors", the number of tensors, and
    "settings", the fields of a config that a tower needs.
  Raises:
    UserError: unknown kind, unreadable source, or tensors that do not fit; nothing is written.
  """
  from xmr.interop import torch_files, weights

  source, target = pathlib.Path(source), pathlib.Path(target)
  if target.suffix != ".safetensors":
    raise UserError(f"--output is {target}; expected a name that ends in .safetensors")
  if not target.parent.is_dir():
    raise UserError(f"--output is {target}; the folder {target.parent} does not exist")
  settings = {}
  if name in TOWER_KINDS:
    variables, settings, file = tower(name, source)
  elif name in TEXT_KINDS:
    from xmr.interop import bert

    found = bert.read_architecture(source).kind
    if found != name:
      raise UserError(f"{source}: holds {found}; --kind says {name}")
    bert.tokenizer(source)
    variables, file = bert.variables(source), source / "model.safetensors"
    settings = bert.settings(source)
  else:
    kind(name)
    variables, file = image_variables(name, torch_files.read_tensors(source), source=source), source
  metadata = {"kind": name, "source": source.name, "sha256": torch_files.sha256(file)}
  weights.save(target, variables, metadata)
  tensors = sum(1 for _ in torch_files.paths(variables))
  return metadata | {"tensors": tensors, "settings": settings}


def tower(name, folder):
  """One tower of a folder, without its projection, which belongs to another joint space.

  Args:
    name: key of TOWER_KINDS.  folder: of Hugging Face or open_clip.
  Returns:
    ({"params": nested}, {"model.image.width": 768, ...}, path of the weights).
  """
  from xmr.interop import pretrained

  side, kind = TOWER_KINDS[name]
  towers = pretrained.load(folder)
  if towers.kind != kind:
    raise UserError(f"{folder}: holds {towers.kind}; --kind says {name}")
  settings = pretrained.side_settings(towers, side)
  for key in ("project", "bias"):
    settings.pop(f"model.{side}.{key}", None)
  params = towers.params[f"{side}_encoder"]["backbone"]
  return {"params": params}, settings, towers.source


def side_of(settings):
  """ "image" or "text": the side of a config that settings are for."""
  return "image" if "model.image.name" in settings else "text"


def main(arguments=None):
  """The command; prints what was converted."""
  parser = command_line.parser("xmr.models.convert", __doc__)
  parser.add_argument("--kind", help=", ".join(KINDS))
  parser.add_argument(
    "--input", help=".safetensors, .pth or .pt file; a Hugging Face folder for text"
  )
  parser.add_argument("--output", help="the .safetensors file to write")
  with reported():
    usage = "--kind=KIND --input=FILE --output=FILE"
    options = command_line.parsed(
      parser, arguments, needed=("kind", "input", "output"), usage=usage
    )
    done = convert(options.kind, options.input, options.output)
    print(
      f"{options.output}: {done['kind']}, {done['tensors']} tensors from {done['source']}, "
      f"sha256 {done['sha256']}"
    )
    if done["settings"]:
      fields = done["settings"] | {f"model.{side_of(done['settings'])}.weights": options.output}
      # Quoted for a shell, which would take the brackets of a tuple for its own.
      print("config: " + shlex.join(f"--config.{key}={value}" for key, value in fields.items()))


if __name__ == "__main__":
  main()
