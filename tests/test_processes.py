"""Several real processes on this machine: one answer, one set of files, one fate."""

import contextlib
import functools
import json
import os
import signal
import socket
import stat
import sys

import psutil
import pytest
import small_run

from xmr import parallel
from xmr.errors import UserError

LONG = {"steps": 100_000, "checkpoint.steps": 50, "evaluate.steps": 50}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.write_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
  """A run in one process."""
  workdir = tmp_path_factory.mktemp("one") / "run"
  small_run.run(small_run.command(data, workdir))
  return workdir


@pytest.fixture
def started():
  """Starts commands and leaves no process behind."""
  roots = []

  def start(*arguments, **options):
    roots.append(small_run.start(*arguments, **options))
    return roots[-1]

  yield start
  for root in roots:
    if root.poll() is None:
      family = psutil.Process(root.pid).children(recursive=True)
      root.kill()
      for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
          process.kill()


def member(root, index):
  """Returns the process of that index among the children of a launcher."""
  found = {}
  for child in psutil.Process(root.pid).children(recursive=True):
    # What a shell starts for a moment may be gone.
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
      if child.environ().get("XMR_PROCESS") == str(index):
        found[child.pid] = child
  # Not what the process itself started, which has its environment.
  (only,) = (child for child in found.values() if child.ppid() not in found)
  return only


def is_under_way(workdir, step=4):
  return lambda: (
    (workdir / "metrics.jsonl").exists()
    and any(at > step for at in small_run.steps_logged(workdir))
  )


@pytest.mark.slow
def test_two_processes_give_the_parameters_of_one_and_write_everything_once(data, one, tmp_path):
  workdir = tmp_path / "run"
  printed = small_run.run(small_run.command(data, workdir, processes=2))
  assert "2 cpu device(s), 2 process(es)" in printed and printed.count("wrote ") == 1
  small_run.assert_equal(small_run.parameters(workdir), small_run.parameters(one), atol=1e-6)
  assert small_run.steps_logged(workdir) == small_run.steps_logged(one) == [2, 4, 6, 8, 10, 12]
  results = [json.loads((folder / "results.json").read_text()) for folder in (workdir, one)]
  assert results[0]["metrics"] == results[1]["metrics"] and results[0]["n_texts"] == 20
  # Validation has 20 captions in batches of 16: the last is partial, in one process or in two.
  scores = [
    [line for line in small_run.logged(folder) if "val/rsum" in line] for folder in (workdir, one)
  ]
  assert [line["val/rsum"] for line in scores[0]] == [line["val/rsum"] for line in scores[1]]


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_the_same_step_in_both_and_the_command_goes_on(
  data, one, tmp_path, started
):
  workdir = tmp_path / "run"
  root = started(small_run.command(data, workdir, processes=2, **LONG), log=tmp_path / "log")
  small_run.wait_for(is_under_way(workdir), process=root)
  member(root, 1).send_signal(signal.SIGTERM)
  assert root.wait(300) == 0
  printed = (tmp_path / "log").read_text()
  assert "another process: saved step" in printed
  newest = small_run.steps_logged(workdir)[-1]
  assert str(newest) in os.listdir(workdir / "checkpoints")
  # The checkpoint of two processes of one device each goes on in one process of eight devices, and
  # back in two.
  small_run.run(small_run.command(data, workdir, **LONG | {"steps": newest + 4}), devices=8)
  small_run.run(small_run.command(data, workdir, processes=2, **LONG | {"steps": newest + 8}))
  steps = small_run.steps_logged(workdir)
  assert steps == list(range(2, newest + 9, 2))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_kill_of_one_of_two_stops_the_other_within_a_minute_and_a_restart_goes_on(
  data, one, victim, tmp_path, started
):
  workdir = tmp_path / "run"
  root = started(
    small_run.command(data, workdir, processes=2, **LONG | {"checkpoint.steps": 2}),
    log=tmp_path / "log",
  )
  small_run.wait_for(is_under_way(workdir), process=root)
  member(root, victim).kill()
  # After a minute the launcher would kill the other, which then says nothing.
  assert root.wait(200) == 128 + signal.SIGKILL
  printed = (tmp_path / "log").read_text()
  assert f"local.sh: error: process {victim}/2 ended with status 137; the others stop" in printed
  lost = (
    f"process {1 - victim}/2 lost another process of this run; the same command goes on from "
    f"the last checkpoint"
  )
  # JAX's own service may notice first, and end the process with its own words.
  assert lost in printed or "another task died" in printed
  # However late the kill came.
  last = small_run.newest_step(workdir) + 6
  small_run.run(
    small_run.command(data, workdir, processes=2, **LONG | {"checkpoint.steps": 2, "steps": last})
  )
  assert small_run.steps_logged(workdir) == list(range(2, last + 1, 2))


@pytest.mark.slow
def test_a_mistake_in_one_process_alone_ends_both(data, tmp_path):
  workdir = tmp_path / "run"
  # Process 0 holds the lock of the run folder; a second run cannot have it, and only its process 0
  # notices.
  workdir.mkdir()
  import fcntl

  with (workdir / ".lock").open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    printed = small_run.run(small_run.command(data, workdir, processes=2), code=2)
  assert f"xmr: error: another process is training in {workdir}" in printed


FAKE_SRUN = """#!/usr/bin/env bash
# Starts the tasks of a step with Slurm's variables, as srun does on one host.
# SIGTERM goes to the tasks.
while [[ "${1:-}" == --* ]]; do shift; done
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_STEP_ID=0 \\
    SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_TASKS=$SLURM_NTASKS "$@" &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
status=0
for pid in "${pids[@]}"; do
  code=0
  wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
  ((code == 0)) || status=$code
done
exit "$status"
"""


@pytest.fixture
def slurm(tmp_path):
  """Environment of a job of two tasks on this host, with programs that stand in for Slurm's."""
  folder = tmp_path / "bin"
  folder.mkdir()
  programs = {
    "srun": FAKE_SRUN,
    "scontrol": '#!/usr/bin/env bash\nif [[ $1 == show ]]; then echo localhost; else echo "$@" '
    '>> "$FAKE_LOG"; fi\n',
  }
  for name, text in programs.items():
    (folder / name).write_text(text)
    (folder / name).chmod(0o755 | stat.S_IEXEC)
  return {
    "PATH": f"{folder}:{os.environ['PATH']}",
    "FAKE_LOG": str(tmp_path / "scontrol.log"),
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "1",
  }


@pytest.mark.slow
def test_a_plain_srun_of_two_tasks_is_one_run_of_two_processes(data, one, slurm, tmp_path):
  workdir = tmp_path / "run"
  command = ["srun", sys.executable, "-m", "xmr.main", *small_run.arguments(data, workdir)]
  printed = small_run.run(command, **slurm)
  assert "process 1/2 joins localhost:" in printed and "2 process(es)" in printed
  small_run.assert_equal(small_run.parameters(workdir), small_run.parameters(one), atol=1e-6)


@pytest.mark.slow
def test_the_slurm_script_saves_before_its_time_is_up_and_requeues_until_the_run_is_complete(
  data, slurm, tmp_path, started
):
  workdir = tmp_path / "run"
  command = ["bash", "launch/slurm.sh", *small_run.arguments(data, workdir, **LONG)]
  root = started(command, log=tmp_path / "log", **slurm)
  small_run.wait_for(is_under_way(workdir), process=root)
  root.send_signal(signal.SIGTERM)
  assert root.wait(300) == 0, (tmp_path / "log").read_text()
  assert (tmp_path / "scontrol.log").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
  newest = small_run.steps_logged(workdir)[-1]
  small_run.run(
    [
      "bash",
      "launch/slurm.sh",
      *small_run.arguments(data, workdir, **LONG | {"steps": newest + 4}),
    ],
    **slurm,
  )
  assert (workdir / "results.json").exists()
  assert (tmp_path / "scontrol.log").read_text().count("requeue") == 1


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_lost_process_is_one_line_and_an_error_of_ours_keeps_its_traceback(
  kind, monkeypatch, capfd
):
  monkeypatch.setattr(parallel.jax, "process_count", lambda: 2)
  ends = []
  monkeypatch.setattr(parallel.os, "_exit", ends.append)
  with parallel.together():
    raise kind("UNKNOWN: Gloo AllGather failed:\nConnection reset by peer")
  printed = capfd.readouterr().err
  assert (
    "process 0/2 lost another process of this run; the same command goes on" in printed
    and "Traceback" not in printed
  )
  with parallel.together():
    raise kind("shapes differ")
  assert "Traceback" in capfd.readouterr().err and ends == [1, 1]


@pytest.mark.parametrize(
  "environment, expected",
  [
    ({}, None),
    (
      {"XMR_COORDINATOR": "host:1", "XMR_PROCESSES": "4", "XMR_PROCESS": "3"},
      ("host:1", 4, 3, None),
    ),
    # An allocation without a step: a plain python in the batch script, or on the login node.
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),
    (
      {
        "SLURM_STEP_NODELIST": "a",
        "SLURM_NTASKS": "8",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_PROCID": "0",
      },
      None,
    ),
    (
      {
        "SLURM_STEP_NODELIST": "gpu[003-004,9],b",
        "SLURM_NTASKS": "16",
        "SLURM_PROCID": "9",
        "SLURM_JOB_ID": "123456",
        "SLURM_LOCALID": "1",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
      },
      ("gpu003:23456", 16, 9, [1]),
    ),
    # A task that sees its own GPU alone, which is number 0 to it.
    (
      {
        "SLURM_STEP_NODELIST": "a-1,b-[2-3]",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_LOCALID": "1",
        "CUDA_VISIBLE_DEVICES": "1",
        "XMR_PORT": "555",
      },
      ("a-1:555", 2, 1, None),
    ),
  ],
)
def test_the_environment_says_who_is_in_the_run(environment, expected):
  assert parallel.members(environment) == expected


@pytest.mark.parametrize(
  "coordinator, expected",
  [
    ("127.0.0.1:555", "127.0.0.1:555"),
    ("[::1]:555", "[::1]:555"),
    ("192.0.2.1:555", None),  # Reserved for examples: no machine has it.
    ("no-such-host.invalid:555", None),
    ("own-name:555", "10.0.0.7:555"),
    ("only-loopback:555", None),
  ],
)
def test_the_coordinator_listens_at_its_own_address_alone(
  coordinator, expected, monkeypatch, capsys
):
  known = {"own-name": ["127.0.1.1", "10.0.0.7"], "only-loopback": ["127.0.1.1"]}
  real, taken = socket.getaddrinfo, []

  def lookup(host, port, **more):
    if host.endswith(".invalid"):
      raise socket.gaierror
    return [r for each in known.get(host, [host]) for r in real(each, port, **more)]

  class Trial(socket.socket):
    def bind(self, address):
      taken.append(address[0])
      if address[0] == "192.0.2.1":
        raise OSError("Cannot assign requested address")

  monkeypatch.setattr(socket, "getaddrinfo", lookup)
  monkeypatch.setattr(socket, "socket", Trial)
  assert parallel.bind_address(coordinator) == expected
  assert ("listens on all its interfaces" in capsys.readouterr().err) == (expected is None)
  given = {}
  monkeypatch.setattr(parallel.jax.distributed, "initialize", lambda *_, **more: given.update(more))
  for name, value in (("COORDINATOR", coordinator), ("PROCESSES", "2"), ("PROCESS", "0")):
    monkeypatch.setenv(f"XMR_{name}", value)
  parallel.initialize()
  assert given["coordinator_bind_address"] == expected


@pytest.mark.parametrize(
  "environment, found",
  [
    (
      {"XMR_COORDINATOR": "h:1"},
      "the coordinator is h:1 but XMR_PROCESSES is None, XMR_PROCESS is None; expected two numbers",
    ),
    (
      {"XMR_COORDINATOR": "h:1", "XMR_PROCESSES": "2", "XMR_PROCESS": "2"},
      "XMR_PROCESS is 2; expected 0 to 1",
    ),
  ],
)
def test_a_half_named_run_is_refused(environment, found):
  with pytest.raises(UserError, match=None) as error:
    parallel.members(environment)
  assert str(error.value).startswith(found)


# Negatives from a bank, whose rows lie on all processes and are part of the checkpoints.
MINED = {"loss.name": "hard_negative", "mining.scope": "bank", "mining.refresh_steps": 3}
MINED |= {"steps": 100_000, "checkpoint.steps": 1}


@pytest.fixture(scope="module")
def eight(data, tmp_path_factory):
  """Returns the folder of a run of so many steps in one process of eight devices."""

  @functools.cache
  def run(steps):
    workdir = tmp_path_factory.mktemp("eight") / "run"
    small_run.run(small_run.command(data, workdir, **MINED | {"steps": steps}), devices=8)
    return workdir

  return run


@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True], ids=["whole", "in_parts"])
def test_four_processes_of_two_devices_that_were_all_killed_end_as_one_of_eight(
  data, eight, split, tmp_path, started
):
  workdir = tmp_path / "run"

  def command(**more):
    return small_run.command(data, workdir, processes=4, **MINED | more, shard_params=split)

  root = started(command(), devices=2, log=tmp_path / "log")
  small_run.wait_for(is_under_way(workdir), process=root)
  family = [psutil.Process(root.pid), *(member(root, index) for index in range(4))]
  for process in family:
    process.kill()
  assert root.wait(300) == -signal.SIGKILL and not psutil.wait_procs(family, 300)[1]
  killed_at = small_run.newest_step(workdir)
  # A validation every six steps, the last one after the kill, however late that came.
  last = max(30, 6 * (killed_at // 6 + 2))
  printed = small_run.run(command(steps=last), devices=2)
  assert "8 cpu device(s), 4 process(es)" in printed and printed.count("wrote ") == 1
  assert f"from step {killed_at} of" in printed
  # Every process wrote its part of the parameters and of the state.
  newest = workdir / "checkpoints" / str(last)
  for item in ("params", "state"):
    assert len([*newest.glob(f"{item}/ocdbt.process_*/d/*")]) >= 4
    assert {x.name for x in newest.glob(f"{item}/ocdbt.process_*")} == {
      f"ocdbt.process_{index}" for index in range(4)
    }
  found, expected = (small_run.parameters(folder, last) for folder in (workdir, eight(last)))
  small_run.assert_equal(found, expected, atol=1e-6)
  # Each save writes what was logged so far.
  assert small_run.steps_logged(workdir) == list(range(1, last + 1))
  results = [json.loads((x / "results.json").read_text()) for x in (workdir, eight(last))]
  assert results[0]["metrics"] == results[1]["metrics"]
  scores = [small_run.steps_logged(folder, "val/rsum") for folder in (workdir, eight(last))]
  assert scores[0] == scores[1] == list(range(6, last + 1, 6))
