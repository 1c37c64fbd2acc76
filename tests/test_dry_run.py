"""The paper's largest networks, built and lowered from shapes, and the estimate against a compiled step."""

from typing import Any

import jax
import pytest

from experiments.data import datasets
from experiments.paper.setups import setups
from experiments.training import dry_run
from experiments.training.arms import preset
from experiments.training.devices import ONE_DEVICE
from experiments.training.trainer import Config, _program
from experiments.training.workloads import ImageNet


def config(model: str, batch_size: int, image_size: int, accumulate: int = 1, **size: Any) -> Config:
    workload = ImageNet(
        workload=model,
        data=datasets.STREAMED,
        examples=4096,
        validation_examples=8,
        batch_size=batch_size,
        accumulate=accumulate,
        image_size=image_size,
        size=tuple((size | ({"image_size": image_size} if model == "vit_base" else {})).items()),
    )
    return Config(workload, preset("released"), "momentum", 0.1, "cosine", 90, seed=0)


VIT = {"patch": 8, "features": 40, "depth": 2, "heads": 2}
CONFIGS = {
    "small": config("resnet50", 600, 224, stages=(1,), dtype="bfloat16"),
    "resnet50": setups("paper")["resnet50"].config(preset("released"), 0),
    "vit_huge": setups("paper")["vit-huge"].config(preset("released"), 0),
}

# Three times torchvision's multiply-adds of a forward pass, ViT-Huge's recomputed layers four.
EXPECTED = {
    "small": (
        341_544,
        6e-10 * (4 * 147 * 64 * 112**2 + 6 * 18 * 64**2 * 56**2),
    ),  # less the gradient of its images
    "resnet50": (25_557_032, 3 * 2 * 4.089 * 0.6),
    "vit_huge": (633_685_480, 4 * 2 * 167.295 * 0.6),
}


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet50", "vit_huge"))]
)
def test_the_papers_largest_runs_are_lowered_for_three_devices(name: str) -> None:
    result = dry_run.dry_run(CONFIGS[name], dry_run.abstract({"data": 3}))
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
    "of", [config("vit_base", 256, 32, **VIT), config("resnet50", 256, 32, width=8, stages=(1, 1))]
)
def test_the_estimate_is_near_what_a_compiled_step_takes(of: Config) -> None:
    result = dry_run.dry_run(of)
    program, key = _program(of.program), jax.eval_shape(lambda: jax.random.key(0))
    state: Any = jax.eval_shape(program.init, key)
    step: Any = program.step
    assert isinstance(of.workload, ImageNet)
    compiled = step.lower(state._replace(kept=None), *of.workload.spec(256), None, key).compile()
    taken = compiled.memory_analysis().temp_size_in_bytes
    assert 0.6 < taken / (result.activations + result.memory.params) < 1.6


def test_three_devices_hold_a_third_of_the_weights_each_though_nothing_in_them_is_divisible() -> None:
    of = config("vit_base", 96, 32, **VIT)
    alone = dry_run.dry_run(of, ONE_DEVICE)
    split, together = (dry_run.dry_run(of, dry_run.abstract({axis: 3})) for axis in ("fsdp", "data"))
    assert together.memory == alone.memory
    # Vectors are whole on each, and what is padded is a little more.
    for name in ("params", "optimizer", "snapshots"):
        assert 1 / 3 < getattr(split.memory, name) / getattr(alone.memory, name) < 0.37
    assert split.parameters == alone.parameters
    assert split.activations == pytest.approx(alone.activations / 3, rel=1e-3)


def test_a_part_of_a_batch_keeps_a_part_of_the_activations() -> None:
    whole, parts = (dry_run.dry_run(config("vit_base", 96, 32, n, **VIT)) for n in (1, 4))
    assert parts.activations == pytest.approx(whole.activations / 4, rel=0.05)
    assert parts.memory == whole.memory
