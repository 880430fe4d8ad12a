"""PyTorch models to compare with: torchvision without its compiled operators, and networks with
sane activations.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest


@functools.cache
def vision():
  """torchvision.models, or a skip. Its C++ operators do not load beside a CPU torch; no classifier
  uses them.
  """
  torch = pytest.importorskip("torch")
  pytest.importorskip("PIL")
  library = torch.library.Library("torchvision", "FRAGMENT")
  for name in ("nms", "qnms"):
    # Already there where the operators did load.
    with contextlib.suppress(RuntimeError):
      library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  vision.keep = library  # The definitions live as long as the library object.
  return pytest.importorskip("torchvision").models


def torchvision_model(kind, **options):
  """A torchvision network with random weights and no classifier: its output is the feature
  vector.
  """
  torch = pytest.importorskip("torch")

  torch.manual_seed(0)
  model = getattr(vision(), kind)(weights=None, **options)
  if hasattr(model, "fc"):
    model.fc = torch.nn.Identity()
  elif kind.startswith("vgg"):
    model.classifier = model.classifier[:-1]
  else:
    model.classifier = torch.nn.Identity()
  return recalibrated(model)


def narrow_vgg(hidden=32):
  """torchvision's VGG19 up to fc7, with fc6 and fc7 of `hidden` units: the published ones hold 480
  MB.
  """
  torch = pytest.importorskip("torch")
  from torch import nn

  torch.manual_seed(0)
  model = vision().VGG.__new__(vision().VGG)  # Its constructor would draw the 480 MB.
  nn.Module.__init__(model)
  model.features, model.avgpool = (
    vision().vgg.make_layers(vision().vgg.cfgs["E"]),
    nn.AdaptiveAvgPool2d(7),
  )
  model.classifier = nn.Sequential(
    nn.Linear(512 * 49, hidden),
    nn.ReLU(),
    nn.Dropout(),
    nn.Linear(hidden, hidden),
    nn.ReLU(),
    nn.Dropout(),
  )
  for module in model.features:
    if isinstance(module, nn.Conv2d):
      nn.init.kaiming_normal_(module.weight, mode="fan_out")
  return recalibrated(model)


def timm_model(kind):
  """The same from timm."""
  torch = pytest.importorskip("torch")
  vision()
  timm = pytest.importorskip("timm")
  torch.manual_seed(0)
  return recalibrated(timm.create_model(kind, pretrained=False, num_classes=0))


def recalibrated(model, size=64):
  """Random affine parameters, and BatchNorm statistics of real activations.

  With the initial statistics a random network's signal dies or explodes, and a wrong converter
  passes.
  """
  torch = pytest.importorskip("torch")

  generator = torch.Generator().manual_seed(1)
  for module in model.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
      module.momentum = None  # average over the batches
      torch.nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
      torch.nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)
    elif isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) and module.bias is not None:
      torch.nn.init.normal_(module.bias, 0.0, 0.1, generator=generator)
  # Residual branches weaker than their shortcuts, as after training. With equal ones rounding grows
  # with depth: PyTorch's own float32 result of such a ResNet-152 is 1e-3 away from its float64
  # result.
  for block in model.modules():
    if type(block).__name__ in (
      "BasicBlock",
      "Bottleneck",
      "MBConv",
      "FusedMBConv",
      "InvertedResidual",
      "EdgeResidual",
    ):
      branch = [
        module
        for name, module in block.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and "downsample" not in name
      ]
      with torch.no_grad():
        branch[-1].weight.mul_(0.2)
  # Dropout and stochastic depth stay off: the statistics are of what runs at evaluation.
  model.eval()
  for module in model.modules():
    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
      module.train()
  # The two images of the comparison are in the batch: far from its statistics a deep random network
  # explodes.
  images = torch.cat(
    [
      torch.from_numpy(two_images(size).transpose(0, 3, 1, 2).copy()),
      torch.randn(6, 3, size, size, generator=generator),
    ]
  )
  with torch.no_grad():
    model(images)
  return model.eval()


def tensors(model):
  """State dict as NumPy."""
  return {name: value.numpy() for name, value in model.state_dict().items()}


def two_images(size=64):
  """[2, size, size, 3] float32, normalised pixels of two different pictures."""
  return np.random.default_rng(2).standard_normal((2, size, size, 3)).astype(np.float32)


def features(model, images):
  """The PyTorch model's output for [B, H, W, 3]."""
  torch = pytest.importorskip("torch")

  with torch.no_grad():
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()


def relative_difference(ours, theirs):
  """Largest difference of two sets of features, in units of the difference between the two inputs'
  features.
  """
  assert ours.shape == theirs.shape and np.isfinite(theirs).all()
  scale = np.abs(theirs[0] - theirs[1]).max()
  assert scale > 1e-3 * np.abs(theirs).max(), (
    "the two inputs give the same features: this proves nothing"
  )
  return np.abs(np.asarray(ours) - theirs).max() / scale


def changed(variables, collection, path, change):
  """A copy of nested variables with one leaf changed."""
  copy = jax.tree.map(np.array, variables)
  place = copy[collection]
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = change(place[path[-1]])
  return copy
