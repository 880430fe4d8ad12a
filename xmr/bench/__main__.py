"""Compares with PyTorch, NumPy and FAISS in one run: python -m xmr.bench NAME [--quick] [--json
[FILE]].

Contenders take turns in processes of their own; a time is a median over rounds, a ratio the median
of what each round gives, and "of limit" the time that the case's matrix products and memory traffic
would take at the rates of the same round. PyTorch and FAISS are in the extra `bench`; without them
our own side runs alone.
"""

import importlib
import json
import os
import sys

from xmr import command_line
from xmr.bench import others, report, runner
from xmr.errors import UserError, reported

BENCHES = {
  "losses": "SH, MH, IMC: forward and backward",
  "step": "a training step of linear encoders",
  "mining": "the hardest negatives of the whole training set",
  "ranks": "ranks of a gallery in both directions",
  "graded": "nDCG and alpha-nDCG in four tasks",
  "alignment": "recall by regions and words in both directions",
  "rouge": "ROUGE-L of caption pairs",
  "startup": "--help, and the first step of a run",
  "data": "training batches of pixels and of words",
  "encoders": "ResNet-152 and BiLSTM",
  "scaling": "time and memory as sizes double",
}
ROUNDS = 7
QUICK_ROUNDS = 2


def parser():
  """Returns the parser of the command line."""
  listed = "\n".join(f"  {name:10} {what}" for name, what in BENCHES.items())
  made = command_line.parser("xmr.bench", f"{__doc__}\nbenches:\n{listed}")
  made.add_argument("name", metavar="NAME", help="one of the benches")
  made.add_argument(
    "--quick", action="store_true", help="small sizes and few rounds: that it works, not how fast"
  )
  made.add_argument(
    "--rounds", type=int, help=f"turns of every contender ({ROUNDS}; {QUICK_ROUNDS} with --quick)"
  )
  made.add_argument(
    "--cores",
    type=int,
    help="cores that a contender may use (all); 1: processor time, on a busy machine",
  )
  made.add_argument(
    "--only", metavar="TEXT", default="", help="only cases whose name contains this"
  )
  made.add_argument(
    "--json",
    metavar="FILE",
    nargs="?",
    const="-",
    help="write JSON; - (or nothing): to standard output",
  )
  return made


def read(argv):
  """Returns the parsed arguments; a mistake becomes a UserError."""
  arguments = command_line.parsed(parser(), argv)
  if arguments.name not in BENCHES:
    raise UserError(f"no bench {arguments.name!r}; expected one of {', '.join(BENCHES)}")
  for flag in ("rounds", "cores"):
    value = getattr(arguments, flag)
    if value is not None and value < 1:
      raise UserError(f"--{flag} is {value}; expected at least 1")
  folder = os.path.dirname(arguments.json or "") or "."
  if not os.path.isdir(folder):
    raise UserError(f"--json: there is no folder {folder}")
  return arguments


def main(argv):
  """Runs one command line; raises SystemExit(2) for a user's mistake."""
  with reported():
    arguments = read(argv[1:])
    bench = importlib.import_module(f"xmr.bench.{arguments.name}")
    cases = [case for case in bench.cases(quick=arguments.quick) if arguments.only in case.name]
    if not cases:
      known = "; ".join(case.name for case in bench.cases(quick=arguments.quick))
      raise UserError(
        f"--only={arguments.only} leaves no case of {arguments.name}; expected part of one of: "
        f"{known}"
      )
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    begun = others.mark()
    results = runner.run(
      cases,
      rounds=rounds,
      cores=arguments.cores,
      quick=arguments.quick,
      say=lambda line: print(f"xmr.bench: {line}", file=sys.stderr, flush=True),
    )
    summary = bench.summary(results) if hasattr(bench, "summary") else []
    document = report.document(
      arguments.name,
      results,
      quick=arguments.quick,
      rounds=rounds,
      cores=arguments.cores,
      others=others.share_since(begun),
      summary=summary,
    )
    print(report.table(document), file=sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.json == "-":
      print(json.dumps(document, indent=2))
    elif arguments.json:
      with open(arguments.json, "w") as file:
        json.dump(document, file, indent=2)


if __name__ == "__main__":
  main(sys.argv)
