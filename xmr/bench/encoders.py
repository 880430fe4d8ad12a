"""Encoders: ResNet-152 on pixels, and a BiLSTM on words, forward and backward."""

from xmr.bench.cases import OURS, Case, Goal

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet152": (3, 8, 36, 3)}
# Of a 224-px image through ResNet-152: 11.5 G multiply-adds.
RESNET152_PRODUCTS = 2 * 11.51e9


def cases(*, quick):
  """Returns the inference of ResNet-152, and the BiLSTM with two readouts."""
  here = "xmr.bench.encoders:"
  net = (
    {"arch": "resnet18", "batch": 1, "size": 32}
    if quick
    else {"arch": "resnet152", "batch": 8, "size": 224}
  )
  found = [
    Case(
      name=f"{net['arch']} {net['size']} px, B {net['batch']}, inference",
      contenders={OURS: here + "resnet", "torch": here + "resnet_in_torch"},
      arguments=net,
      products=0 if quick else net["batch"] * RESNET152_PRODUCTS,
      items=net["batch"],
      unit="images",
      goals=() if quick else (Goal("ratio/best", at_least=0.9),),
    )
  ]
  sizes = (
    {"batch": 4, "length": 6, "words": 20, "hidden": 16}
    if quick
    else {"batch": 128, "length": 30, "words": 300, "hidden": 1024}
  )
  for readout in ("mean",) if quick else ("last", "mean"):
    found.append(
      Case(
        name=f"BiLSTM {readout}, B {sizes['batch']}, forward + backward",
        contenders={OURS: here + "bilstm", "torch": here + "bilstm_in_torch"},
        arguments=sizes | {"readout": readout},
        products=least_products(**sizes, readout=readout),
        goals=()
        if quick
        else (
          Goal("share", at_least=0.6),
          Goal("ratio/best", at_least=1),
        ),
      )
    )
  return found


def resnet(*, arch, batch, size):
  """The backbone of models.image, frozen, on standardised pixels."""
  import jax
  import jax.numpy as jnp

  from xmr.models.image import backbone

  model = backbone(arch)
  images = jax.random.normal(jax.random.key(1), (batch, size, size, 3), jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), images[:1])
  encode = jax.jit(model.apply).lower(variables, images).compile()
  return {"run": lambda: encode(variables, images).block_until_ready()}


def resnet_in_torch(*, arch, batch, size):
  """The same network in PyTorch, channels last, for inference."""
  import torch
  from torch import nn

  def conv(inputs, outputs, kernel, stride=1):
    return [
      nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
      nn.BatchNorm2d(outputs),
    ]

  class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
      super().__init__()
      outputs = 4 * width if bottleneck else width
      if bottleneck:
        layers = [
          *conv(inputs, width, 1),
          nn.ReLU(True),
          *conv(width, width, 3, stride),
          nn.ReLU(True),
        ]
        layers += conv(width, outputs, 1)
      else:
        layers = [*conv(inputs, width, 3, stride), nn.ReLU(True), *conv(width, width, 3)]
      self.body = nn.Sequential(*layers)
      same = stride == 1 and inputs == outputs
      self.shortcut = nn.Identity() if same else nn.Sequential(*conv(inputs, outputs, 1, stride))
      self.outputs = outputs

    def forward(self, x):
      return torch.relu(self.body(x) + self.shortcut(x))

  layers, inputs = [*conv(3, 64, 7, 2), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)], 64
  for stage, count in enumerate(BLOCKS[arch]):
    for i in range(count):
      block = Block(inputs, 64 * 2**stage, 2 if stage and not i else 1, arch != "resnet18")
      layers, inputs = [*layers, block], block.outputs
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = (
    nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
    .eval()
    .to(device)
    .to(memory_format=torch.channels_last)  # pyright: ignore  (not in torch's stubs)
  )
  images = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)

  def run():
    with torch.inference_mode():
      float(model(images)[0, 0])

  return {"run": run}


def lengths(batch, length):
  """Returns [B] int32: words of captions with <start> and <end>, 13 on average, at most
  `length`.
  """
  import numpy as np

  return np.clip(
    np.random.default_rng(0).gamma(12.0, 13 / 12, batch).round(), min(3, length), length
  ).astype(np.int32)


def least_products(*, batch, length, words, hidden, readout):
  """Operations of the steps that are there, forward and twice that backward; with `last` the second
  direction reads one word, and no state before it."""
  steps = int(lengths(batch, length).sum())
  one = 4 * hidden * (words + hidden)
  back = batch * 4 * hidden * words if readout == "last" else steps * one
  return 3 * 2.0 * (steps * one + back)


def bilstm(*, batch, length, words, hidden, readout):
  """models.text without its word vectors: both directions and the readout, gradients of weights and
  inputs.
  """
  import jax
  import jax.numpy as jnp

  from xmr.ops import rnn

  rng = jax.random.split(jax.random.key(0), 9)
  shapes = ((words, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,), (4 * hidden,))
  weights = [
    rnn.Weights(
      *(
        jax.random.uniform(key, shape, jnp.float32, -(hidden**-0.5), hidden**-0.5)
        for key, shape in zip(rng[4 * i : 4 * i + 4], shapes, strict=True)
      )
    )
    for i in range(2)
  ]
  x, count = jax.random.normal(rng[8], (batch, length, words)), jnp.asarray(lengths(batch, length))

  def value(weights, x):
    if readout == "last":
      last = jnp.take_along_axis(x, (count - 1)[:, None, None], axis=1)[:, 0]
      return jnp.sum(rnn.final_state(x, count, weights[0]) + rnn.single_step(last, weights[1])) / 2
    steps = [
      rnn.recurrent(x, count, w, reverse=reverse)[0]
      for w, reverse in zip(weights, (False, True), strict=True)
    ]
    return jnp.sum((steps[0] + steps[1]).sum(axis=1) / count[:, None]) / 2

  gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower(weights, x).compile()
  return {"run": lambda: jax.block_until_ready(gradient(weights, x)) and None}


def bilstm_in_torch(*, batch, length, words, hidden, readout):
  """torch.nn.LSTM in two directions on padded words, as released code calls it when it does not
  pack.
  """
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  model = torch.nn.LSTM(words, hidden, batch_first=True, bidirectional=True).to(device)
  x = torch.randn(batch, length, words, device=device, requires_grad=True)
  count = torch.from_numpy(lengths(batch, length)).long().to(device)
  there = (torch.arange(length, device=device)[None] < count[:, None])[..., None]

  def run():
    model.zero_grad(set_to_none=True)
    x.grad = None
    steps = model(x)[0].view(batch, length, 2, hidden).mean(2)
    if readout == "last":
      total = steps[torch.arange(batch, device=device), count - 1].sum()
    else:
      total = ((steps * there).sum(1) / count[:, None]).sum()
    total.backward()
    if device == "cuda":
      torch.cuda.synchronize()

  return {"run": run}
