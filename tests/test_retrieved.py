import io

import numpy as np
from PIL import Image

from xmr.data import Split
from xmr.inspect import plots


def split_of(pixels):
  return Split(
    name="test",
    image_id=np.arange(3, dtype=np.int32),
    text_id=np.arange(3, dtype=np.int32),
    image_of_text=np.arange(3, dtype=np.int32),
    image_names=["a.png", "b.png", "c.png"],
    texts=["a $red$ square", "<script>", "three"],
    tokens=[["a"], ["b"], ["c"]],
    pixels=pixels,
  )


def encoded(colour):
  file = io.BytesIO()
  Image.new("RGB", (8, 8), colour).save(file, "PNG")
  return file.getvalue()


def test_the_retrieved_images_are_drawn_and_the_right_one_is_framed():
  eye = np.eye(3, dtype=np.float32)
  figure = plots.retrieved(
    eye, eye, split_of([encoded(c) for c in ("red", "green", "blue")]), rows=2, k=2
  )
  assert plots.pixels(figure).ndim == 3
  framed = [axis for axis in figure.axes if axis.spines["left"].get_linewidth() == 3]
  assert len(framed) == 2  # one for each caption, in first place


def test_features_without_photographs_show_names(tmp_path):
  eye = np.eye(3, dtype=np.float32)
  figure = plots.retrieved(eye, eye, split_of(None), folder=tmp_path, rows=1, k=1)
  assert any("png" in text.get_text() for axis in figure.axes for text in axis.texts)
