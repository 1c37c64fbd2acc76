"""The paper's networks: their sizes, their arithmetic, and that their small members learn."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.data import datasets
from experiments.models import alexnet, simsiam
from experiments.models.alexnet import FCN, AlexNet, FCNet
from experiments.models.resnet import ResNet, resnet14_mini, resnet18, resnet50
from experiments.models.vit import ViT, vit_base, vit_huge, vit_mini
from experiments.training.flops import flops

SHAPE = jax.ShapeDtypeStruct


def shapes(make):
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


def made(make, **settings):
    """A new model; its initial weights in one program instead of one a shape."""
    return nnx.jit(lambda: make(**settings, rngs=nnx.Rngs(0)))()


def parameters(model):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (functools.partial(FCNet, 10, depth=2), 12_585_738),
        (functools.partial(FCNet, 10, depth=4), 25_562_890),
        (functools.partial(FCNet, 10, depth=6), 26_088_202),
        (functools.partial(FCN, 10), 3_918_858),
        (functools.partial(AlexNet, 10), 57_044_810),
        # torchvision's counts of resnet18, resnet50, vit_b_16 and vit_h_14
        (functools.partial(resnet18, 1000), 11_689_512),
        (functools.partial(resnet50, 1000), 25_557_032),
        (functools.partial(ViT, 1000), 86_567_656),
        pytest.param(  # and the pooler
            functools.partial(vit_huge, 1000), 632_045_800 + 1280 * 1281, marks=pytest.mark.slow
        ),
        # the paper's 86.4 M, which is without the classes' own layer
        (functools.partial(vit_base, 1000), 86_389_248 + 769_000),
        (simsiam.SimSiam, 18_516_032),
        (functools.partial(resnet14_mini, 10), 511_514),
        (functools.partial(vit_mini, 10), 126_154),
    ],
)
def test_models_have_the_parameters_of_the_originals(make, expected):
    assert parameters(shapes(make)) == expected


@pytest.mark.parametrize(
    ("make", "giga"),
    [  # torchvision's multiply-adds at 224 x 224; XLA leaves out those on padding, and counts all else.
        # ResNet-50's are in test_dry_run.py.
        (functools.partial(AlexNet, 1000), 0.714),
        (functools.partial(resnet18, 1000), 1.814),
        (functools.partial(ViT, 1000), 17.564),
    ],
)
def test_models_do_the_multiplications_of_the_originals(make, giga):
    graph, state = nnx.split(shapes(make))
    count = flops(lambda state, x: nnx.merge(graph, state)(x), state, SHAPE((1, 224, 224, 3), jnp.float32))
    assert count / 2e9 == pytest.approx(giga, rel=0.08)


SMALL = {
    "fcnet": functools.partial(FCNet, 10, depth=4, pixels=32 * 32 * 3, width=0.125),
    "fcn": functools.partial(FCN, 10, width=0.0625),
    "alexnet": functools.partial(AlexNet, 10, width=0.0625),
    "resnet": functools.partial(resnet14_mini, 10, stages=(1, 1)),
    "vit": functools.partial(vit_mini, 10, depth=2),
}


def products(program):
    """All matrix products and convolutions of a jaxpr, those of inner ones included."""
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for inner in jax.tree.leaves(equation.params):
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("name", SMALL)
def test_weights_and_logits_stay_float32_where_bfloat16_computes(name):
    graph, state = nnx.split(shapes(functools.partial(SMALL[name], dtype=jnp.bfloat16)))
    size = 64 if name == "alexnet" else 32
    program = jax.make_jaxpr(lambda state, x: nnx.merge(graph, state)(x))(
        state, SHAPE((2, size, size, 3), jnp.float32)
    )
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim > 1} == {jnp.dtype("float32")}
    assert program.out_avals[0].dtype == jnp.float32
    low = [equation.invars[0].aval.dtype == jnp.bfloat16 for equation in products(program.jaxpr)]
    # All but AlexNet's adaptive pool and the ResNet's classes.
    assert len(low) - sum(low) == {"alexnet": 2, "resnet": 1}.get(name, 0)


@pytest.mark.parametrize("name", ["fcn", "vit"])
def test_bfloat16_computes_nearly_the_same(name):
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    graph, state = nnx.split(made(SMALL[name]))
    half = nnx.split(shapes(functools.partial(SMALL[name], dtype=jnp.bfloat16)))[0]
    one, other = jax.jit(lambda state, x: (nnx.merge(graph, state)(x), nnx.merge(half, state)(x)))(state, x)
    np.testing.assert_allclose(other, one, atol=0.1 * float(one.std()))


def fit(model, loss, tx, steps):
    """The trained model and the loss at every step; `loss` takes a model and a step's key."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(params, rest, opt_state, key):
        def value(params):
            model = nnx.merge(graph, params, rest, copy=True)
            return loss(model, key), nnx.split(model, nnx.Param, ...)[2]

        (now, rest_after), grads = jax.value_and_grad(value, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), rest_after, opt_state, now

    opt_state, losses = tx.init(params), []
    for key in jax.random.split(jax.random.key(0), steps):
        params, rest, opt_state, now = step(params, rest, opt_state, key)
        losses.append(float(now))
    return nnx.merge(graph, params, rest), losses


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_small_members_learn_digits(name):
    digits = datasets.load("digits").train.first(64)
    images, labels = datasets.prepare(jnp.asarray(digits.inputs), 16), jnp.asarray(digits.targets)
    own = {"resnet": {"stages": (1,)}, "vit": {"image_size": 16, "patch": 4, "depth": 1}}[name]

    def loss(model, key):
        return optax.softmax_cross_entropy_with_integer_labels(model(images, key), labels).mean()

    model, losses = fit(made(SMALL[name], **own), loss, optax.adam(3e-3), 40)
    assert losses[-1] < 0.2 * losses[0]
    # The running statistics have followed: evaluation knows what training learnt.
    assert (nnx.jit(lambda model: model(images))(model).argmax(-1) == labels).mean() > 0.9


def test_a_key_trains_batchnorm_and_none_leaves_it():
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = made(SMALL["resnet"])
    graph, state = nnx.split(model)
    before = jax.tree.leaves(nnx.state(model, nnx.BatchStat))

    @jax.jit
    def statistics(key):
        model = nnx.merge(graph, state, copy=True)
        model(x, key)
        return jax.tree.leaves(nnx.state(model, nnx.BatchStat))

    for old, same, new in zip(before, statistics(None), statistics(jax.random.key(0)), strict=True):
        np.testing.assert_array_equal(same, old)
        assert (new != old).any()


def test_halve_is_reduce_window():
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3))
    expected = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(alexnet.halve(x), expected)


def test_without_positions_a_vit_sees_a_set_of_patches():
    x = jax.random.normal(jax.random.key(0), (2, 4, 8, 32, 3))  # rows of patches
    images = jnp.stack([x, x[:, ::-1]]).reshape(2, 2, 32, 32, 3)
    model = made(SMALL["vit"])
    logits = nnx.jit(lambda model, images: jnp.stack([model(images[0]), model(images[1])]))
    straight, turned = logits(model, images)
    assert jnp.abs(straight - turned).max() > 1e-3
    model.positions[...] = jnp.zeros_like(model.positions[...])
    straight, turned = logits(model, images)
    np.testing.assert_allclose(straight, turned, atol=1e-5)


def test_recomputing_changes_no_gradient():
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    grads = []
    for recompute in (False, True):
        graph, state = nnx.split(made(SMALL["vit"], depth=1, recompute=recompute))
        loss = jax.jit(jax.grad(lambda state, graph=graph: (nnx.merge(graph, state)(x) ** 2).sum()))
        grads.append(loss(state))
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-5)


def test_bad_sizes_are_told():
    with pytest.raises(ValueError, match=r"2, 4 or 6\. Got 3\."):
        FCNet(10, depth=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"`patch` must divide `image_size`.*patch=5, image_size=32"):
        vit_mini(10, patch=5, rngs=nnx.Rngs(0))


def test_no_gradient_reaches_the_other_view():
    p, z = jax.random.normal(jax.random.key(0), (2, 4, 8))
    cosines = np.sum(p * z, 1) / np.linalg.norm(p, axis=1) / np.linalg.norm(z, axis=1)
    np.testing.assert_allclose(jax.jit(simsiam.negative_cosine)(p, z), -cosines, rtol=1e-5)
    to_p, to_z = jax.jit(jax.grad(lambda p, z: simsiam.negative_cosine(p, z).sum(), (0, 1)))(p, z)
    assert jnp.abs(to_p).max() > 0
    assert jnp.abs(to_z).max() == 0


@pytest.mark.slow  # that it is trained and probed is in test_run.py, too
def test_simsiam_learns_to_predict_a_view_without_collapse():
    digits = datasets.load("digits").train.first(384)
    images, labels = datasets.prepare(jnp.asarray(digits.inputs), 8), digits.targets
    backbone = ResNet(None, stages=(1,), bottleneck=False, width=16, rngs=nnx.Rngs(0))
    model = simsiam.SimSiam(backbone, projection=64, bottleneck=16, rngs=nnx.Rngs(1))

    def loss(model, key):
        batch = jax.random.choice(key, images, (64,), replace=False)
        return simsiam.losses(model, batch, key, training=True).mean()

    model, losses = fit(model, loss, optax.sgd(0.2, momentum=0.9), 60)
    assert abs(losses[0]) < 0.1
    assert -1 <= np.mean(losses[-5:]) < -0.2
    features, (z, _) = nnx.jit(lambda model: (model.backbone(images), model(images)))(model)
    # Spread over the sphere, where each coordinate's deviation is 1 / sqrt(64); collapsed it would be 0.
    assert (z / jnp.linalg.norm(z, axis=1, keepdims=True)).std(0).mean() * 8 > 0.5

    features = np.asarray(features)

    def accuracy(labels):
        return simsiam.linear_probe(features[:256], labels[:256], features[256:], labels[256:])

    assert accuracy(labels) > 0.7
    assert accuracy(np.random.default_rng(0).permutation(labels)) < 0.3
