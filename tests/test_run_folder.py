"""Whose a run folder is: locked first, written once, and never through somebody else's link."""

import fcntl
import json
import os
import types

import numpy as np
import pytest

from xmr import checkpoint, experiment
from xmr.config import base_config
from xmr.data import Vocabulary
from xmr.data.text import SPECIAL
from xmr.errors import UserError
from xmr.run_folder import held
from xmr.storage.locks import locked


def contents(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_second_process_is_refused_before_it_writes_anything(tmp_path):
  mine, theirs = base_config(), base_config()
  theirs.seed = 7
  with held(mine, tmp_path / "run", vocabulary=Vocabulary([*SPECIAL, "dog"])):
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match="another process is training in .*run"):  # noqa: SIM117
      with held(theirs, tmp_path / "run", vocabulary=Vocabulary([*SPECIAL, "cat"])):
        pass
    assert contents(tmp_path / "run") == before
  assert json.loads(before["config.json"])["seed"] == 0
  with held(mine, tmp_path / "run"):
    pass


def test_scoring_alone_neither_holds_nor_writes(tmp_path):
  with held(base_config(), tmp_path / "run", eval_only=True):
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["runs[lr=0.1]", "back\\slash", "which?", "all*"])
def test_a_path_that_would_be_read_as_a_pattern_is_refused_before_anything_is_made(tmp_path, name):
  with pytest.raises(UserError, match="has .* in its path; expected one without"):  # noqa: SIM117
    with held(base_config(), tmp_path / name / "run"):
      pass
  assert not list(tmp_path.iterdir())


def test_a_path_of_four_thousand_characters_is_refused_before_anything_is_made(tmp_path):
  folder = tmp_path / "/".join(["x" * 200] * 20)
  with pytest.raises(UserError, match="has 4,.* bytes; expected at most 3,800"):  # noqa: SIM117
    with held(base_config(), folder):
      pass
  assert not list(tmp_path.iterdir())


def test_the_run_that_began_while_this_one_was_prepared_is_not_taken_over(tmp_path):
  config = base_config()
  with held(config, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  config.seed = 3
  with pytest.raises(UserError, match="holds a run of another config .config.seed: 0 -> 3"):  # noqa: SIM117
    with held(config, tmp_path):
      pass


def test_of_many_differing_fields_the_first_eight_are_named(tmp_path):
  config = base_config()
  with held(config, tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  for field in ("n_train", "n_val", "n_test"):
    config.data.scenes[field] += 1
  config.seed, config.batch_size, config.model.dim = 3, 7, 9
  config.optimizer.learning_rate, config.optimizer.weight_decay = 0.5, 0.5
  config.loss.margin, config.data.image_size = 0.5, 32
  with pytest.raises(UserError, match=r"config(.*; ){8}and 2 more\); give another --workdir"):  # noqa: SIM117
    with held(config, tmp_path):
      pass


def test_a_folder_of_pictures_is_not_passed_over_for_scenes(tmp_path):
  config = base_config()
  config.data.dir = "pictures"
  with pytest.raises(
    UserError, match="config.data.dir=pictures: config.data.name is scenes, which"
  ):
    experiment.loaded(config, tmp_path)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write the run folder .*file/run: Not a directory"):  # noqa: SIM117
    with held(base_config(), tmp_path / "file" / "run"):
      pass


def test_a_link_to_itself_is_one_line(tmp_path):
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  with pytest.raises(UserError, match="cannot write the run folder .*loop/run: Too many levels"):  # noqa: SIM117
    with held(base_config(), tmp_path / "loop" / "run"):
      pass


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_is_a_plain_file_that_is_neither_followed_nor_cut(tmp_path, kind):
  target, path = tmp_path / "precious", tmp_path / ".lock"
  if kind == "folder":
    path.mkdir()
  elif kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to(target)
    if kind == "link":
      target.write_text("mine")
  with pytest.raises(UserError, match="lock is no plain file; expected one to lock, or none"):  # noqa: SIM117
    with locked(path, busy=pytest.fail):
      pass
  assert target.read_text() == "mine" if kind == "link" else not target.exists()


def test_a_lock_keeps_what_its_file_holds_and_is_free_afterwards(tmp_path):
  path = tmp_path / "lock"
  path.write_text("mine")
  for _ in range(2):
    with locked(path, busy=pytest.fail) as alone:
      assert alone
  assert path.read_text() == "mine"


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
  def unsupported(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", unsupported)
  with held(base_config(), tmp_path):
    assert (tmp_path / "config.json").exists()
  assert "has no locks; let no second process train there" in capsys.readouterr().err


@pytest.mark.parametrize("harm", ["edited", "removed"])
@pytest.mark.parametrize("field", ["workdir", "init"])
def test_the_vocabulary_is_that_of_the_checkpoint_whatever_lies_beside_it(tmp_path, harm, field):
  words = [*SPECIAL, "dog", "cat"]
  with held(base_config(), tmp_path, vocabulary=Vocabulary(words)):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    run = {"vocabulary": json.loads(Vocabulary(words).to_json())}
    checkpoints.save(1, params={"a": np.zeros(1)}, state={"b": np.zeros(1)}, run=run)
    checkpoints.close()
  if harm == "removed":
    (tmp_path / "vocabulary.json").unlink()
  else:
    swapped = Vocabulary([*SPECIAL, "cat", "dog"]).to_json()
    (tmp_path / "vocabulary.json").write_text(swapped)
  config = base_config()
  config.data.max_length = 5
  workdir = tmp_path if field == "workdir" else tmp_path / "next"
  if field == "init":
    config.init = str(tmp_path)
  splits = {"train": types.SimpleNamespace(tokens=[["dog"]], max_length=lambda: 9)}
  found, length, _ = experiment.vocabulary_of(config, splits, workdir, glove=False)
  assert (found.words, length) == (words, 5)


def test_what_a_command_left_that_saved_no_checkpoint_is_replaced(tmp_path):
  words, norms = Vocabulary([*SPECIAL, "dog"]), {"image_scale": np.ones(3)}
  with held(base_config(), tmp_path, vocabulary=words, record={"a": 1}, inputs=norms):
    pass
  config = base_config()
  config.seed = 3
  with held(config, tmp_path):
    pass
  assert sorted(contents(tmp_path)) == [".lock", "config.json"]
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 3
