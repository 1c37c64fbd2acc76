"""Pictures: what is drawn is what the reports and weights say."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pytest
from matplotlib import colors, pyplot

import pdt_optax
import pdt_optax.plot
from pdt_optax.plot._common import LINES
from pdt_optax.plot._surface import _filter_direction
from tests.states import windowed
from tests.training import epoch_weights, loss_fn

matplotlib.use("agg")
plot: Any = pdt_optax.plot  # matplotlib's own types are too wide to be asked for numbers

WINDOW, HORIZON, NOW = 5, 4, 12


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def reports() -> list[Any]:
    """A run with two leaves that predicts after the 0-based epochs 4, 6 and 8."""
    tx = windowed(optax.sgd(0.1), dynamics=pdt_optax.dmd(rank=2), window=4)
    params: Any = {"a": jnp.array([1.0, 2.0, -1.0]), "b": jnp.arange(6.0).reshape(2, 3)}
    rates = {"a": jnp.array([0.9, 0.7, 0.5]), "b": jnp.linspace(0.95, 0.6, 6).reshape(2, 3)}
    state, found = tx.init(params), []
    for _ in range(10):
        params, state, report = tx.end_epoch(jax.tree.map(jnp.multiply, params, rates), state)
        found.append(jax.device_get(report))
    return found


PREDICTING = [4, 6, 8]
NUMBERS = [5, 7, 9]  # epochs as they are drawn, counted from 1


def test_importing_the_library_imports_no_matplotlib() -> None:
    """`pdt_optax.plot` is there all the same: it is loaded when it is first used."""
    code = "import sys, pdt_optax; early = 'matplotlib' in sys.modules; pdt_optax.plot.mask; sys.exit(early)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import pdt_optax; pdt_optax.plot"
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "pip install 'pdt-optax[plot]'" in failed.stderr


def test_colours_are_told_apart_in_grey() -> None:
    lightness = np.array([colors.to_rgb(c) for c, _, _ in LINES]) @ [0.2126, 0.7152, 0.0722]
    assert np.diff(np.sort(lightness)).min() > 0.03
    assert len({style for _, style, _ in LINES}) == len(LINES)
    assert len({marker for _, _, marker in LINES}) == len(LINES)


# --- reports ---------------------------------------------------------------------------------------------


def test_eigenvalues_are_points_in_the_unit_circle(reports) -> None:
    ax = plot.eigenvalues(reports)
    (points,) = ax.collections
    expected = [(e.real, e.imag) for k in PREDICTING for e in reports[k].eigenvalues[:2]]
    np.testing.assert_allclose(points.get_offsets(), expected, rtol=1e-6)
    np.testing.assert_array_equal(points.get_array(), np.repeat(NUMBERS, 2))
    (circle,) = ax.patches
    assert (circle.get_radius(), circle.get_center(), ax.get_aspect()) == (1, (0, 0), 1)


def test_singular_values_are_filled_up_to_the_rank(reports) -> None:
    ax = plot.singular_values(reports)
    *values, used, cut = ax.lines
    expected = np.stack([reports[k].singular_values for k in PREDICTING])
    np.testing.assert_array_equal([line.get_ydata() for line in values], expected.T)
    np.testing.assert_array_equal(used.get_ydata(), expected[:, :2].ravel())
    np.testing.assert_array_equal(cut.get_ydata(), expected[:, 2])
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["used by the model", "cut"]
    assert ax.get_yscale() == "log"
    without = [r._replace(singular_values=np.zeros(3)) for r in reports]
    with pytest.raises(ValueError, match=r"does not need the window's singular values.* Got 3 predictions"):
        plot.singular_values(without)


def test_accepted_share_skips_epochs_without_a_prediction_and_crosses_jumps_taken_back(reports) -> None:
    (line,) = plot.accepted_share(reports).lines
    np.testing.assert_array_equal(line.get_xdata(), NUMBERS)
    np.testing.assert_array_equal(line.get_ydata(), [reports[k].accepted_share for k in PREDICTING])
    assert 0 < line.get_ydata()[0] <= 1
    found_bad = reports[7]._replace(rolled_back=np.array(True))  # the epoch after the jump that is drawn at 7
    _, crosses = plot.accepted_share([*reports[:7], found_bad, *reports[8:]]).lines
    np.testing.assert_array_equal(crosses.get_xdata(), [7])


def test_accepted_share_per_leaf_is_a_heatmap(reports) -> None:
    ax = plot.accepted_share_per_leaf(reports, ["a", "b"])
    (image,) = ax.images
    expected = np.stack([reports[k].accepted_share_per_leaf for k in PREDICTING], axis=1)
    np.testing.assert_array_equal(image.get_array(), expected)
    assert image.get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["5", "7", "9"]


def test_stacked_reports_draw_the_same_on_the_given_axes(reports) -> None:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *reports)
    _, ax = pyplot.subplots()
    assert plot.accepted_share(stacked, ax) is ax
    np.testing.assert_array_equal(
        ax.lines[0].get_xydata(), plot.accepted_share(reports).lines[0].get_xydata()
    )


def test_reports_that_cannot_be_drawn_are_an_error(reports) -> None:
    with pytest.raises(ValueError, match=r"none of the reports made a prediction .* Got 4 reports"):
        plot.eigenvalues(reports[:4])
    with pytest.raises(ValueError, match="at least one `PDTReport`"):
        plot.accepted_share([])
    with pytest.raises(ValueError, match=r"axis of epochs in front.*shape \(\)"):
        plot.accepted_share(reports[0])
    with pytest.raises(ValueError, match="Got 1 for 2 leaves"):
        plot.accepted_share_per_leaf(reports, ["a"])


# --- weights ---------------------------------------------------------------------------------------------


MODELS = pytest.mark.parametrize(
    "dynamics", [pdt_optax.drift(), pdt_optax.dmd(rank=2)], ids=["current", "past"]
)


def predict(dynamics: Any, accept: Any, horizon: int = HORIZON, now: int = NOW) -> Any:
    run = epoch_weights()
    return pdt_optax.predict_and_mask(
        run[now - WINDOW : now], run[now], dynamics=dynamics, accept=accept, horizon=horizon
    )


def test_mask_is_black_where_accepted() -> None:
    prediction = predict(pdt_optax.drift(), pdt_optax.agree())
    ax = plot.mask(prediction, "dense_1/kernel")
    (image,) = ax.images
    accepted = np.asarray(prediction.mask["dense_1"]["kernel"])
    np.testing.assert_array_equal(image.get_array(), accepted)
    assert image.cmap(image.norm(1.0))[:3] == (0, 0, 0)
    assert ax.get_title() == f"dense_1/kernel: {accepted.mean():.0%} accepted"
    with pytest.raises(ValueError, match=r"There is no leaf 'dense_9'. The leaves are 'dense_0/bias', "):
        plot.mask(prediction, "dense_9")


@pytest.mark.parametrize(("shape", "drawn"), [((), (1, 1)), ((10,), (1, 10)), ((2, 3, 4), (6, 4))])
def test_mask_has_the_last_axis_as_columns(shape: Any, drawn: Any) -> None:
    mask = {"w": np.ones(shape, bool)}
    prediction = predict(pdt_optax.drift(), pdt_optax.agree())._replace(mask=mask)
    assert plot.mask(prediction, "w").images[0].get_array().shape == drawn


@MODELS
def test_trajectories_end_where_predict_and_mask_puts_the_weights(dynamics) -> None:
    run, leaf = epoch_weights(), "dense_1/kernel"
    now, target, accepted = (
        np.asarray(tree["dense_1"]["kernel"]).ravel()
        for tree in (
            run[NOW],
            predict(dynamics, pdt_optax.everything()).params,
            predict(dynamics, pdt_optax.agree()).mask,
        )
    )
    chosen = [*np.flatnonzero(accepted)[:2], *np.flatnonzero(~accepted)[:3]]
    ax = plot.trajectories(
        run[NOW - WINDOW : NOW],
        run[NOW],
        dynamics=dynamics,
        accept=pdt_optax.agree(),
        horizon=HORIZON,
        leaf=leaf,
        weights=chosen,
        future=run[NOW + 1 : NOW + 3],
    )
    actual = np.stack([w["dense_1"]["kernel"].ravel()[chosen] for w in run[NOW - WINDOW : NOW + 3]])
    start = 0 if dynamics.fit == "current" else -1
    for i, (was, will) in enumerate(zip(ax.lines[:5], ax.lines[5:10], strict=True)):
        np.testing.assert_array_equal(was.get_xdata(), range(-WINDOW, 3))
        np.testing.assert_allclose(was.get_ydata(), actual[:, i] - now[chosen[i]], atol=1e-7)
        np.testing.assert_array_equal(will.get_xdata(), start + np.arange(HORIZON + 1))
        np.testing.assert_allclose(will.get_ydata()[-1], target[chosen[i]] - now[chosen[i]], atol=1e-5)
        assert (will.get_linestyle() == "-") == (will.get_markerfacecolor() != "white") == (i < 2)
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert legend == ["actual", "predicted, accepted", "predicted, rejected"]


def test_trajectories_choose_from_the_stillest_to_the_fastest() -> None:
    run = [{"w": jnp.array([3.0, 0.0, 1.0, 2.0]) * t} for t in range(4)]
    ax = plot.trajectories(
        run[:3], run[3], weights=2, dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=1, leaf="w"
    )
    assert [float(line.get_ydata()[0]) for line in ax.lines[:2]] == [0, -9]


def oracle_errors(dynamics: Any, horizon: int) -> np.ndarray:
    """The forecast errors at the longest horizon, by `predict_and_mask` alone."""

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

    run, errors = epoch_weights(), []
    for newest in range(WINDOW, len(run) - horizon):
        now = newest + (dynamics.fit == "past")
        predicted = flat(predict(dynamics, pdt_optax.everything(), horizon, now).params)
        came, start = flat(run[newest + horizon]), flat(run[newest])
        errors.append(np.linalg.norm(predicted - came) / np.linalg.norm(came - start))
    return np.array(errors)


@MODELS
def test_forecast_errors_are_those_of_predict_and_mask(dynamics) -> None:
    ax = plot.forecast_error(epoch_weights(), dynamics=dynamics, window=WINDOW, horizon=3)
    expected = oracle_errors(dynamics, 3)
    np.testing.assert_allclose(ax.lines[0].get_ydata()[2], np.median(expected), rtol=1e-3)
    (band,) = ax.collections
    ends = band.get_paths()[0].vertices
    np.testing.assert_allclose(
        (ends[ends[:, 0] == 3].min(0)[1], ends[ends[:, 0] == 3].max(0)[1]),
        np.percentile(expected, [10, 90]),
        rtol=1e-3,
    )


def test_a_linear_system_is_forecast_and_noise_is_not() -> None:
    rates = np.array([0.9, 0.5])
    linear = [{"v": jnp.asarray(rates[::-1] ** t), "w": jnp.asarray(rates**t)} for t in range(12)]
    ax = plot.forecast_error(
        linear, dynamics=pdt_optax.dmd(rank=2), window=4, horizon=3, leaf="w", label="linear"
    )
    random = np.random.default_rng(0)
    noise = [{"w": jnp.asarray(random.normal(size=200), jnp.float32)} for _ in range(12)]
    plot.forecast_error(noise, dynamics=pdt_optax.drift(), horizon=3, ax=ax)
    first, _, second = ax.lines
    assert max(first.get_ydata()) < 1e-3
    assert min(second.get_ydata()) > 1
    assert (first.get_linestyle(), first.get_color()) != (second.get_linestyle(), second.get_color())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "linear",
        "nothing moves",
        str(pdt_optax.drift()),
    ]
    with pytest.raises(ValueError, match=r"longer than `window \+ horizon`.* Got 8 weights"):
        plot.forecast_error(linear[:8], dynamics=pdt_optax.drift(), window=5, horizon=3)


# --- the loss surface ------------------------------------------------------------------------------------


def bowl(w: Any) -> jax.Array:
    return 1 + w["x"] ** 2 + 4 * w["y"] ** 2


def spiral(turns: int = 12) -> list[Any]:
    return [
        {"steps": jnp.int32(r), "x": jnp.float32(r * np.cos(r)), "y": jnp.float32(2 * r * np.sin(r))}
        for r in np.linspace(3, 0, turns)
    ]


def distances(x: Any) -> np.ndarray:
    x = np.asarray(x)
    return np.linalg.norm(x[:, None] - x, axis=-1)


def test_principal_plane_of_a_flat_run_holds_all_of_it() -> None:
    ax = plot.loss_surface(bowl, {"one": spiral(), "two": spiral()[::2]}, points=5)
    true = [(w["x"], w["y"]) for w in spiral()]
    np.testing.assert_allclose(distances(ax.lines[0].get_xydata()), distances(true), atol=1e-5)
    shares = [int(label.split("(")[1].split("%")[0]) for label in (ax.get_xlabel(), ax.get_ylabel())]
    assert sum(shares) == 100
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]
    with pytest.raises(ValueError, match=r"at least three weights that do not lie on a line. Got 2"):
        plot.loss_surface(bowl, spiral()[:2])
    with pytest.raises(ValueError, match=r'`plane` must be "principal" or "random". Got plane=.pca'):
        plot.loss_surface(bowl, spiral(), plane="pca")


def test_the_surface_is_the_loss() -> None:
    """On a run along the axes, whose principal directions are the axes themselves."""
    cross = [{"x": 3.0 * a, "y": 1.0 * b} for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1), (0, 0))]
    cross = [jax.tree.map(jnp.float32, tree) for tree in cross]
    ax = plot.loss_surface(bowl, cross, points=3, margin=0)
    low, high = ax.collections[0].get_clim()
    assert low <= 1
    np.testing.assert_allclose(high, 1 + 3**2 + 4, rtol=0.2)  # at the corners, up to the next contour
    np.testing.assert_allclose(ax.get_xlim(), (-3, 3), atol=1e-6)


def test_random_directions_are_as_long_as_the_filters() -> None:
    params = epoch_weights()[5]
    images, labels = jnp.ones((4, 64)), jnp.array([1, 2, 3, 4])
    drawn = plot.loss_surface(
        lambda p: loss_fn(p, images, labels), epoch_weights()[:6], plane="random", points=3, margin=0
    )
    assert drawn.get_xlim()[0] <= -1 < 1 <= drawn.get_xlim()[1]
    direction = _filter_direction(params, np.random.default_rng(0))
    sizes = [x.size for x in jax.tree.leaves(params)]
    bias, kernel, *_ = np.split(direction, np.cumsum(sizes)[:-1])
    w = params["dense_0"]["kernel"]
    np.testing.assert_allclose(
        np.linalg.norm(kernel.reshape(w.shape), axis=0), np.linalg.norm(w, axis=0), rtol=1e-5
    )
    assert not bias.any()
