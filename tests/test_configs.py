"""Every config file builds, and every field of the base config is read somewhere."""

import importlib
import pathlib
import re

import pytest

from xmr import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
SHARED_PARTS = {"__init__", "flickr", "fullhn", "fgcmir"}
FILES = sorted(p.stem for p in (ROOT / "configs").glob("*.py") if p.stem not in SHARED_PARTS)


def variants(module):
  """Returns the variants that a config's docstring lists under "Variants:"."""
  listed = (module.__doc__ or "").partition("Variants:")[2]
  return re.findall(r"^  ([a-z0-9_]+) {2,}", listed, re.MULTILINE)


def built():
  for name in FILES:
    module = importlib.import_module(f"configs.{name}")
    yield name, module, None
    for variant in variants(module):
      yield name, module, variant


@pytest.mark.parametrize(
  "name, module, variant", list(built()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_config_and_variant_is_valid(name, module, variant):
  config = module.get_config(variant) if variant else module.get_config()
  config_lib.validate(config)
  assert config.is_locked
  assert f"configs/{name}.py" in module.__doc__, "the docstring gives the command"


def test_every_field_is_read_by_the_code():
  source = "\n".join(p.read_text() for p in (ROOT / "xmr").rglob("*.py") if p.name != "config.py")
  unread = [
    key
    for key in config_lib.flat(config_lib.base_config())
    if not re.search(rf"\b{key.split('.')[-1]}\b", source)
  ]
  assert not unread


def test_an_unknown_variant_lists_the_known():
  from configs import imc_flickr
  from xmr.errors import UserError

  with pytest.raises(UserError, match="variant 'flickr9k' is unknown; expected one of"):
    imc_flickr.get_config("flickr9k")
