"""Experiments with `pdt_optax`: models on data, one trainer, and tables and pictures over its records."""
