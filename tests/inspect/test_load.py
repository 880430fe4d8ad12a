"""A run is loaded anywhere, and encodes and searches as evaluation does."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from xmr import checkpoint, encode, inspect, parallel
from xmr.errors import UserError
from xmr.eval import top_k


@pytest.fixture(scope="module")
def evaluated(run, test_split):
  mesh = parallel.mesh()
  variables = parallel.replicate(mesh, run.variables)
  return {
    side: encode.encode_split(
      run.model,
      variables,
      test_split,
      config=run.config,
      mesh=mesh,
      vocabulary=run.vocabulary,
      side=side,
    )
    for side in ("image", "text")
  }


def test_embeddings_are_those_of_evaluation_for_paths_arrays_and_pil(
  run, test_split, evaluated, gallery
):
  paths = [gallery / ("more/11.png" if row == 11 else f"{row:02}.png") for row in range(12)]
  opened = [Image.open(io.BytesIO(test_split.pixels[row])) for row in range(12)]
  arrays = np.stack([np.asarray(image.convert("RGB")) for image in opened])
  for given in (paths, [str(path) for path in paths], opened, arrays, list(arrays)):
    np.testing.assert_allclose(run.encode_image(given), evaluated["image"], rtol=0, atol=1e-6)
  np.testing.assert_allclose(run.encode_image(paths[3]), evaluated["image"][3:4], rtol=0, atol=1e-6)


def test_captions_have_the_embeddings_of_evaluation_alone_and_together(run, test_split, evaluated):
  np.testing.assert_allclose(
    run.encode_text(test_split.texts), evaluated["text"], rtol=0, atol=1e-6
  )
  np.testing.assert_allclose(
    run.encode_text(test_split.texts[7]), evaluated["text"][7:8], rtol=0, atol=1e-6
  )
  assert np.abs(evaluated["text"][0] - evaluated["text"][-1]).max() > 1e-3


def test_importing_xmr_is_enough_and_loading_is_silent(trained, command):
  code = f"import xmr; print(xmr.inspect.load({str(trained)!r}))"
  done = command("-c", code)
  assert done.stdout.startswith(f"<Run {trained}: scenes, imc, step ") and "words" in done.stdout
  assert "WARNING" not in done.stderr


def test_batches_of_any_size_give_the_same_embeddings(run, test_split, capsys):
  expected = run.encode_text(test_split.texts)
  np.testing.assert_allclose(
    run.encode_text(test_split.texts, batch_size=7, progress=True), expected, atol=1e-6
  )
  assert "encoding texts: 100%" in capsys.readouterr().err
  with pytest.raises(UserError, match="batch_size is 0; expected 1 or more"):
    run.encode_text(test_split.texts, batch_size=0)


def test_an_item_that_cannot_be_encoded_is_named(run, gallery):
  with pytest.raises(UserError, match="text 1 is None; expected a str"):
    run.encode_text(["a dog", None])
  with pytest.raises(UserError, match=r"picture 1: image .*broken.jpg is no .* image$"):
    run.encode_image([gallery / "00.png", gallery / "broken.jpg"])


def test_it_loads_without_data_and_knows_what_the_run_was(trained, run, tmp_path):
  shutil.copytree(trained, tmp_path / "moved")
  path = tmp_path / "moved" / "vocabulary.json"
  path.unlink()
  moved = inspect.load(tmp_path / "moved", step="latest")
  assert moved.step == 12 and moved.config.data.name == "scenes" and moved.config.loss.name == "imc"
  assert moved.vocabulary.words == json.loads((trained / "vocabulary.json").read_text())["words"]
  assert all(type(leaf) is np.ndarray for leaf in checkpoint.flatten(moved.params).values())
  steps, values = moved.metrics["val/rsum"]
  assert steps.tolist() == [6, 12] and np.isfinite(values).all()
  assert inspect.load(trained, step=6).step == 6
  assert isinstance(run, inspect.Run)


def test_search_answers_the_four_tasks(run, test_split, gallery, evaluated):
  image, text = evaluated["image"], evaluated["text"]
  pictures = [gallery / f"{row:02}.png" for row in range(5)]
  for task, query, items, expected in (
    ("t2i", test_split.texts[:3], pictures, top_k(text[:3], image[:5], 4)),
    ("i2t", pictures[:2], test_split.texts, top_k(image[:2], text, 4)),
    ("i2i", pictures[1], pictures, top_k(image[1:2], image[:5], 4)),
    ("t2t", test_split.texts[0], test_split.texts, top_k(text[:1], text, 4)),
  ):
    for asked in (task, None):
      scores, indices = run.search(query, items, 4, task=asked)
      np.testing.assert_array_equal(indices, expected[1])
      np.testing.assert_allclose(scores, expected[0], atol=1e-6)
  np.testing.assert_array_equal(run.search(text, image, 2)[1], top_k(text, image, 2)[1])


def test_a_file_name_is_a_picture_only_where_the_file_is(run, gallery):
  by_name = run.search(str(gallery / "02.png"), [gallery / f"{row:02}.png" for row in range(5)], 1)
  assert by_name[1][0, 0] == 2 and by_name[0][0, 0] == pytest.approx(1, abs=1e-5)


def test_an_export_holds_the_run_and_loads_again(run, test_split, tmp_path):
  from safetensors.numpy import load_file

  folder = run.export(tmp_path / "export")
  assert load_file(folder / "model.safetensors").keys() == checkpoint.flatten(run.variables).keys()
  again = inspect.load(folder)
  assert again.config.to_dict() == run.config.to_dict() and again.step == run.step
  assert again.vocabulary.words == run.vocabulary.words
  np.testing.assert_array_equal(
    again.encode_text(test_split.texts[:4]), run.encode_text(test_split.texts[:4])
  )
  for name, (steps, values) in run.metrics.items():
    np.testing.assert_array_equal(again.metrics[name][0], steps)
    np.testing.assert_array_equal(again.metrics[name][1], values)


@pytest.mark.parametrize(
  "name", ["model.safetensors", "run.json", "vocabulary.json", "config.json"]
)
def test_a_damaged_export_is_one_line(run, tmp_path, name):
  folder = run.export(tmp_path / "export")
  path, rng = folder / name, np.random.default_rng(3)
  whole = path.read_bytes()
  damaged = [whole[: len(whole) // 2], b"", b"null", b"[]", b"[" * 100_000, b"\xff", None]
  for _ in range(10 if name == "model.safetensors" else 0):
    content = bytearray(whole)
    content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
    damaged.append(bytes(content))
  if name == "vocabulary.json":
    words = json.loads(whole)
    words["words"][-2:] = words["words"][:-3:-1]
    damaged.append(json.dumps(words).encode())
  for content in damaged:
    path.unlink()
    path.write_bytes(content) if content is not None else path.mkdir()
    with pytest.raises(UserError, match=str(folder)) as error:
      inspect.load(folder)
    assert "\n" not in str(error.value).removesuffix(error.value.tree)
    path.rmdir() if content is None else None
    path.write_bytes(whole)
  assert inspect.load(folder).step == run.step


def test_a_folder_that_is_no_run_says_so(trained, tmp_path):
  with pytest.raises(UserError, match="is not the folder of a run"):
    inspect.load(tmp_path)
  shutil.copy(trained / "config.json", tmp_path)
  with pytest.raises(UserError, match="has no checkpoints yet"):
    inspect.load(tmp_path)
  with pytest.raises(UserError, match="has no checkpoint of step 7; it has 6, 12"):
    inspect.load(trained, step=7)


def test_a_config_of_another_version_names_the_strange_field(run):
  from xmr.config import from_flat

  with pytest.raises(
    UserError, match="c.json has fields that this version of xmr does not know: loss.temprature"
  ):
    from_flat({"loss.temprature": 3.0}, where="c.json")
  with pytest.raises(UserError, match="wrong type"):
    from_flat({"batch_size": "many"}, where="c.json")


def test_bad_pictures_and_empty_texts_are_named(run, gallery, tmp_path):
  with pytest.raises(UserError, match="broken.jpg"):
    run.encode_image([gallery / "00.png", gallery / "broken.jpg"])
  with pytest.raises(UserError, match="cannot read image .*absent.png"):
    run.encode_image([tmp_path / "absent.png"])
  with pytest.raises(UserError, match="float32 of shape"):
    run.encode_image(np.zeros((2, 8), np.float32)[None])
  with pytest.raises(UserError, match="text 1 is empty"):
    run.encode_text(["a circle", "  "])
  with pytest.raises(UserError, match="no images to encode"):
    run.encode_image([])
  with pytest.raises(UserError, match="the query is empty"):
    run.search([], ["a"], 1)
  with pytest.raises(UserError, match="task is 'text'"):
    run.search("a", ["a"], 1, task="text")


def test_unknown_words_are_told(run):
  assert run.unknown_words("A red zebra") == (["zebra"], ["a", "red", "zebra"])


def test_tensorboard_holds_what_each_validation_retrieves(trained):
  from tensorboardX.proto import event_pb2

  pictures = []
  for path in (trained / "tensorboard").glob("events*"):
    content = path.read_bytes()
    while content:
      # A record: length, its checksum, the event, its checksum.
      length = int.from_bytes(content[:8], "little")
      event = event_pb2.Event.FromString(content[12 : 12 + length])
      content = content[16 + length :]
      pictures += [
        (event.step, x.image.width) for x in event.summary.value if x.tag == "val/retrieved"
      ]
  assert sorted(step for step, _ in pictures) == [6, 12] and all(
    width > 300 for _, width in pictures
  )
