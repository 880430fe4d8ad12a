"""What would make a program fit a chip."""

LARGE = 0.1  # share of a chip's memory from which a part is worth an advice


def advice(parts, chip, config):
  """Returns what would help, as a list of words, the flags first.

  Args:
    parts: {what: bytes} on one device, of least.of_step; "temporary" is what a program computes.
    chip: Chip.  config: of the run.
  """
  large = {name for name, size in parts.items() if size >= LARGE * chip.memory}
  computed = "temporary" in large
  found = []
  if "scores" in large or ("scores" in parts and computed):
    found.append("--config.loss_form=ring (no [B, B])")
  for side in ("image", "text") if computed else ():
    if config.model[side].get("remat") is False:
      found.append(f"--config.model.{side}.remat=true (blocks are computed again)")
  if computed and config.model.dtype == "float32":
    found.append("--config.model.dtype=bfloat16")
  if computed and config.batch_chunks == 1:
    text = "--config.batch_chunks=4 (parts of a batch, one after another)"
    batches = config.model.image.get("batch_norm") == "released"
    found.append(text + (" with --config.model.image.batch_norm=frozen" if batches else ""))
  state = parts.get("parameters", 0) + parts.get("optimiser", 0)
  if state >= LARGE * chip.memory and "shard_params" in config and not config.shard_params:
    found.append("--config.shard_params=true (each device keeps a part of them)")
  if "training set" in large:
    found.append("more devices (the training set is split over them)")
  if config.mining.scope == "bank" and "training set" in large:
    found.append("--config.mining.scope=train (no embeddings are kept)")
  if state < chip.memory:
    times = (sum(parts.values()) - state) / (chip.memory - state)
    found.append(f"a smaller batch, or more than {times:.1f} times the devices")
  else:
    found.append("a smaller model: its parameters and their optimiser alone are too large")
  return found
