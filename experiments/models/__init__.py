"""The paper's networks and the small ones, in Flax nnx."""
