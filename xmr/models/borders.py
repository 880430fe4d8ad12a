"""Types of what encoders take and give: B images or texts, D numbers of the joint space."""

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
# Of an encoder that can be asked for its tokens.
Encoded = Embeddings | Tokens
# Whatever an encoder may read.
AnyImage = Pixels | Features | Regions
AnyText = Words | Features
