"""What a command line says of itself: home folders, and config files that are broken."""

import os
import sys
from unittest import mock

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.config import base_config
from xmr.errors import UserError
from xmr.terminal import home

# ml_collections loads a config by a method that Python 3.12 no longer has a use for.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def read(*arguments):
  """Reads a command line of --config and --workdir with flags of its own."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values)
  flags.DEFINE_string("workdir", None, "", flag_values=values)
  argv = ["program", *arguments]
  with mock.patch.object(sys, "argv", argv):  # Which ml_collections looks at.
    command_line.read_flags(argv, values=values)
  return values


@pytest.fixture(autouse=True)
def lived_in(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")


def test_the_home_folder_is_meant_in_every_flag_and_in_every_path_of_a_config(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(
    "from xmr.config import base_config\n"
    "def get_config():\n"
    "  config = base_config()\n"
    "  config.model.image.weights = '~/weights.safetensors'\n"
    "  return config\n"
  )
  found = read(f"--config={file}", "--workdir=~/runs/a", "--config.data.dir=~/flickr")
  assert found.workdir == "/home/me/runs/a"
  config = found.config
  assert (config.data.dir, config.data.cache_dir) == ("/home/me/flickr", "/home/me/.cache/xmr")
  assert config.model.image.weights == "/home/me/weights.safetensors"
  parser = command_line.parser("xmr.some", "")
  parser.add_argument("--out")
  parser.add_argument("folder")
  parsed = command_line.parsed(parser, ["--out=~/x", "~/y"])
  assert (parsed.out, parsed.folder) == ("/home/me/x", "/home/me/y")


def test_a_config_in_a_notebook_means_the_home_folder_too():
  config = base_config()
  config.init = "~/runs/a"
  home.expand(config)
  assert (config.init, config.data.cache_dir) == ("/home/me/runs/a", "/home/me/.cache/xmr")
  assert home.argument("--grid=loss.name=~x") == "--grid=loss.name=~x"


BROKEN = {
  "raises": (
    "def get_config():\n  return 1 / 0\n",
    ", line 2: ZeroDivisionError: division by zero",
  ),
  "raises early": ("a = 1\nb = {}['x']\n", ", line 2: KeyError: 'x'"),
  "attribute": ("def get_config():\n  return ''.nothing\n", ", line 2: AttributeError: 'str' obj"),
  "does not parse": ("def get_config(:\n", ", line 1: invalid syntax; expected a Python file"),
  "not text": (b"\xff\xfe\x00", "expected a Python file"),
  "null bytes": (b"a = 1\x00", "expected a Python file"),
  "imports": ("import not_installed_anywhere\n", "line 1: ModuleNotFoundError: No module named"),
  "no get_config": ("a = 1\n", ": AttributeError: module 'config_own' has no attribute 'get_conf"),
  "a dict": ("def get_config():\n  return {}\n", "returns a dict; expected a ConfigDict"),
  "no variant": (
    "def get_config():\n  import ml_collections\n  return ml_collections.ConfigDict()\n",
    "get_config() takes 0 positional arguments but 1 was given",
  ),
}


@pytest.mark.parametrize("text, found", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_file_is_one_line_with_its_file_and_line(tmp_path, text, found):
  file = tmp_path / "own.py"
  file.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError) as error:
    read(f"--config={file}" + (":variant" if "1 was given" in found else ""))
  assert found in str(error.value) and str(file) in str(error.value)
  assert "\n" not in str(error.value)


def test_a_config_that_is_no_file_is_named(tmp_path):
  for path in (tmp_path, tmp_path / "none.py"):
    with pytest.raises(UserError, match=f"--config: no file {path}"):
      read(f"--config={path}")


def test_a_good_config_is_loaded_from_any_folder(tmp_path, monkeypatch):
  file = tmp_path / "own.py"
  file.write_text(
    "import ml_collections\n"
    "def get_config(size='1'):\n"
    "  return ml_collections.ConfigDict({'size': int(size)})\n"
  )
  monkeypatch.chdir(tmp_path)
  assert os.getcwd() == str(tmp_path)
  assert isinstance(read("--config=own.py").config, ml_collections.ConfigDict)
  assert read("--config=own.py:7").config.size == 7
