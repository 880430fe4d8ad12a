"""Says what a config takes on machines that are not there: memory, traffic, a bound on its time.

  python -m xmr.plan --config=configs/imc_flickr.py --topology=v5e:2x4
  python -m xmr.plan --config=configs/fullhn_flickr.py --topology=cpu:8 --images=1000000

It compiles the config's own programs for the slice, without its data or devices. Status 1: one of
them does not fit. TPUs need the extra plan (libtpu), NVIDIA's GPUs the extra plan-cuda; cpu:N shows
the same for N processors. Fields follow as --config.key=value.
"""

import json
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported
from xmr.plan import topology as topologies

COUNTS = {
  "images": (29_000, "of the training split"),
  "captions": (145_000, "of the training split"),
  "words": (40, "of a caption in a batch"),
  "vocabulary": (10_000, "words that the text encoder knows"),
  "image_width": (2048, "numbers of an image's features, or of a region's"),
  "regions": (36, "of an image"),
  "text_width": (768, "numbers of a caption's features"),
}


def define():
  """Returns the flags of the command."""
  own = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "config to plan for", flag_values=own)
  flags.DEFINE_string("topology", None, "CHIP:SHAPE, as v5e:2x4, h100:8, cpu:8", flag_values=own)
  flags.DEFINE_string("json", None, "file that gets all of it as JSON", flag_values=own)
  for name, (default, text) in COUNTS.items():
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=own)
  return own


def usage(own):
  """Returns the text of --help."""
  return f"{__doc__}\n" + "\n".join(f"  --{name:14}{own[name].help}" for name in sorted(own))


def main(argv):
  """Runs one command line; SystemExit(2) for a user's mistake, SystemExit(1) where it does not
  fit.
  """
  own = define()
  if command_line.asks_for_help(argv):
    print(usage(own))
    return
  with reported():
    command_line.read_flags(
      argv,
      needed=("config", "topology"),
      usage="python -m xmr.plan --config=FILE[:variant] --topology=CHIP:SHAPE",
      values=own,
    )
    topology = topologies.parse(own.topology)
    if own.json and not pathlib.Path(own.json).parent.is_dir():
      raise UserError(f"--json: there is no folder {pathlib.Path(own.json).parent}")
    topologies.prepare(topology)
    fits = plan(own, topology)
  if not fits:
    raise SystemExit(1)


def plan(own, topology):
  """Compiles, prints and writes; returns whether every program fits."""
  from xmr import config as config_lib
  from xmr import recipe
  from xmr.plan import programs, report

  config = own.config
  config_lib.validate(config)
  if config.task != "retrieval":
    raise UserError(f"config.task is {config.task!r}; expected retrieval")
  command_line.keep_compiled(config.data.cache_dir)
  sizes = programs.Sizes(**{name: own[name].value for name in COUNTS})
  devices = topologies.devices(topology)
  if config.recipe == "by_size":
    config = recipe.by_size(config, sizes.captions, devices=len(devices))
  found = []
  for program in programs.compiled(
    config, topology, devices, sizes, say=lambda line: print(f"xmr: {line}", file=sys.stderr)
  ):
    found.append(program)
    print(report.shown(program, topology, config), flush=True)
  if own.json:
    document = report.document(found, topology, config, argv=sys.argv)
    pathlib.Path(own.json).write_text(json.dumps(document, indent=2) + "\n")
  return all(program.fits(topology.chip) for program in found)


if __name__ == "__main__":
  main(sys.argv)
