"""Experiments with `pdt_optax`: one trainer, configs that are data, tables and pictures over records."""
