"""A small folder in Karpathy's layout, and a config that reads it."""

import io
import json

import ml_collections
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture():
  """Returns a function that encodes a small image of a given colour number."""

  def encode(number, size=(40, 30), kind="JPEG"):
    rng = np.random.default_rng(number)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()

  return encode


@pytest.fixture
def data_config(tmp_path):
  """Returns a function that makes a config with config.data for the folder `source`, some fields
  replaced.
  """

  def make(**fields):
    data = {
      "name": "karpathy",
      "dir": str(tmp_path / "source"),
      "cache_dir": str(tmp_path / "cache"),
      "image": "pixels",
      "text": "words",
      "image_features": "image.npy",
      "text_features": "text.npy",
      "image_features_scale": "none",
      "restval": False,
      "captions": "",
      "columns": "",
      "max_length": 0,
      "scenes": {"n_train": 6, "n_val": 2, "n_test": 3},
    }
    return ml_collections.ConfigDict({"data": data | fields}).lock()

  return make


@pytest.fixture
def folder(tmp_path, picture):
  """A folder of ten images, 2 + (number % 3) captions each; splits interleaved, so that rows are
  not consecutive.

  Has .path, .content (the JSON, to change) and .write() (writes it).
  """

  class Folder:
    path = tmp_path / "source"

    def __init__(self):
      (self.path / "images").mkdir(parents=True)
      splits = [
        "train",
        "test",
        "train",
        "restval",
        "val",
        "train",
        "train",
        "restval",
        "train",
        "test",
      ]
      images, sentid = [], 0
      for imgid, split in enumerate(splits):
        name = f"picture{imgid}.jpg"
        (self.path / "images" / name).write_bytes(picture(imgid))
        sentences = [
          {
            "raw": f"Picture {imgid} shows word{sentid}.",
            "sentid": sentid + k,
            "imgid": imgid,
            "tokens": ["unused"],
          }
          for k in range(2 + imgid % 3)
        ]
        images.append(
          {
            "filename": name,
            "imgid": imgid,
            "split": split,
            "sentids": [sentence["sentid"] for sentence in sentences],
            "sentences": sentences,
          }
        )
        sentid += len(sentences)
      self.content = {"images": images, "dataset": "small"}
      rng = np.random.default_rng(0)
      np.save(self.path / "image.npy", rng.normal(size=(len(images), 5)).astype(np.float16))
      np.save(self.path / "text.npy", rng.normal(size=(sentid, 4)).astype(np.float32))
      self.write()

    def write(self, name="dataset_small.json"):
      (self.path / name).write_text(json.dumps(self.content))

  return Folder()
