"""Decoding and crops, against torchvision."""

import io

import numpy as np
import pytest
import torch_reference
from PIL import Image

from xmr.data import images
from xmr.errors import UserError


@pytest.fixture(scope="module")
def torchvision_transforms():
  torch_reference.vision()
  from torchvision import transforms
  from torchvision.transforms import functional  # noqa: F401

  return transforms


def photo(width, height, seed=0):
  """A smooth random picture: antialiasing matters, noise does not."""
  small = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
  return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_formats_are_decoded_to_rgb(kind):
  image = images.decode(encoded(photo(40, 30), kind), name="x")
  assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
def test_other_modes_become_rgb(mode):
  source = photo(40, 30).convert("L" if mode == "I;16" else mode.replace("LA", "L"))
  source = (
    source.convert("LA")
    if mode == "LA"
    else Image.fromarray(np.uint16(source) * 200)
    if mode == "I;16"
    else source
  )
  content = encoded(source, "JPEG" if mode == "CMYK" else "PNG")
  assert images.decode(content, name="x").mode == "RGB"
  images.verify(content, name="x")


@pytest.mark.parametrize("check", [images.decode, images.verify])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_truncation_is_named(check, kind):
  content = encoded(photo(64, 48), kind)
  for share in (0.02, 0.3, 0.6, 0.9):
    with pytest.raises(UserError, match="image pictures/x.jpg is"):
      check(content[: int(share * len(content))], name="pictures/x.jpg")


@pytest.mark.parametrize(
  "size", [(500, 375), (375, 500), (256, 256), (300, 256), (240, 900), (1000, 257)]
)
def test_eval_crop_equals_torchvision(torchvision_transforms, size):
  transforms = torchvision_transforms
  image = photo(*size)
  expected = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)
  np.testing.assert_array_equal(images.eval_crop(image, resize=256, size=224), np.asarray(expected))


def test_eval_crop_larger_than_the_image_is_refused():
  with pytest.raises(
    UserError, match="config.data.image_size is 300; expected at most config.data.resize, 256"
  ):
    images.eval_crop(photo(300, 300), resize=256, size=300)


# Sizes and corners as torchvision computes them.
@pytest.mark.parametrize(
  ("size", "resized", "corner"),
  [
    ((500, 375), (341, 256), (58, 16)),
    ((375, 500), (256, 341), (16, 58)),
    ((256, 256), (256, 256), (16, 16)),
    ((240, 900), (256, 960), (16, 368)),
  ],
)
def test_eval_crop_is_the_centre_of_the_antialiased_resize(size, resized, corner):
  image = photo(*size)
  left, top = corner
  expected = image.resize(resized, Image.Resampling.BILINEAR).crop(
    (left, top, left + 224, top + 224)
  )
  np.testing.assert_array_equal(images.eval_crop(image, resize=256, size=224), np.asarray(expected))


def test_train_crop_resizes_as_torchvision(torchvision_transforms, monkeypatch):
  transforms = torchvision_transforms.functional
  image, rng = photo(300, 200), np.random.default_rng(0)
  monkeypatch.setattr(images, "_random_box", lambda *_: (30, 20, 210, 170))
  expected = np.asarray(transforms.resized_crop(image, 20, 30, 150, 180, [64, 64]))
  crops = [images.train_crop(image, rng, size=64) for _ in range(40)]
  mirrored = [np.array_equal(crop, expected[:, ::-1]) for crop in crops]
  assert all(
    flip or np.array_equal(crop, expected) for crop, flip in zip(crops, mirrored, strict=True)
  )
  assert 8 < sum(mirrored) < 32


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (800, 60), (60, 800), (3, 2)])
def test_random_boxes_are_distributed_as_torchvision_draws_them(torchvision_transforms, size):
  torch = pytest.importorskip("torch")
  transforms = torchvision_transforms
  width, height = size
  rng, blank = np.random.default_rng(0), torch.zeros(3, height, width)
  ours = np.array([images._random_box(width, height, rng, 0.08) for _ in range(4000)], float)
  torch.manual_seed(0)
  theirs = np.array(
    [
      transforms.RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3))
      for _ in range(4000)
    ],
    float,
  )
  assert (ours[:, :2] >= 0).all() and (ours[:, 2] <= width).all() and (ours[:, 3] <= height).all()
  ours = np.stack([ours[:, 1], ours[:, 0], ours[:, 3] - ours[:, 1], ours[:, 2] - ours[:, 0]], 1)
  for quantile in (0.1, 0.5, 0.9):
    difference = np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)
    assert (np.abs(difference) <= 0.05 * np.array([height, width, height, width]) + 1).all()


def test_min_area_bounds_the_crop():
  rng = np.random.default_rng(0)
  boxes = [images._random_box(96, 96, rng, 0.6) for _ in range(500)]
  assert min((right - left) * (bottom - top) for left, top, right, bottom in boxes) > 0.58 * 96 * 96


def test_train_crop_is_a_function_of_its_generator():
  image = photo(100, 80)
  first, again, other = (
    images.train_crop(image, np.random.default_rng(seed), size=32) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)
  assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)


def test_sixteen_bits_of_grey_become_eight():
  grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
  file = io.BytesIO()
  Image.fromarray(grey).save(file, "PNG")
  found = np.asarray(images.decode(file.getvalue(), name="x.png"))
  np.testing.assert_array_equal(found, np.repeat(grey[..., None] // 257, 3, axis=-1))
