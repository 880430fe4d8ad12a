"""Conversion proved against PyTorch, kind by kind, and every bad file that a user may bring."""

import io
import json
import pickle
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch_reference as reference

from xmr.errors import UserError
from xmr.interop import torch_files
from xmr.models import convert

slow = pytest.mark.slow
FAST = ["resnet18"]
SLOW = [
  "resnet34",
  "resnet50",
  "resnet101",
  "resnet152",
  "vgg19",
  "efficientnet_v2_s",
  "efficientnet_v2_m",
  "efficientnet_v2_l",
]
TIMM_SLOW = [
  "tf_efficientnetv2_s",
  "resnet50",
  "vgg19",
  "tf_efficientnetv2_m",
  "tf_efficientnetv2_l",
]


def planted_faults(name):
  """(collection, path, change) of a flipped kernel and a zeroed running mean (VGG19, without
  BatchNorm: a bias).
  """

  def flip(kernel):
    return kernel[:, ::-1]

  if name == "vgg19":
    return [
      ("params", ("features_0", "kernel"), flip),
      ("params", ("features_5", "bias"), np.zeros_like),
    ]
  if name.startswith("resnet"):
    conv = "conv1" if name in ("resnet18", "resnet34") else "conv2"
    return [
      ("params", ("layer3_1", conv, "kernel"), flip),
      ("batch_stats", ("layer4_0", "bn2", "mean"), np.zeros_like),
    ]
  return [
    ("params", ("stage4_block1", "depthwise", "conv", "kernel"), flip),
    ("batch_stats", ("stage5_block0", "project", "bn", "mean"), np.zeros_like),
  ]


def prove(name, model):
  """Asserts that conversion is right to 1e-4 of the difference between two inputs, and that this
  measure sees faults.
  """
  images = reference.two_images()
  want = reference.features(model, images)
  tensors = reference.tensors(model)
  variables = convert.image_variables(name, tensors, source="test")
  module = convert.kind(name).module()
  apply = jax.jit(module.apply)
  found = apply(variables, images)
  assert found.shape == (2, module.features)
  assert reference.relative_difference(found, want) < 1e-4
  for collection, path, change in planted_faults(name):
    wrong = reference.changed(variables, collection, path, change)
    assert reference.relative_difference(apply(wrong, images), want) > 1e-3, path


@pytest.mark.parametrize("name", FAST + [pytest.param(name, marks=slow) for name in SLOW])
def test_converted_torchvision_network_equals_pytorch(name):
  prove(name, reference.torchvision_model(name))


@slow
@pytest.mark.parametrize("name", TIMM_SLOW)
def test_converted_timm_network_equals_pytorch(name):
  prove(name, reference.timm_model(name))


@pytest.mark.parametrize(
  "name",
  [
    "resnet50",
    "efficientnet_v2_m",
    *(pytest.param(each, marks=pytest.mark.slow) for each in ("resnet152", "efficientnet_v2_l")),
  ],
)
def test_every_tensor_of_torchvision_has_a_place(name):
  torch = pytest.importorskip("torch")

  reference.vision()
  with torch.device("meta"):
    model = getattr(reference.vision(), name)()
  tensors = {
    name: np.broadcast_to(np.float32(0), value.shape) for name, value in model.state_dict().items()
  }
  found = convert.kind(name)
  _, problems = torch_files.compare(
    convert.shapes(name), tensors, name=found.names[0], ignored=found.ignored
  )
  assert problems == []


@pytest.fixture(scope="module")
def resnet():
  """ResNet-18's tensors as PyTorch names them, with the classifier; random."""
  found = convert.kind("resnet18")
  random = np.random.default_rng(0)
  tensors = {}
  for (_, *path), want in torch_files.paths(convert.shapes("resnet18")):
    value = random.standard_normal(want.shape, dtype=np.float32)
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    tensors[found.names[0](tuple(path))] = np.ascontiguousarray(value)
  return tensors | {
    "fc.weight": np.zeros((1000, 512), np.float32),
    "fc.bias": np.zeros(1000, np.float32),
  }


def test_command_writes_our_names_and_the_source(resnet, tmp_path, capsys):
  source, target = tmp_path / "resnet18-f37072fd.safetensors", tmp_path / "ours.safetensors"
  safetensors.numpy.save_file(resnet, source)
  convert.main([f"--input={source}", f"--output={target}", "--kind=resnet18"])
  assert "resnet18, 100 tensors from resnet18-f37072fd.safetensors" in capsys.readouterr().out
  with safetensors.safe_open(target, framework="numpy") as file:
    said = file.metadata()
    assert set(json.loads(said.pop("digests"))) == set(file.keys())
    assert said == {
      "kind": "resnet18",
      "source": source.name,
      "sha256": torch_files.sha256(source),
    }
    kernel = file.get_tensor("params/layer1_0/conv1/kernel")
    np.testing.assert_array_equal(kernel, resnet["layer1.0.conv1.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
      file.get_tensor("batch_stats/bn1/mean"), resnet["bn1.running_mean"]
    )
    assert not [name for name in file.keys() if "fc" in name]


@pytest.mark.parametrize(
  "wrap",
  [
    lambda state: state,
    lambda state: {"epoch": 3, "state_dict": state},
    lambda state: {f"module.{name}": value for name, value in state.items()},
  ],
)
@pytest.mark.parametrize("old_format", [False, True])
def test_pytorch_files_give_the_same_as_safetensors(resnet, tmp_path, wrap, old_format):
  torch = pytest.importorskip("torch")
  state = {name: torch.from_numpy(value) for name, value in resnet.items()}
  torch.save(wrap(state), tmp_path / "weights.pth", _use_new_zipfile_serialization=not old_format)
  found = torch_files.read_tensors(tmp_path / "weights.pth")
  assert found.keys() == resnet.keys()
  for name, value in resnet.items():
    np.testing.assert_array_equal(found[name], value)


def test_half_precision_becomes_float32(resnet, tmp_path):
  torch = pytest.importorskip("torch")
  from safetensors.torch import save_file

  for dtype in (torch.bfloat16, torch.float16):
    save_file(
      {name: torch.from_numpy(value).to(dtype) for name, value in resnet.items()},
      tmp_path / "half.safetensors",
    )
    found = torch_files.read_tensors(tmp_path / "half.safetensors")
    assert found["conv1.weight"].dtype == np.float32
    np.testing.assert_allclose(found["conv1.weight"], resnet["conv1.weight"], rtol=1e-2)


def test_every_missing_extra_and_misshapen_tensor_is_named(resnet):
  wrong = dict(resnet)
  del wrong["layer1.0.conv1.weight"], wrong["bn1.running_var"]
  wrong["layer2.0.se.weight"] = np.zeros(3)
  wrong["layer4.1.conv2.weight"] = np.zeros((512, 512, 1, 1))
  with pytest.raises(UserError) as error:
    convert.image_variables("resnet18", wrong, source="weights.pth")
  message = str(error.value)
  assert message.startswith("weights.pth: does not fit resnet18 in 4 tensors: ")
  for part in (
    "missing layer1.0.conv1.weight (64, 64, 3, 3)",
    "missing bn1.running_var (64,)",
    "extra layer2.0.se.weight (3,)",
    "layer4.1.conv2.weight has shape (512, 512, 1, 1), expected (512, 512, 3, 3)",
  ):
    assert part in message


def test_another_known_architecture_is_called_by_its_name(resnet):
  with pytest.raises(UserError, match="^weights.pth: holds resnet18; --kind says resnet50$"):
    convert.image_variables("resnet50", resnet, source="weights.pth")


class Trap:
  """Pickled, it writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, "w")


def bad_files(folder):
  """Name of each bad file and the words that its error must hold."""
  torch = pytest.importorskip("torch")
  tensors = {"conv1.weight": torch.zeros(64, 3, 7, 7)}
  torch.save(tensors | {"trap": Trap(folder / "executed")}, folder / "code.pth")
  torch.save(
    tensors | {"trap": Trap(folder / "executed")},
    folder / "old.pth",
    _use_new_zipfile_serialization=False,
  )
  (folder / "plain.pkl").write_bytes(pickle.dumps(Trap(folder / "executed")))
  with zipfile.ZipFile(folder / "zip.pth", "w") as file:
    file.writestr("archive/data.pkl", pickle.dumps(Trap(folder / "executed")))
    file.writestr("archive/version", "3")
    file.writestr("setup.py", "open('executed', 'w')")
  whole = io.BytesIO()
  torch.save(tensors, whole)
  (folder / "cut.pth").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
  safetensors.numpy.save_file(
    {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, folder / "whole.safetensors"
  )
  (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-100])
  (folder / "page.safetensors").write_text("<!DOCTYPE html><html>404</html>")
  (folder / "empty.pth").write_bytes(b"")
  with zipfile.ZipFile(folder / "script.pt", "w") as file:
    for part in ("version", "byteorder", "data.pkl", "constants.pkl"):
      file.writestr(
        f"archive/{part}", "3" if part == "version" else "little" if part == "byteorder" else b""
      )
  torch.save([1, 2], folder / "list.pth")
  ones = torch.ones(2, 2)
  odd = {
    "sparse": ones.to_sparse(),
    "csr": ones.to_sparse_csr(),
    "meta": ones.to("meta"),
    "complex": ones.to(torch.complex64),
    "bomb": torch.ones(1).expand(1_000_000, 1_000_000),
  }
  for name, tensor in odd.items():
    torch.save({"conv1.weight": tensor}, folder / f"{name}.pth")
  torch.save({"epoch": 3}, folder / "number.pth")
  return {
    "code.pth": "holds io.open, which is code",
    "old.pth": "holds io.open, which is code",
    "plain.pkl": "neither",
    "zip.pth": "neither",
    "script.pt": "is a TorchScript program",
    "cut.pth": "nor a whole PyTorch file: cut short",
    "cut.safetensors": "not a whole safetensors file",
    "page.safetensors": "neither",
    "empty.pth": "neither",
    "list.pth": "holds a list; expected a dict of tensors",
    "number.pth": "entry 'epoch' is a int; expected a tensor",
    "absent.pth": "no such file",
    "sparse.pth": "is a tensor of layout sparse_coo; expected a dense tensor",
    "csr.pth": "is a tensor of layout sparse_csr; expected a dense tensor",
    "meta.pth": "is a tensor without values (device meta); expected a dense tensor",
    "complex.pth": "is a tensor of type complex64; expected a dense tensor",
    "bomb.pth": "is a tensor of shape (1000000, 1000000) with fewer values than that",
  }


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_bad_file_is_one_clear_line_and_nothing_runs(tmp_path, capsys):
  for name, words in bad_files(tmp_path).items():
    with pytest.raises(SystemExit) as exit:
      convert.main(
        [
          "--kind=resnet18",
          f"--input={tmp_path / name}",
          f"--output={tmp_path / 'out.safetensors'}",
        ]
      )
    message = capsys.readouterr().err
    assert exit.value.code == 2, name
    assert message.count("\n") == 1 and message.startswith(f"xmr: error: {tmp_path / name}: "), (
      message
    )
    assert words in message
  assert not (tmp_path / "executed").exists() and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (
      ["--kind=resnet20", "--output=a.safetensors"],
      "--kind is 'resnet20'; expected one of resnet18, ",
    ),
    (
      ["--kind=resnet18", "--output=a.pth"],
      "--output is a.pth; expected a name that ends in .safetensors",
    ),
    (["--kind=resnet18", "--output=nowhere/a.safetensors"], "the folder nowhere does not exist"),
  ],
)
def test_wrong_arguments_are_named(arguments, words, capsys):
  with pytest.raises(SystemExit):
    convert.main([*arguments, "--input=absent"])
  assert words in capsys.readouterr().err


def test_help_needs_no_torch():
  code = (
    "import sys; sys.modules['torch'] = None; from xmr.models import convert; "
    "convert.main(['--help'])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
  assert done.returncode == 0 and "--kind" in done.stdout


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  (tmp_path / "a.pth").write_bytes(b"PK\3\4")
  with pytest.raises(UserError, match=r"needs torch: pip install -e '.\[convert\]'"):
    torch_files.read_tensors(tmp_path / "a.pth")


def test_written_file_loads_into_the_image_encoder(resnet, tmp_path):
  from xmr.interop import weights

  source, target = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
  safetensors.numpy.save_file(resnet, source)
  convert.convert("resnet18", source, target)
  shapes = convert.shapes("resnet18")
  wrapped = {
    collection: {"image_encoder": {"backbone": tree}} for collection, tree in shapes.items()
  }
  found = weights.load_backbone(target, wrapped)
  kernel = found["params"]["image_encoder"]["backbone"]["conv1"]["kernel"]
  np.testing.assert_array_equal(kernel, resnet["conv1.weight"].transpose(2, 3, 1, 0))
  assert json.dumps(jax.tree.map(np.shape, found)) == json.dumps(
    jax.tree.map(lambda x: x.shape, wrapped)
  )
