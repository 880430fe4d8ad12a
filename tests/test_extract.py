"""Features of a dataset's images: right rows, right averages, and no work lost or done twice."""

import io
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import quick_compilation
import small_run
from PIL import Image
from variables import random_variables

from xmr import config as config_lib
from xmr import data, extract
from xmr.data import images
from xmr.data.features import open_features
from xmr.errors import UserError
from xmr.inspect import extraction
from xmr.interop import weights
from xmr.models import convert, image, resnet
from xmr.storage import files
from xmr.storage.locks import locked

ROOT = pathlib.Path(__file__).parents[1]
SIZE, RESIZE = 40, 48


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A config of twenty rendered scenes."""
  config = config_lib.base_config()
  config.data.cache_dir = str(tmp_path_factory.mktemp("cache"))
  config.data.image_size, config.data.resize = SIZE, RESIZE
  config.data.scenes.update({"n_train": 12, "n_val": 4, "n_test": 4})
  return config


def write_weights(path, module):
  """Writes random weights of a network under the name resnet18; returns the variables."""
  variables = random_variables(module, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  weights.save(path, variables, {"kind": "resnet18", "source": "made.pth", "sha256": "abc"})
  return variables


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
  """Weights of a small network that goes by the name of resnet18: its path and its variables."""
  path, known = tmp_path_factory.mktemp("weights") / "resnet18.safetensors", convert.kind
  small = convert.Kind(
    lambda: resnet.ResNet((1, 1), False, 8), (resnet.torchvision_name,), ("fc.",)
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(convert, "kind", lambda name: small if name == "resnet18" else known(name))
    yield path, write_weights(path, small.module())


@pytest.fixture(scope="module")
def centre(config):
  """Centre crops of all images by id: [20, 40, 40, 3] uint8."""
  found = {}
  for split in data.load(config).values():
    for row, number in enumerate(split.image_id):
      found[int(number)] = images.eval_crop(
        images.decode(split.pixels[row], name=""), resize=RESIZE, size=SIZE
      )
  return np.stack([found[number] for number in sorted(found)])


@pytest.fixture(scope="module")
def features(backbone):
  """Function of pixels [B, 40, 40, 3]: the backbone's features, computed by itself."""
  module, variables = convert.kind("resnet18").module(), backbone[1]
  plain = jax.jit(lambda pixels: module.apply(variables, image.standardize(pixels)))
  grid = jax.jit(lambda pixels: module.apply(variables, image.standardize(pixels), grid=True))
  return lambda pixels, keep=False: np.asarray((grid if keep else plain)(pixels))


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def run(config, weights_of, out, **changes):
  options = {"backbone": "resnet18", "weights": weights_of[0], "out": out, "batch_size": 8}
  return extract.extract(config, **(options | changes))


def test_rows_are_image_ids_and_the_manifest_says_of_what(
  config, backbone, centre, features, tmp_path
):
  manifest = run(config, backbone, tmp_path)
  found = np.load(tmp_path / "features.npy", allow_pickle=False)
  assert found.shape == (20, 16) and found.dtype == np.float32
  np.testing.assert_allclose(found, features(centre), rtol=1e-4, atol=1e-4)
  assert files.read_json(tmp_path / "manifest.json") == manifest
  assert (
    manifest["source"] == "made.pth"
    and manifest["source_sha256"] == "abc"
    and manifest["complete"] is True
  )
  assert manifest["shape"] == [20, 16] and manifest["resize"] == RESIZE and manifest["crop"] == SIZE
  assert names(tmp_path) == [".lock", "features.npy", "manifest.json"]


def test_flip_averages_the_image_and_its_mirror(config, backbone, centre, features, tmp_path):
  run(config, backbone, tmp_path, average="flip", dtype="float16")
  found = np.load(tmp_path / "features.npy", allow_pickle=False)
  assert found.dtype == np.float16
  want = (features(centre) + features(centre[:, :, ::-1])) / 2
  np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-3)
  assert np.abs(want - features(centre)).max() > 0.01


def test_grid_of_a_mirror_is_turned_back(config, backbone, centre, features, tmp_path):
  run(config, backbone, tmp_path, average="flip", grid=True)
  found = np.load(tmp_path / "features.npy", allow_pickle=False)
  mirrored = features(centre[:, :, ::-1], keep=True)[:, :, ::-1]
  np.testing.assert_allclose(
    found, (features(centre, keep=True) + mirrored) / 2, rtol=1e-4, atol=1e-4
  )


def test_ten_crops_are_corners_centre_and_mirrors():
  picture = np.random.default_rng(0).integers(0, 256, (48, 60, 3)).astype(np.uint8)
  crops = extraction.views(Image.fromarray(picture), size=40, resize=48, average="ten_crop")
  assert crops.shape == (10, 40, 40, 3)
  for crop, (top, left) in zip(crops, [(0, 0), (0, 20), (8, 0), (8, 20), (4, 10)], strict=False):
    np.testing.assert_array_equal(crop, picture[top : top + 40, left : left + 40])
  np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])


def test_a_killed_run_goes_on_where_it_stopped(config, backbone, tmp_path, monkeypatch):
  monkeypatch.setattr(extract, "BLOCK", 8)
  run(config, backbone, tmp_path / "whole")
  write, decode, count = files.write_array, images.decode, []

  def killed(path, *rest, **more):
    if path.name == "00000008.npy":
      raise KeyboardInterrupt
    write(path, *rest, **more)

  monkeypatch.setattr(files, "write_array", killed)
  with pytest.raises(KeyboardInterrupt):
    run(config, backbone, tmp_path / "cut")
  assert not (tmp_path / "cut/features.npy").exists()
  monkeypatch.setattr(files, "write_array", write)
  monkeypatch.setattr(
    images, "decode", lambda content, name: count.append(name) or decode(content, name=name)
  )
  run(config, backbone, tmp_path / "cut")
  assert len(set(count)) == 12, "the first block of eight was encoded again"
  assert (tmp_path / "cut/features.npy").read_bytes() == (
    tmp_path / "whole/features.npy"
  ).read_bytes()
  count.clear()
  run(config, backbone, tmp_path / "cut")
  assert not count, "finished work was done again"


@pytest.mark.parametrize("harm", ["cut", "flipped", "swapped", "of other work"])
def test_a_damaged_block_is_made_again(
  config, backbone, features, centre, tmp_path, monkeypatch, harm
):
  monkeypatch.setattr(extract, "BLOCK", 8)
  assemble = extract.assemble

  def cut(out, *rest):
    raise KeyboardInterrupt

  monkeypatch.setattr(extract, "assemble", cut)
  with pytest.raises(KeyboardInterrupt):
    run(config, backbone, tmp_path, dtype="float16" if harm == "of other work" else "float32")
  monkeypatch.setattr(extract, "assemble", assemble)
  block = tmp_path / "blocks/00000008.npy"
  whole = block.read_bytes()
  if harm == "of other work":
    (tmp_path / "manifest.json").unlink()
  elif harm == "swapped":
    block.write_bytes((tmp_path / "blocks/00000000.npy").read_bytes())
  else:
    block.write_bytes(whole[:-10] if harm == "cut" else whole[:130] + b"\x40" + whole[131:])
  run(config, backbone, tmp_path)
  found = np.load(tmp_path / "features.npy", allow_pickle=False)
  np.testing.assert_allclose(found, features(centre), rtol=1e-5, atol=1e-5)


def test_a_flipped_bit_of_features_is_named_where_they_are_read(config, backbone, tmp_path):
  run(config, backbone, tmp_path)
  path = tmp_path / "features.npy"
  options = {"field": "data.image_features", "rows": 20, "row_is": "imgid"}
  np.testing.assert_array_equal(open_features(path, **options), np.load(path))
  whole = path.read_bytes()
  path.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
  with pytest.raises(UserError, match="are not what was written .digests differ.; make it again"):
    open_features(path, **options)
  run(config, backbone, tmp_path)
  assert path.read_bytes() == whole


def test_a_folder_that_another_process_fills_is_refused(config, backbone, tmp_path):
  with locked(tmp_path / ".lock", busy=pytest.fail):
    with pytest.raises(UserError, match="another process is writing features in"):
      run(config, backbone, tmp_path)
  assert names(tmp_path) == [".lock"]


def test_other_work_in_the_folder_is_named_and_kept(config, backbone, tmp_path):
  run(config, backbone, tmp_path)
  before = (tmp_path / "features.npy").read_bytes()
  with pytest.raises(
    UserError, match="holds features made otherwise .*average: 'none' -> 'flip'.*give another --out"
  ):
    run(config, backbone, tmp_path, average="flip")
  assert (tmp_path / "features.npy").read_bytes() == before


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"backbone": "resnet20"}, "--backbone is 'resnet20'; expected one of resnet18,"),
    ({"backbone": "resnet50"}, "does not fit this network"),
    ({"weights": "absent.safetensors"}, "absent.safetensors: no such file"),
    ({"average": "ten_crop", "grid": True}, "--grid and --average=ten_crop"),
    ({"batch_size": 9}, "--batch_size is 9; expected a multiple of the 8 devices"),
  ],
)
def test_mistakes_are_named_before_anything_is_written(config, backbone, tmp_path, changes, words):
  with pytest.raises(UserError) as error:
    run(config, backbone, tmp_path / "out", **changes)
  assert words in str(error.value)
  assert not (tmp_path / "out").exists()


def test_tensorflow_weights_see_pixels_from_minus_one_to_one():
  assert extraction.scale_of("tf_efficientnetv2_l") == ((0.5,) * 3, (0.5,) * 3)
  assert extraction.scale_of("efficientnet_v2_l")[0] == image.MEAN


def test_command_extracts_and_reports_the_speed(config, tmp_path):
  write_weights(tmp_path / "resnet18.safetensors", resnet.ResNet(*resnet.RESNETS["resnet18"]))
  flags = {
    "config": "configs/imc_scenes.py",
    "config.data.cache_dir": config.data.cache_dir,
    "config.data.image_size": SIZE,
    "config.data.resize": RESIZE,
    "config.data.scenes.n_train": 12,
    "config.data.scenes.n_val": 4,
    "config.data.scenes.n_test": 4,
    "backbone": "resnet18",
    "weights": tmp_path / "resnet18.safetensors",
    "out": tmp_path / "out",
  }
  command = [
    sys.executable,
    "-m",
    "xmr.extract",
    *(f"--{key}={value}" for key, value in flags.items()),
  ]
  environment = {**os.environ, "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert "[20, 512] float32, 20 images at " in done.stdout and "images/s" in done.stdout
  wrong = subprocess.run(
    [*command, "--average=mean"],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert (
    wrong.returncode == 2
    and wrong.stderr.startswith("xmr: error: ")
    and wrong.stderr.count("\n") == 1
  )


def test_a_damaged_image_is_named(config, backbone, tmp_path, monkeypatch):
  whole = io.BytesIO()
  Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(whole, "JPEG")
  source = [whole.getvalue(), whole.getvalue()[:200]] * 4
  monkeypatch.setattr(
    extract, "images_of", lambda config: ([(i, source, i, f"{i}.jpg") for i in range(8)], 8)
  )
  with pytest.raises(UserError, match="1.jpg"):
    run(config, backbone, tmp_path)


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_a_mistake_ends_both(config, tmp_path):
  write_weights(tmp_path / "resnet18.safetensors", resnet.ResNet(*resnet.RESNETS["resnet18"]))
  flags = {
    "config": "configs/imc_scenes.py",
    "config.data.cache_dir": config.data.cache_dir,
    "config.data.image_size": SIZE,
    "config.data.resize": RESIZE,
    "config.data.scenes.n_train": 12,
    "config.data.scenes.n_val": 4,
    "config.data.scenes.n_test": 4,
    "backbone": "resnet18",
    "weights": tmp_path / "resnet18.safetensors",
    "batch_size": 8,
  }
  command = [
    sys.executable,
    "-m",
    "xmr.extract",
    *(f"--{key}={value}" for key, value in flags.items()),
  ]
  small_run.run([*command, f"--out={tmp_path / 'one'}"])

  def both(*extra):
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      place = f"127.0.0.1:{free.getsockname()[1]}"
    logs = [tmp_path / f"{index}.log" for index in range(2)]
    started = [
      small_run.start(
        [*command, *extra],
        log=log,
        devices=2,
        XMR_COORDINATOR=place,
        XMR_PROCESSES="2",
        XMR_PROCESS=str(i),
      )
      for i, log in enumerate(logs)
    ]
    return [process.wait(timeout=600) for process in started], [log.read_text() for log in logs]

  codes, printed = both(f"--out={tmp_path / 'two'}")
  assert codes == [0, 0], printed
  assert "20 images at " in printed[0] and "20 images at " not in printed[1]
  one, two = (
    np.load(tmp_path / f"{name}/features.npy", allow_pickle=False) for name in ("one", "two")
  )
  np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-4)
  codes, printed = both(f"--out={tmp_path / 'two'}", "--average=flip")
  assert all(codes) and "holds features made otherwise" in printed[0], printed


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"batch_size": 0}])
def test_no_threads_and_no_batch_are_refused(config, tmp_path, wrong):
  with pytest.raises(UserError, match=f"--{next(iter(wrong))} is 0; expected"):
    extract.extract(config, out=tmp_path, backbone="resnet18", weights=tmp_path, **wrong)
