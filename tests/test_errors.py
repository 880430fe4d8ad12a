import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest
import small_run
from paths import ROOT

from xmr import main
from xmr.errors import UserError, reported
from xmr.preemption import Stop
from xmr.terminal import interrupts


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


NAME = "a\x1b[2J\x1b]0;title\x07\x9b31m\rhidden\u202egnp.exe\ud800ö"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\x9b31m\rhidden\u202egnp.exe\ud800ö"


def test_control_characters_of_a_name_never_reach_the_terminal(capsys):
  with reported():
    print(NAME)
    print(f"\r 12% {NAME}", file=sys.stderr)
  found = capsys.readouterr()
  assert (found.out, found.err) == (SHOWN + "\n", f"\r 12% {SHOWN}\n")
  with pytest.raises(SystemExit), reported():
    raise UserError(f"no image {NAME}")
  line = SHOWN.replace(r"\r", " ")  # A line of an error has no white space but blanks.
  assert capsys.readouterr().err == f"xmr: error: no image {line}\n"
  print(NAME[:6])  # Outside of a command nothing is changed.
  assert capsys.readouterr().out == NAME[:6] + "\n"


def test_a_name_that_the_encoding_of_the_terminal_lacks_is_escaped():
  code = (
    "from xmr.errors import reported\nwith reported():\n  print('h\\u00f6\\u72d7.png', '\\udcff')"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    env={**os.environ, "PYTHONIOENCODING": "latin-1"},
  )
  assert (done.stdout, done.stderr) == (b"h\xf6\\u72d7.png \\udcff\n", b"")


def test_ctrl_c_is_one_line_and_status_130(capsys):
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(SystemExit) as stopped, reported():
    signal.raise_signal(signal.SIGINT)
  assert stopped.value.code == 130 and capsys.readouterr().err == "xmr: interrupted\n"
  assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_that_a_callback_swallowed_stops_before_the_training_begins(capsys):
  with pytest.raises(SystemExit) as stopped, reported():
    with contextlib.suppress(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
    with Stop():
      pytest.fail("the training began")
  assert stopped.value.code == 130 and capsys.readouterr().err == "xmr: interrupted\n"


@pytest.mark.parametrize("made", ["ImportError", "UserError", "SystemError"])
def test_ctrl_c_that_a_library_made_another_error_of_is_one_line_and_status_130(capsys, made):
  with pytest.raises(SystemExit) as stopped, reported():
    try:
      signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
      kinds = {"UserError": UserError, "ImportError": ImportError, "SystemError": SystemError}
      raise kinds[made]("an extension stopped") from None
  assert stopped.value.code == 130 and capsys.readouterr().err == "xmr: interrupted\n"


def ran(folder):
  """Runs a folder's command.py by `python -m command`."""
  return subprocess.run(
    [sys.executable, "-m", "command"],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )


def test_ctrl_c_in_code_that_was_given_to_exec_has_the_status_of_any_other(tmp_path):
  (tmp_path / "command.py").write_text(
    "import signal\nfrom xmr.errors import reported\nwith reported():\n"
    "  exec('signal.raise_signal(signal.SIGINT)')"
  )
  done = ran(tmp_path)
  assert (done.returncode, done.stderr) == (130, "xmr: interrupted\n")


TWICE = {
  "anywhere": "from xmr.errors import reported\nwith reported():\n  try:\n    kill(9)\n  finally:\n"
  "    kill(9)\n    print('too late')",
  "training": "from xmr.preemption import Stop\nwith Stop() as stop:\n  kill(9)\n"
  "  assert stop.wanted(1) and stop.signal == 'SIGINT'\n  kill(9)\n  print('too late')",
}


@pytest.mark.parametrize("code", TWICE.values(), ids=TWICE.keys())
def test_the_second_ctrl_c_ends_at_once_with_one_line(code):
  code = "import signal\ndef kill(_): signal.raise_signal(signal.SIGINT)\n" + code
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (130, "")
  assert done.stderr == "xmr: interrupted twice: ended at once\n"


def test_ctrl_c_while_a_command_is_imported_ends_it_without_a_traceback():
  code = (
    "import sys; sys.argv = ['-m']; import xmr, signal; signal.raise_signal(signal.SIGINT); "
    "print('too late')"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
  done = subprocess.run(
    [sys.executable, "-c", "import xmr, signal; print(signal.getsignal(signal.SIGINT))"],
    capture_output=True,
    text=True,
  )
  assert "default_int_handler" in done.stdout


@pytest.mark.parametrize("kind", ["folder", "missing", "long"])
def test_a_file_that_is_none_is_one_line_with_its_name(tmp_path, capsys, kind):
  path = tmp_path / {"folder": ".", "missing": "none", "long": "x" * 300}[kind]
  with pytest.raises(SystemExit) as stopped, reported():
    path.read_text()
  said = capsys.readouterr().err
  assert stopped.value.code == 2 and said.startswith("xmr: error: ") and str(path) in said
  with pytest.raises(OSError, match="a bug"), reported():
    raise OSError("a bug")


@pytest.mark.parametrize("asked", [True, False])
def test_a_run_that_another_command_started_stops_with_it(asked):
  code = (
    "import time\nfrom xmr.terminal import interrupts\ninterrupts.end_with_parent()\n"
    "print('ready', flush=True)\ntime.sleep(0.5 if not " + str(asked) + " else 600)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, **({interrupts.PIPE: "1"} if asked else {})},
  )
  assert process.stdout.readline() == b"ready\n"
  process.stdin.close()  # As the system does where the parent was killed.
  assert process.wait(300) == (-signal.SIGTERM if asked else 0)
  process.stdout.close()


@pytest.mark.parametrize(
  "moment", ["xmr.preemption.Stop", "xmr.experiment.loaded", "xmr.encode.check_step"]
)
def test_ctrl_c_between_the_line_of_devices_and_the_lock_is_one_line_and_nothing_is_trained(
  moment, tmp_path, monkeypatch, capsys
):
  def ctrl_c(*_, **__):
    signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(moment, ctrl_c)
  data, workdir = small_run.write_data(tmp_path / "data"), tmp_path / "run"
  with pytest.raises(SystemExit) as stopped:
    main.main(["xmr.main", *small_run.arguments(data, workdir)])
  assert stopped.value.code == 130 and not workdir.exists()
  said = capsys.readouterr().err
  assert said.endswith("device(s), 1 process(es)\nxmr: interrupted\n"), said


AFTERWARDS = {
  "after the line": ("kill()", "kill()", "xmr: interrupted\n"),
  "after the work": ("pass", "kill()", "xmr: interrupted\n"),
  "while Python ends": ("kill()", "import atexit; atexit.register(kill)", "xmr: interrupted\n"),
}


@pytest.mark.parametrize("inside, behind, said", AFTERWARDS.values(), ids=AFTERWARDS.keys())
def test_ctrl_c_when_a_command_has_said_its_last_line_is_status_130(tmp_path, inside, behind, said):
  (tmp_path / "command.py").write_text(
    # As the import of a command by `python -m xmr....` leaves it.
    "import signal\nsignal.signal(signal.SIGINT, signal.SIG_DFL)\n"
    "from xmr.errors import reported\n"
    "def kill(): signal.raise_signal(signal.SIGINT)\n"
    f"try:\n  with reported():\n    {inside}\nfinally:\n  {behind}"
  )
  done = ran(tmp_path)
  assert (done.returncode, done.stderr) == (130, said)


def test_a_gpu_without_kernels_is_one_line(capsys):
  with pytest.raises(SystemExit) as stopped, reported():
    raise RuntimeError("FAILED_PRECONDITION: Triton support is only enabled for Ampere GPUs and up")
  assert stopped.value.code == 2
  assert capsys.readouterr().err == (
    "xmr: error: this GPU is older than Ampere and compiles no kernels; expected XMR_KERNELS=0 in "
    "the environment\n"
  )
