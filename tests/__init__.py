"""Tests of pdt_optax."""
