"""The paper's largest networks, built and lowered from shapes, and the estimate against a compiled step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import pdt_optax
from experiments.data import imagenet
from experiments.models.resnet import resnet14_mini
from experiments.models.vit import vit_mini
from experiments.training import dry_run
from experiments.training.workloads import MODELS as OF_WORKLOADS

TX = optax.sgd(0.1, momentum=0.9)


MODELS = {
    "small": functools.partial(resnet14_mini, 10, stages=(1,), dtype=jnp.bfloat16),
    "resnet50": OF_WORKLOADS["resnet50"],
    "vit_huge": functools.partial(OF_WORKLOADS["vit_huge"], recompute=True),
}

# Three times torchvision's multiply-adds of a forward pass, ViT-Huge's recomputed layers four.
EXPECTED = {
    "small": (7_962, 0.128),  # less the gradient of its images
    "resnet50": (25_557_032, 3 * 2 * 4.089 * 0.6),
    "vit_huge": (633_685_480, 4 * 2 * 167.295 * 0.6),
}


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet50", "vit_huge"))]
)
def test_the_papers_largest_runs_are_lowered_for_three_devices(name: str) -> None:
    predictor = pdt_optax.Predictor(**pdt_optax.presets.released)
    result = dry_run.dry_run(MODELS[name], TX, predictor, imagenet.spec(600), devices=3)
    parameters, teraflops = EXPECTED[name]
    assert result.parameters == parameters
    assert result.memory.params == 4 * parameters
    assert result.memory.snapshots == 5 * 4 * parameters
    assert result.operations / 1e12 == pytest.approx(teraflops, rel=0.1)
    text = result.step.as_text()
    assert "mhlo.num_partitions = 3" in text
    assert "tensor<600x224x224x3xui8>" in text
    assert "bf16" in text
    # It fits the paper's three cards of 80 GB.
    assert result.device < 80e9
    table = str(result)
    assert f"parameters            {parameters:,}" in table
    assert "uint8[600, 224, 224, 3] over 3 devices" in table
    assert f"{result.operations / 1e12:,.1f} T" in table


@pytest.mark.parametrize(
    "make", [functools.partial(vit_mini, 10, depth=1), functools.partial(resnet14_mini, 10, stages=(1,))]
)
def test_the_estimate_is_near_what_a_compiled_step_takes(make):
    batch = imagenet.spec(256, 32)
    result = dry_run.dry_run(make, TX, pdt_optax.Predictor(), batch)
    graph, params, rest = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), nnx.Param, ...)
    state = dry_run.State(params, jax.eval_shape(TX.init, params), rest)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(dry_run.training_step(graph, optax.with_extra_args_support(TX)), donate_argnums=0)
    memory: Any = step.lower(state, batch, key).compile().memory_analysis()
    taken = memory.temp_size_in_bytes
    assert 0.6 < taken / (result.activations + result.memory.params) < 1.6
