"""Types of encoders' inputs and outputs: B images or texts, D dimensions of the joint space."""

import jax
from jaxtyping import Bool, Float, Float32, Integer, UInt8

from xmr.ops.alignment import Tokens
from xmr.ops.arrays import Array

Pixels = UInt8[Array, "B H W 3"]
Features = Float[Array, "B F"]
Regions = Float[Array, "B R F"]
RegionMask = Bool[Array, "B R"]
Words = Integer[Array, "B L"]
Lengths = Integer[Array, " B"]
Embeddings = Float32[jax.Array, "B D"]
# The output of an encoder that can return its tokens.
Encoded = Embeddings | Tokens
# Any input of an encoder.
AnyImage = Pixels | Features | Regions
AnyText = Words | Features
