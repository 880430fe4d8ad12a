"""The main command in process: a run by its own config, its length, its data, what it keeps."""

import json
import os
import signal

import numpy as np
import pytest
import small_run

from xmr import checkpoint, data, encode, experiment, inspect, main, parallel, search, train
from xmr.errors import UserError
from xmr.storage.files import read_json
from xmr.tracking import journal


def command(*arguments):
  main.main(["xmr.main", *map(str, arguments)])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return small_run.write_data(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def trained(source, tmp_path_factory):
  """A run of 12 steps with columns scaled as Full-HN does."""
  workdir = tmp_path_factory.mktemp("trained") / "run"
  command(*small_run.arguments(source, workdir, **{"data.image_features_scale": "column"}))
  return workdir


def test_eval_only_needs_no_config(trained, capsys):
  before = read_json(trained / "results.json")
  (trained / "results.json").unlink()
  command("--eval_only", f"--workdir={trained}")
  assert read_json(trained / "results.json")["metrics"] == before["metrics"]
  command("--eval_only", f"--workdir={trained}", "--config.evaluate.split=val")
  assert read_json(trained / "results.json")["split"] == "val"
  # What a scoring was asked for is not what the run is.
  assert read_json(trained / "config.json")["evaluate.split"] == "test"
  command("--eval_only", f"--workdir={trained}")


@pytest.mark.parametrize(
  "changes, message",
  [
    (["--config.loss.margin=0.3"], "holds a run of another config (config.loss.margin"),
    (["--config.data.dri=x"], "config has no field dri"),
  ],
)
def test_eval_only_refuses_what_would_be_another_run(trained, capsys, changes, message):
  with pytest.raises(SystemExit) as stopped:
    command("--eval_only", f"--workdir={trained}", *changes)
  assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_an_edited_config_json_is_not_what_is_scored(trained, capsys):
  path = trained / "config.json"
  whole = path.read_text()
  path.write_text(whole.replace('"similarity": "cosine"', '"similarity": "order"'))
  with pytest.raises(SystemExit) as stopped:
    command("--eval_only", f"--workdir={trained}")
  path.write_text(whole)
  found = "holds a run of another config (config.similarity: 'cosine' -> 'order')"
  assert stopped.value.code == 2 and found in capsys.readouterr().err


def test_a_folder_without_a_config_cannot_be_scored(tmp_path, capsys):
  with pytest.raises(SystemExit):
    command("--eval_only", f"--workdir={tmp_path}")
  assert "is not the folder of a run: it has no config.json" in capsys.readouterr().err


def config_of(workdir, **changes):
  config = inspect.load(workdir).config
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize("eval_only", [False, True])
def test_fewer_steps_than_a_folder_has_are_refused(trained, eval_only):
  before = (trained / "results.json").read_text()
  with pytest.raises(UserError, match="was trained for 12 steps; .* asks for 6; give another"):
    train.train_and_evaluate(config_of(trained, steps=6), trained, eval_only=eval_only)
  assert (trained / "results.json").read_text() == before


def test_the_same_data_in_another_place_is_the_same_run(trained, tmp_path):
  copy = small_run.write_data(tmp_path / "copy")
  prepared = experiment.prepare(config_of(trained, **{"data.dir": str(copy)}), trained)
  assert prepared.digests == checkpoint.record(trained)["data"]


def changed_caption(folder):
  path = folder / "dataset_small.json"
  content = json.loads(path.read_text())
  content["images"][0]["sentences"][0]["raw"] = "another caption"
  path.write_text(json.dumps(content))


def changed_feature(folder):
  array = np.load(folder / "text.npy")
  array[0, 0] += 1
  np.save(folder / "text.npy", array)


def swapped_ids(folder):
  path = folder / "dataset_small.json"
  content = json.loads(path.read_text())
  first, second = content["images"][:2]
  first["imgid"], second["imgid"] = second["imgid"], first["imgid"]
  for image in (first, second):
    for sentence in image["sentences"]:
      sentence["imgid"] = image["imgid"]
  path.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [changed_caption, changed_feature, swapped_ids])
def test_a_run_does_not_go_on_with_other_data(trained, tmp_path, change):
  other = small_run.write_data(tmp_path / "other")
  change(other)
  with pytest.raises(UserError, match="holds a run on other data than .*other: .* of train differ"):
    train.train_and_evaluate(config_of(trained, **{"data.dir": str(other)}), trained)


def test_raw_features_of_scaled_columns_are_embedded_as_in_evaluation(trained, source, tmp_path):
  run = inspect.load(trained)
  split, mesh = data.load(run.config)["test"], parallel.mesh()
  variables = parallel.replicate(mesh, run.variables)
  expected = encode.encode_split(
    run.model, variables, split, config=run.config, mesh=mesh, side="image"
  )
  raw = np.load(source / "image.npy")[split.image_id]
  for loaded in (run, inspect.load(run.export(tmp_path / "export"))):
    found = loaded.encode_image(raw)
    np.testing.assert_allclose(np.sum(found * expected, axis=1), 1, atol=1e-6)


def test_a_run_without_its_norms_says_how_to_get_them(trained, source):
  (trained / "inputs.npz").unlink()
  with pytest.raises(UserError, match="keeps no norms of the columns .* --eval_only"):
    inspect.load(trained).encode_image(np.load(source / "image.npy"))
  command("--eval_only", f"--workdir={trained}")
  assert inspect.load(trained).encode_image(np.load(source / "image.npy")).shape == (60, 16)


def test_ctrl_c_saves_and_ends_with_130(source, tmp_path, monkeypatch, capsys):
  real = journal.Journal.record

  def record(self, step, *rest, **more):
    if step == 5:
      os.kill(os.getpid(), signal.SIGINT)
    real(self, step, *rest, **more)

  monkeypatch.setattr(journal.Journal, "record", record)
  workdir = tmp_path / "run"
  with pytest.raises(SystemExit) as stopped:
    command(*small_run.arguments(source, workdir, **{"warmup.steps": 3}))
  assert stopped.value.code == 130 and checkpoint.load(workdir, "latest")[0] == 5
  told = capsys.readouterr().err
  assert "SIGINT: saved step 5 of 12; the same command goes on from there" in told
  assert "step 4: sum_of_hinges was the warm-up; max_of_hinges from here on" in told
  assert told.count("compiling the step with ") == 2
  assert not (workdir / "results.json").exists()


def test_a_run_on_features_is_searched_by_rows(trained, source, capsys):
  image, text = source / "image.npy", source / "text.npy"
  search.main(["xmr.search", f"--workdir={trained}", f"--gallery={image}", f"{text}:3", "--k=4"])
  run = inspect.load(trained)
  scores, found = run.search(
    run.encode_text(np.load(text)[3:4]), run.encode_image(np.load(image)), 4
  )
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[2] for line in lines] == [f"{image}:{row}" for row in found[0]]
  search.main(
    ["xmr.search", f"--workdir={trained}", f"--gallery={image}", f"--image={image}:7", "-k", "1"]
  )
  assert capsys.readouterr().out.split()[1:] == ["1.0000", f"{image}:7"]


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      ["--gallery={source}", "{source}/text.npy:3"],
      "is no .npy file of them; python -m xmr.extract",
    ),
    (["--gallery={source}/image.npy", "two dogs"], "the query is 'two dogs', expected a row of a"),
    (["--gallery={source}/image.npy", "{source}/text.npy:500"], "has 120 rows; expected one of 0"),
    (["--gallery={source}/image.npy", "{source}/text.npy:³"], "expected a row of a file of them"),
    (
      ["--gallery={source}/image.npy", "{source}/text.npy:3", "--step=²"],
      "checkpoint of step ²; it",
    ),
    (["--gallery={source}/none.npy", "{source}/text.npy:3"], "found float32 of shape (0, 24)"),
    (["--gallery={source}/image.npy", "--image={source}/absent.npy:1"], "is no .npy file of them"),
  ],
)
def test_what_a_run_on_features_cannot_search_is_said(trained, source, capsys, arguments, message):
  given = [argument.format(source=source) for argument in arguments]
  np.save(source / "none.npy", np.zeros((0, 24), np.float32))
  with pytest.raises(SystemExit) as stopped:
    search.main(["xmr.search", f"--workdir={trained}", *given])
  assert stopped.value.code == 2 and message in capsys.readouterr().err
