"""Word encoders: the authors' values, the readouts, and what may not change a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.errors import UserError
from xmr.interop.vsepp_text import import_text_encoder
from xmr.models import TEXT_ENCODERS
from xmr.models.text import READOUTS, Recurrent

NAMES = ("lstm", "bilstm", "gru", "bigru")


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_parameters_give_the_authors_embeddings(golden, name):
  stored = golden(f"text_encoder_{name}")
  state = {
    key.removeprefix("state/"): value for key, value in stored.items() if key.startswith("state/")
  }
  params = import_text_encoder(
    state, cell=name.removeprefix("bi"), bidirectional=name.startswith("bi")
  )
  words = params["embedding"].shape
  module = TEXT_ENCODERS[name](
    dim=stored["embedding"].shape[1], vocabulary_size=words[0], word_dim=words[1]
  )
  found = jax.jit(module.apply)({"params": params}, stored["tokens"], stored["lengths"])
  np.testing.assert_allclose(found, stored["embedding"], atol=1e-5)


@functools.cache
def compiled(module, **options):
  """One program per module: step by step it takes seconds."""
  return jax.jit(functools.partial(module.apply, **options))


def encode(module, variables, text, lengths, *, rngs=None, **options):
  """Applies the module, compiled."""
  return compiled(module, **options)(variables, text, lengths, rngs=rngs)


def encoder(name="bilstm", rows=5, length=7, started=False, **fields):
  """Returns (module, variables, text, text_length); drawn variables where the module need not be
  started, which is a program of its own.
  """
  rng = np.random.default_rng(1)
  module = TEXT_ENCODERS[name](
    **{"dim": 6, "vocabulary_size": 20, "word_dim": 4, "dropout": 0.0} | fields
  )
  text = rng.integers(0, 20, (rows, length)).astype(np.int32)
  lengths = rng.integers(1, length + 1, rows).astype(np.int32)
  if started:
    return module, jax.jit(module.init)(jax.random.key(0), text, lengths), text, lengths
  shapes = jax.eval_shape(module.init, jax.random.key(0), text, lengths)
  draw = lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32)  # noqa: E731
  return module, jax.tree.map(draw, shapes), text, lengths


def cell_by_hand(name, x, h, c, w):
  """One step of one row in NumPy."""
  s = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
  a, b = x @ w["input_kernel"] + w["input_bias"], h @ w["hidden_kernel"] + w["hidden_bias"]
  if name.endswith("lstm"):
    i, f, g, o = np.split(a + b, 4)
    c = s(f) * c + s(i) * np.tanh(g)
    return s(o) * np.tanh(c), c
  (ar, az, an), (br, bz, bn) = np.split(a, 3), np.split(b, 3)
  n = np.tanh(an + s(ar + br) * bn)
  return (1 - s(az + bz)) * n + s(az + bz) * h, c


def by_hand(name, readout, params, words):
  """The embedding of one text in NumPy loops, before it is normalised."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x, width = params["embedding"][words], len(params["forward"]["hidden_kernel"])
  runs = []
  for direction in ("forward", "backward")[: 1 + name.startswith("bi")]:
    h, c, steps = np.zeros(width), np.zeros(width), {}
    for t in range(len(words))[:: 1 if direction == "forward" else -1]:
      h, c = cell_by_hand(name, x[t], h, c, params[direction])
      steps[t] = h
    runs.append(np.stack([steps[t] for t in range(len(words))]))
  mean = np.mean(runs, axis=0)
  ends = np.mean([run[t] for run, t in zip(runs, (-1, 0), strict=False)], axis=0)
  y = {"last": mean[-1], "ends": ends, "mean": mean.mean(0), "max": mean.max(0)}[readout]
  if "projection" in params:
    y = y @ params["projection"]["kernel"] + params["projection"]["bias"]
  return y


@pytest.mark.parametrize(
  ("name", "readout"),
  [
    (name, readout)
    if name == "bilstm" or readout == "mean"
    else pytest.param(name, readout, marks=pytest.mark.slow)
    for name in NAMES
    for readout in READOUTS
  ],
)
def test_every_readout_is_the_one_computed_word_by_word(name, readout):
  module, variables, text, lengths = encoder(
    name, readout=readout, hidden=5 if readout == "mean" else 0, normalize="none"
  )
  found = encode(module, variables, text, lengths)
  for row, n, y in zip(text, lengths, found, strict=True):
    np.testing.assert_allclose(y, by_hand(name, readout, variables["params"], row[:n]), atol=2e-6)


@pytest.mark.parametrize("readout", ["last", "max"])
def test_a_row_depends_on_its_own_words_alone(readout):
  module, variables, text, lengths = encoder(readout=readout)
  found = encode(module, variables, text, lengths)
  outside = np.arange(text.shape[1]) >= lengths[:, None]
  np.testing.assert_array_equal(
    encode(module, variables, np.where(outside, 999, text), lengths), found
  )
  wider = np.pad(text, ((0, 0), (0, 4)), constant_values=3)
  np.testing.assert_allclose(encode(module, variables, wider, lengths), found, atol=1e-6)
  alone = encode(module, variables, text[2:3], lengths[2:3])
  np.testing.assert_allclose(alone[0], found[2], atol=1e-6)


@pytest.mark.parametrize(
  "readout",
  [
    pytest.param(readout, marks=[pytest.mark.slow] * (readout in ("ends", "mean")))
    for readout in READOUTS
  ],
)
def test_a_text_of_no_words_is_zero_and_has_no_gradient_of_nan(readout):
  module, variables, text, _ = encoder("bigru", readout=readout)
  lengths = np.array([0, 1, 0, 7, 3], np.int32)

  def loss(variables):
    rows = module.apply(variables, text, lengths)
    return jnp.sum(rows**3), rows

  gradient, rows = jax.jit(jax.grad(loss, has_aux=True))(variables)
  assert not np.any(rows[jnp.array([0, 2])])
  np.testing.assert_allclose(jnp.linalg.norm(rows[jnp.array([1, 3, 4])], axis=1), 1, atol=1e-6)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("readout", [pytest.param("last", marks=pytest.mark.slow), "mean"])
def test_only_words_that_are_there_get_a_gradient(readout):
  module, variables, text, lengths = encoder(readout=readout)
  text = np.where(np.arange(text.shape[1]) < lengths[:, None], text % 10, 15)
  weight = np.random.default_rng(0).normal(size=(5, 6))
  gradient = jax.jit(jax.grad(lambda v: jnp.sum(weight * module.apply(v, text, lengths))))(
    variables
  )["params"]["embedding"]
  present = np.unique(text[text != 15])
  if readout != "last":
    assert np.all(np.any(gradient[present], axis=1))
  assert not np.any(np.delete(gradient, present, axis=0))


def test_dropout_acts_on_word_vectors_in_training_only():
  module, variables, text, lengths = encoder(dropout=0.5, word_dim=400)
  evaluated = encode(module, variables, text, lengths)
  np.testing.assert_array_equal(
    encode(module.clone(dropout=0.0), variables, text, lengths), evaluated
  )
  first, second = (
    encode(module, variables, text, lengths, train=True, rngs={"dropout": jax.random.key(k)})
    for k in (1, 2)
  )
  assert np.abs(first - evaluated).max() > 1e-3 and np.abs(first - second).max() > 1e-3
  # With dropout 1 - 1e-6 every word vector is zero: only the biases speak, the same for all texts
  # of one length.
  module = module.clone(dropout=1 - 1e-6)
  rows = encode(
    module,
    variables,
    text,
    np.full(5, 3, np.int32),
    train=True,
    rngs={"dropout": jax.random.key(0)},
  )
  np.testing.assert_allclose(rows, np.broadcast_to(rows[:1], rows.shape), atol=1e-6)


def test_word_vectors_are_the_first_embedding_and_it_is_trained():
  vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
  module, variables, text, lengths = encoder(word_vectors=vectors, started=True)
  np.testing.assert_array_equal(variables["params"]["embedding"], vectors)
  gradient = jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, text, lengths)[:, 0])))(variables)
  assert np.any(gradient["params"]["embedding"])
  assert hash(module) == hash(module.clone()) and module == module.clone()


@pytest.mark.parametrize(
  ("word_init", "low", "high"),
  [("xavier", 0.02, 0.04), ("uniform", 0.055, 0.06), ("normal", 0.95, 1.05)],
)
def test_word_embeddings_start_as_their_papers_do(word_init, low, high):
  _, variables, _, _ = encoder(word_init=word_init, vocabulary_size=2000, word_dim=50, started=True)
  embedding = variables["params"]["embedding"]
  assert low < np.std(embedding) < high and abs(np.mean(embedding)) < 0.05 * high


@pytest.mark.parametrize("name", NAMES)
def test_recurrent_weights_start_as_in_pytorch(name):
  _, variables, _, _ = encoder(name, hidden=16, started=True)
  assert set(variables["params"]) == {
    "embedding",
    "forward",
    "projection",
    *(["backward"] if name[0] == "b" else []),
  }
  for leaf in jax.tree.leaves(variables["params"]["forward"]):
    assert 0.2 < np.abs(leaf).max() <= 0.25 and leaf.min() < -0.1


@pytest.mark.slow
def test_half_precision_changes_little_and_keeps_float32_outside():
  module, variables, text, lengths = encoder(
    readout="mean", dim=64, word_dim=32, rows=16, started=True
  )
  half = module.clone(dtype=jnp.bfloat16)
  assert all(
    leaf.dtype == jnp.float32
    for leaf in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), text, lengths))
  )

  def run(module):
    rows = encode(module, variables, text, lengths)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, text, lengths)[:, 0])))(variables)
    return rows, gradient["params"]

  (full, gradient), (found, rounded) = run(module), run(half)
  assert found.dtype == jnp.float32 and 0 < np.abs(found - full).max() < 0.01
  for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(rounded), strict=True):
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(b, a, atol=0.03 * np.abs(a).max())


def test_order_embeddings_are_absolute_values():
  module, variables, text, lengths = encoder()
  rows = encode(module, variables, text, lengths)
  found = encode(module.clone(normalize="abs"), variables, text, lengths)
  np.testing.assert_allclose(found, np.abs(rows), rtol=1e-6)


@pytest.mark.parametrize(
  ("text", "length", "message"),
  [
    (
      np.zeros((2, 3), np.float32),
      np.ones(2, np.int32),
      r"text has shape \(2, 3\) and type float32; expected \[B, L\]",
    ),
    (np.zeros(3, np.int32), np.ones(3, np.int32), r"text has shape \(3,\)"),
    (
      np.zeros((2, 3), np.int32),
      np.ones(3, np.int32),
      r"text_length has shape \(3,\) and type int32; expected \(2,\)",
    ),
    (np.zeros((2, 3), np.int32), np.ones(2, np.float32), "text_length has shape .* float32"),
  ],
)
def test_input_of_another_shape_or_type_is_refused(text, length, message):
  with pytest.raises(ValueError, match=message):
    Recurrent(dim=4, vocabulary_size=5).init(jax.random.key(0), text, length)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"readout": "first"}, "readout is 'first'; expected one of last, ends, mean, max"),
    ({"word_init": "zero"}, "word_init is 'zero'"),
    ({"cell": "rnn"}, "cell is 'rnn'; expected one of lstm, gru"),
    ({"word_vectors": np.zeros((3, 4))}, r"word_vectors have shape \(3, 4\); expected \(20, 4\)"),
  ],
)
def test_an_attribute_out_of_range_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    encoder(**fields)


def test_a_state_of_another_network_is_refused(golden):
  stored = golden("text_encoder_bilstm")
  state = {
    key.removeprefix("state/"): value for key, value in stored.items() if key.startswith("state/")
  }
  with pytest.raises(UserError, match=r"not expected \['rnn.bias_hh_l0_reverse'"):
    import_text_encoder(state, cell="lstm", bidirectional=False)
  with pytest.raises(UserError, match=r"rnn.weight_ih_l0 is \(64, 12\), expected \(48, 12\)"):
    import_text_encoder(state, cell="gru", bidirectional=True)
  del state["rnn.bias_ih_l0"]
  with pytest.raises(UserError, match=r"model.pth: .* missing \['rnn.bias_ih_l0'\]"):
    import_text_encoder(state, cell="lstm", bidirectional=True, where="model.pth")
