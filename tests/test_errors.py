import errno
import os
import subprocess
import sys

import pytest

from xmr.errors import UserError, reported


@pytest.mark.parametrize("lines, unbuffered", [(1, ""), (100_000, ""), (1, "1")])
def test_a_reader_that_leaves_early_gets_no_traceback(lines, unbuffered):
  code = (
    "from xmr.errors import reported\nwith reported():\n  input()\n  for i in "
    f"range({lines}): print(i)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
  )
  process.stdout.close()
  process.stdin.write("\n")
  process.stdin.close()
  assert process.stderr.read() == "" and process.wait(300) == 1
  process.stderr.close()


def test_another_broken_pipe_is_no_reader():
  with pytest.raises(BrokenPipeError), reported():
    raise BrokenPipeError(errno.EPIPE, "a worker died")


def test_a_mistake_is_one_line_and_status_2(capsys):
  with pytest.raises(SystemExit) as stopped, reported():
    raise UserError("found a,\n  expected b")
  assert stopped.value.code == 2 and capsys.readouterr().err == "xmr: error: found a, expected b\n"


def test_a_full_disk_behind_another_error_is_named(capsys):
  with pytest.raises(SystemExit) as stopped, reported():
    try:
      raise OSError(errno.ENOSPC, "No space left on device", "results.json")
    except OSError as error:
      raise RuntimeError("writing failed") from error
  assert stopped.value.code == 2 and "No space left on device" in capsys.readouterr().err
