"""Counts of operations and traffic against what can be written down by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from configs import teran_flickr
from xmr import parallel
from xmr.config import base_config
from xmr.errors import UserError
from xmr.eval import token_scores
from xmr.plan import chips, operations, programs, topology, traffic
from xmr.plan import sizes as sizes_lib


def counted(function, *shapes):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return operations.count(jax.jit(function).trace(*arguments).jaxpr)


def test_products_loops_and_convolutions_count_what_they_compute():
  assert counted(lambda x, y: x @ y, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  assert counted(jax.value_and_grad(lambda x, y: jnp.sum(x @ y)), (3, 5), (5, 7)) == 420

  def looped(x, y):
    return jax.lax.scan(lambda carry, _: (carry @ y, None), x, length=4)[0]

  assert counted(looped, (3, 5), (5, 5)) == 4 * 2 * 3 * 5 * 5
  assert counted(lambda x, y: jax.lax.fori_loop(0, 6, lambda i, c: c @ y, x), (3, 5), (5, 5)) == 900

  def branched(x, y):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ y, lambda: x)

  assert counted(branched, (5, 5), (5, 5)) == 250

  def convolved(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert counted(convolved, (2, 8, 8, 3), (3, 3, 3, 5)) == 2 * (2 * 4 * 4 * 5) * 27
  assert counted(jax.checkpoint(lambda x, y: x @ y), (3, 5), (5, 7)) == 210


def test_the_work_of_every_device_counts():
  mesh = parallel.mesh()

  def local(x, y):
    spec = PartitionSpec("data")
    return jax.shard_map(
      lambda x, y: x @ y.T, mesh=mesh, in_specs=(spec, PartitionSpec()), out_specs=spec
    )(x, y)

  assert counted(local, (16, 4), (6, 4)) == 2 * 16 * 4 * 6


def test_traffic_is_that_of_a_gather_a_sum_and_a_ring():
  mesh = parallel.mesh()
  rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=parallel.sharded(mesh))
  size = 64 * 16 * 4

  def scores(x):
    return x @ x.T

  text = jax.jit(scores, out_shardings=parallel.sharded(mesh)).lower(rows).compile().as_text()
  (gather,) = traffic.collectives(text, devices=8)
  assert (gather.kind, gather.count, gather.bytes) == ("all-gather", 1, size)
  assert gather.sent == size * 7 / 8
  total = jax.jit(lambda x: x.T @ x, out_shardings=parallel.replicated(mesh))
  (reduce,) = traffic.collectives(total.lower(rows).compile().as_text(), devices=8)
  assert (reduce.kind, reduce.bytes, reduce.sent) == ("all-reduce", 1024, 2 * 1024 * 7 / 8)

  def around(x):
    def turn(_, y):
      return jax.lax.ppermute(y, "data", [(i, (i + 1) % 8) for i in range(8)]) * 2

    local = lambda x: jax.lax.fori_loop(0, 8, turn, x)  # noqa: E731
    spec = PartitionSpec("data")
    return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x)

  text = jax.jit(around).lower(rows).compile().as_text()
  (permute,) = traffic.collectives(text, devices=8)
  assert (permute.kind, permute.bytes, permute.sent) == ("collective-permute", size, size)


# The loop of a ring as the compiler for TPUs writes it, which says nowhere how often it turns.
RING = """
%end (wide: (s32[], f32[8,16])) -> pred[] {
  %constant.3 = s32[]{:T(128)} constant(8), metadata={op_name="jit(f)/shard_map"}
  %wide = (s32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%wide), index=0
  ROOT %lt.4 = pred[]{:T(512)} compare(%turn, %constant.3), direction=LT
}

%body (wide: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %sent = f32[8,16]{1,0} collective-permute(%rows), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %while.13 = (s32[]{:T(128)}, f32[8,16]{1,0}) while(%tuple.22), condition=%end, body=%body
}
"""


def test_a_loop_turns_as_often_as_its_condition_says():
  (permute,) = traffic.collectives(RING, devices=8)
  assert (permute.count, permute.sent) == (8, 8 * 8 * 16 * 4)


def test_groups_and_sizes_are_read_as_compilers_write_them():
  assert traffic.group_of("replica_groups={{0,1,2,3},{4,5,6,7}}", 8) == 4
  assert traffic.group_of("replica_groups=[2,4]<=[8]", 8) == 4
  assert traffic.group_of("replica_groups=mesh['axis_0'=8] {'axis_0'}", 16) == 8
  # As the compiler for GPUs writes a machine of one node.
  nodes = "replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, use_global_device_ids=true"
  assert traffic.group_of(nodes, 16) == 8
  assert traffic.group_of("replica_groups=mesh['a'=8,'b'=2] {'a':(2)4,'b'}", 16) == 8
  assert traffic.group_of("channel_id=1", 16) == 16
  assert traffic.bytes_of("bf16[4096,1024]{1,0:T(8,128)(2,1)S(1)}") == 2 * 4096 * 1024
  assert traffic.bytes_of("(f32[], f32[8,2])") == 4 + 64
  assert traffic.bytes_of("(f32[4,2], f32[8,2])", started=True, kind="all-gather") == 64
  started = "(f32[8,2], f32[8,2], u32[], u32[])"
  assert traffic.bytes_of(started, started=True, kind="collective-permute") == 64
  # A GPU's compiler sends all rows of a turn at once.
  several = "((f32[8,2]{1,0}, s32[8]{0}), (f32[8,2]{1,0}, s32[8]{0}))"
  assert traffic.bytes_of(several, started=True, kind="collective-permute") == 64 + 32


@pytest.mark.parametrize("text", ["v5e", "v5e:", "v9:2x2", "v5e:2xa", "v5e:0x4", "cpu:-1"])
def test_an_unknown_slice_is_one_line(text):
  with pytest.raises(UserError, match="expected CHIP:SHAPE"):
    topology.parse(text)


def test_slices_have_sizes_and_gpus_a_description():
  assert topology.parse("v5e:16x16").size == 256
  assert topology.parse("cpu:8").chip.platform == "cpu"
  assert topology.parse("h100:2x8").name == "h100:2x8"
  for name in chips.GPUS:
    text = chips.gpu_target(name)
    assert text.count("{") == text.count("}") and chips.CHIPS[name].platform == "cuda"


def test_a_plan_knows_regions_and_the_blocks_of_their_alignments():
  config = teran_flickr.get_config("flickr8k_mh")
  config.model.dim, config.batch_size, config.data.image_mask = 8, 8, "mask.npy"
  given = {"images": 40, "captions": 40, "words": 6, "vocabulary": 20, "image_width": 5}
  sizes = sizes_lib.of(config, given | {"regions": 4})
  mesh = parallel.mesh(jax.devices()[:1])
  calls = list(programs.calls(config, mesh, sizes))
  traced = {call.name: (call.rows, call.trace()) for call in calls}
  assert list(traced) == [
    *("training step", "warm-up step", "encoding images", "encoding texts"),
    "block of alignments",
  ]
  # An encoder is not charged for the other: 5 x 8 numbers and a bias of images, words of texts.
  image, text = (next(c for c in calls if c.name == f"encoding {x}s") for x in ("image", "text"))
  assert image.parts["parameters"] < 1000 < text.parts["parameters"]
  rows, block = traced["block of alignments"]
  words = config.data.max_length
  products = 2 * rows * 4 * rows * words * 8
  assert operations.count(block.jaxpr) == products
  assert 4 * rows * 4 * rows * words <= token_scores.BLOCK_BYTES


def test_a_plan_knows_averages_parts_and_adapters():
  config = base_config()
  config.update_from_flattened_dict(
    {"model.dim": 8, "data.image_size": 32, "batch_size": 8, "model.text.word_dim": 8}
  )
  sizes = sizes_lib.of(config, {"images": 40, "captions": 40, "words": 6, "vocabulary": 20})
  mesh = parallel.mesh(jax.devices()[:1])

  def state_of(**changes):
    with config.unlocked():
      config.update_from_flattened_dict({key.replace("__", "."): x for key, x in changes.items()})
    return next(programs.calls(config, mesh, sizes)).trace().args_info[0][0]

  def moments(state):
    return len(jax.tree.leaves(state.opt_state))

  plain = state_of()
  assert plain.average is None
  averaged = state_of(evaluate__ema=0.9, batch_chunks=2)
  assert len(jax.tree.leaves(averaged.average)) == len(jax.tree.leaves(averaged.params))
  adapted = state_of(init="runs/clip", model__lora__rank=2, model__lora__kernels="kernel")
  assert moments(adapted) < moments(plain)


# A collective of a TPU's program that runs beside other work: three fusions name it.
CHAIN = """
%start (x: f32[8]) -> (f32[8], f32[64]) {
  %gather.1 = f32[64]{0} all-gather(%x), channel_id=1, frontend_attributes={chain_id="0"}
  ROOT %s = (f32[8], f32[64]) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (x: f32[8]) -> f32[64] {
  %gather.2 = f32[64]{0} all-gather(%x), channel_id=1, frontend_attributes={chain_id="0"}
}

%done (x: f32[8]) -> f32[64] {
  %gather.3 = f32[64]{0} all-gather(%x), channel_id=1, frontend_attributes={chain_id="0"}
  ROOT %d = f32[64] custom-call(%x, %gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[8]) -> f32[64] {
  %a = (f32[8], f32[64]) fusion(%x), kind=kCustom, calls=%start
  %b = f32[64] fusion(%x), kind=kLoop, calls=%beside
  %c = f32[64] fusion(%x), kind=kCustom, calls=%done
  %d = f32[64]{0} all-gather(%x), channel_id=1
}
"""


def test_a_collective_beside_other_work_counts_once():
  (gather,) = traffic.collectives(CHAIN, devices=8)
  assert (gather.count, gather.bytes) == (2, 2 * 64 * 4)
