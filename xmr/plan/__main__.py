"""Says what a config takes on machines that are not there: memory, traffic, a bound on its time.

  python -m xmr.plan --config=configs/imc_flickr.py --topology=v5e:2x4
  python -m xmr.plan --config=configs/fullhn_flickr.py --topology=cpu:8 --images=1000000

It compiles the config's own programs for the slice, without its data or devices. Status 1: one of
them does not fit. TPUs need the extra plan (libtpu), NVIDIA's GPUs the extra plan-cuda; cpu:N shows
the same for N processors. Counts of the dataset are those of config.data.dir where that is there.
Answers are kept in config.data.cache_dir. Fields follow as --config.key=value.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported
from xmr.plan import sizes as sizes_lib
from xmr.plan import topology as topologies
from xmr.plan.status import Status


def define():
  """Returns the flags of the command."""
  own = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "config to plan for", flag_values=own)
  flags.DEFINE_string("topology", None, "CHIP:SHAPE, as v5e:2x4, h100:8, cpu:8", flag_values=own)
  flags.DEFINE_string("json", None, "file that gets all of it as JSON", flag_values=own)
  flags.DEFINE_bool("fresh", False, "compile what was compiled before", flag_values=own)
  for name, (default, text) in sizes_lib.COUNTS.items():
    text = f"{text}; {default:,} where no dataset says it"
    flags.DEFINE_integer(name, None, text, lower_bound=1, flag_values=own)
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
    if own.json and pathlib.Path(own.json).is_dir():
      raise UserError(f"--json: {own.json} is a folder; expected a file")
    topologies.prepare(topology)
    fits = plan(own, topology)
  if not fits:
    raise SystemExit(1)


def plan(own, topology):
  """Compiles, prints and writes; returns whether every program fits."""
  from xmr import config as config_lib
  from xmr.plan import programs, report
  from xmr.plan.answers import Answers, question
  from xmr.storage import files
  from xmr.tracking.progress import compiling

  config = own.config
  config_lib.validate(config)
  if config.task != "retrieval":
    raise UserError(f"config.task is {config.task!r}; expected retrieval")
  cache_dir, status = config.data.cache_dir, Status()
  given = {name: own[name].value for name in sizes_lib.COUNTS if own[name].value is not None}
  sizes = sizes_lib.of(config, given)
  devices = topologies.devices(topology)
  config = programs.complete(config, sizes, devices)
  asked = question(config_lib.flat(config), topology, sizes)
  about = {name: asked[name] for name in ("config", "topology", "sizes")}
  answers = Answers(cache_dir, asked)
  kept = {} if own.fresh else answers.read()
  found = []
  for program in programs.compiled(
    config,
    topology,
    devices,
    sizes,
    kept={name: program for name, (program, _) in kept.items()},
    said=lambda name: compiling(
      status, f"{name} for {topology.name}", key=[name, about], cache_dir=cache_dir
    ),
  ):
    found.append(program)
    if program.name in kept:
      date = kept[program.name][1]
      status.say(f"{program.name}: the answer of {date}; --fresh compiles it again")
    elif program.compiled:
      answers.keep(program)
    print(report.shown(program, topology, config), flush=True)
  if own.json:
    files.write_json(own.json, report.document(found, topology, config, sizes, argv=sys.argv))
  return all(program.fits(topology.chip) for program in found)


if __name__ == "__main__":
  main(sys.argv)
