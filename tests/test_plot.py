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
from pdt_optax import plot
from tests.training import epoch_weights, loss_fn

matplotlib.use("agg")

WINDOW, HORIZON, NOW = 5, 4, 12


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def reports() -> list[pdt_optax.PDTReport]:
    """Two epochs of burn-in, then predictions at every second epoch, of a run with two leaves."""
    tx = pdt_optax.pdt(optax.sgd(0.1), dynamics=pdt_optax.dmd(rank=2), window=4, start=4)
    params: Any = {"a": jnp.array([1.0, 2.0, -1.0]), "b": jnp.arange(6.0).reshape(2, 3)}
    rates = {"a": jnp.array([1.0, 3.0, 5.0]), "b": jnp.linspace(0.5, 4, 6).reshape(2, 3)}
    state, found = tx.init(params), []
    for _ in range(10):
        updates, state = tx.update(jax.tree.map(jnp.multiply, params, rates), state, params)
        params, state, report = tx.end_epoch(optax.apply_updates(params, updates), state)
        found.append(report)
    return found


PREDICTING = [5, 7, 9]  # epochs, counted from 1


def test_importing_the_library_imports_no_matplotlib() -> None:
    code = "import sys, pdt_optax; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; import pdt_optax.plot"
    failed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "pip install 'pdt-optax[plot]'" in failed.stderr


def test_eigenvalues_are_points_in_the_unit_circle(reports) -> None:
    ax = plot.eigenvalues(reports)
    (points,) = ax.collections
    expected = [(e.real, e.imag) for i in PREDICTING for e in reports[i].eigenvalues[:2]]
    np.testing.assert_allclose(points.get_offsets(), expected, rtol=1e-6)
    np.testing.assert_array_equal(points.get_array(), np.repeat(np.array(PREDICTING) + 1, 2))
    (circle,) = ax.patches
    assert circle.get_radius() == 1
    assert circle.get_center() == (0, 0)
    assert ax.get_aspect() == 1
    assert ax.get_xlabel().endswith("(factor per snapshot)")


def test_singular_values_are_filled_up_to_the_rank(reports) -> None:
    ax = plot.singular_values(reports)
    *values, used, cut = ax.lines
    for i, line in enumerate(values):
        np.testing.assert_allclose(line.get_ydata(), [reports[k].singular_values[i] for k in PREDICTING])
    assert len(values) == 3
    np.testing.assert_allclose(
        used.get_ydata(), [s for k in PREDICTING for s in reports[k].singular_values[:2]]
    )
    np.testing.assert_allclose(cut.get_ydata(), [reports[k].singular_values[2] for k in PREDICTING])
    assert (used.get_label(), cut.get_label()) == ("used by the model", "cut")
    assert ax.get_yscale() == "log"


def test_accepted_share_over_time_skips_epochs_without_a_prediction(reports) -> None:
    (line,) = plot.accepted_share(reports).lines
    np.testing.assert_array_equal(line.get_xdata(), np.array(PREDICTING) + 1)
    np.testing.assert_allclose(line.get_ydata(), [reports[k].accepted_share for k in PREDICTING])
    assert 0 < line.get_ydata()[0] <= 1


def test_jumps_that_were_taken_back_are_crossed(reports) -> None:
    taken_back = [*reports[:8], reports[8]._replace(rolled_back=jnp.array(True)), *reports[9:]]
    _, crosses = plot.accepted_share(taken_back).lines
    np.testing.assert_array_equal(crosses.get_xdata(), [8])


def test_accepted_share_per_leaf_is_a_heatmap(reports) -> None:
    ax = plot.accepted_share_per_leaf(reports, ["a", "b"])
    (image,) = ax.images
    expected = np.stack([reports[k].accepted_share_per_leaf for k in PREDICTING], axis=1)
    np.testing.assert_array_equal(image.get_array(), expected)
    assert image.get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["6", "8", "10"]


def test_stacked_reports_draw_the_same(reports) -> None:
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *reports)
    a, b = (plot.accepted_share(r).lines[0].get_xydata() for r in (reports, stacked))
    np.testing.assert_array_equal(a, b)


def test_reports_without_a_prediction_are_an_error(reports) -> None:
    with pytest.raises(ValueError, match=r"none of the reports made a prediction .* Got 4 reports"):
        plot.eigenvalues(reports[:4])
    with pytest.raises(ValueError, match="at least one `PDTReport`"):
        plot.accepted_share([])
    with pytest.raises(ValueError, match=r"axis of epochs in front.*shape \(\)"):
        plot.accepted_share(reports[0])
    with pytest.raises(ValueError, match="Got 1 for 2 leaves"):
        plot.accepted_share_per_leaf(reports, ["a"])


# --- weights ---------------------------------------------------------------------------------------------


def predict(dynamics: Any, accept: Any = None, horizon: int = HORIZON) -> pdt_optax.Prediction:
    run = epoch_weights()
    return pdt_optax.predict_and_mask(
        run[NOW - WINDOW : NOW],
        run[NOW],
        dynamics=dynamics,
        accept=accept or pdt_optax.agree(),
        horizon=horizon,
    )


def test_mask_is_black_where_accepted() -> None:
    prediction = predict(pdt_optax.drift())
    ax = plot.mask(prediction, "dense_1/kernel")
    (image,) = ax.images
    accepted = np.asarray(prediction.mask["dense_1"]["kernel"])
    np.testing.assert_array_equal(image.get_array(), accepted)
    assert image.cmap(image.norm(1.0))[:3] == (0, 0, 0)
    assert f"{accepted.mean():.0%} accepted" in ax.get_title()
    assert plot.mask(prediction, "dense_1/bias").images[0].get_array().shape == (1, 10)
    with pytest.raises(ValueError, match=r"There is no leaf 'dense_9'. The leaves are 'dense_0/bias', "):
        plot.mask(prediction, "dense_9")


def test_mask_of_a_convolution_has_its_last_axis_as_columns() -> None:
    kernels = [{"conv": jnp.arange(24.0).reshape(2, 3, 4) ** 2 * t} for t in (1.0, 2.0, 3.0)]
    prediction = pdt_optax.predict_and_mask(
        kernels[:2], kernels[2], dynamics=pdt_optax.drift(), accept=pdt_optax.agree(), horizon=1
    )
    assert plot.mask(prediction, "conv").images[0].get_array().shape == (6, 4)


@pytest.mark.parametrize("dynamics", [pdt_optax.drift(), pdt_optax.dmd(rank=2)], ids=["current", "past"])
def test_trajectories_end_where_predict_and_mask_puts_the_weights(dynamics) -> None:
    run, leaf, chosen = epoch_weights(), "dense_1/kernel", [3, 77, 500, 901]
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
    everywhere = predict(dynamics, pdt_optax.everything())
    accepted = np.asarray(predict(dynamics).mask["dense_1"]["kernel"]).ravel()[chosen]
    assert accepted.any()
    assert not accepted.all()
    now = np.asarray(run[NOW]["dense_1"]["kernel"]).ravel()[chosen]
    target = np.asarray(everywhere.params["dense_1"]["kernel"]).ravel()[chosen]
    actual, predicted = ax.lines[: len(chosen)], ax.lines[len(chosen) : 2 * len(chosen)]
    for i, (was, will) in enumerate(zip(actual, predicted, strict=True)):
        weights = [np.asarray(w["dense_1"]["kernel"]).ravel()[chosen[i]] for w in run[NOW - WINDOW : NOW + 3]]
        np.testing.assert_array_equal(was.get_xdata(), range(-WINDOW, 3))
        np.testing.assert_allclose(was.get_ydata(), np.array(weights) - now[i], atol=1e-7)
        np.testing.assert_allclose(will.get_ydata()[-1], target[i] - now[i], atol=1e-5)
        start = 0 if dynamics.fit == "current" else -1
        np.testing.assert_array_equal(will.get_xdata(), start + np.arange(HORIZON + 1))
        assert (will.get_linestyle() == "-") == accepted[i]
        assert (will.get_markerfacecolor() != "white") == accepted[i]
    assert "epochs" in ax.get_xlabel()


def test_trajectories_choose_from_the_stillest_to_the_fastest() -> None:
    run = [{"w": jnp.array([3.0, 0.0, 1.0, 2.0]) * t} for t in range(4)]
    given = {"dynamics": pdt_optax.drift(), "accept": pdt_optax.agree(), "horizon": 1, "leaf": "w"}
    ax = plot.trajectories(run[:3], run[3], weights=2, **given)
    assert [float(line.get_ydata()[0]) for line in ax.lines[:2]] == [0, -9]
    with pytest.raises(ValueError, match="flat indices into 'w', which has 4 weights"):
        plot.trajectories(run[:3], run[3], weights=[4], **given)


def oracle_errors(dynamics: Any, horizon: int) -> np.ndarray:
    """The forecast errors by `predict_and_mask` alone, one horizon after the other."""
    run, past = epoch_weights(), dynamics.fit == "past"

    def flat(tree: Any) -> np.ndarray:
        return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

    rows = []
    for newest in range(WINDOW, len(run) - 1):
        now, row = newest + past, []
        for k in range(1, horizon + 1):
            if newest + k >= len(run):
                row.append(np.nan)
                continue
            prediction = pdt_optax.predict_and_mask(
                run[now - WINDOW : now], run[now], dynamics=dynamics, accept=pdt_optax.everything(), horizon=k
            )
            came, start = flat(run[newest + k]), flat(run[newest])
            row.append(np.linalg.norm(flat(prediction.params) - came) / np.linalg.norm(came - start))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("dynamics", [pdt_optax.drift(), pdt_optax.dmd(rank=2)], ids=["current", "past"])
def test_forecast_errors_are_those_of_predict_and_mask(dynamics) -> None:
    errors = plot.forecast_errors(epoch_weights(), dynamics=dynamics, window=WINDOW, horizon=3)
    np.testing.assert_allclose(errors, oracle_errors(dynamics, 3), rtol=1e-3)


def test_forecast_error_of_a_linear_system_is_zero_and_of_noise_is_not() -> None:
    rates = np.array([0.9, 0.5])
    linear = [
        {"w": jnp.asarray(rates**t, jnp.float32), "v": jnp.asarray(rates[::-1] ** t)} for t in range(12)
    ]
    exact = plot.forecast_errors(linear, dynamics=pdt_optax.dmd(rank=2), window=4, horizon=3, leaf="w")
    assert np.nanmax(exact) < 1e-3
    random = np.random.default_rng(0)
    noise = [{"w": jnp.asarray(random.normal(size=200), jnp.float32)} for _ in range(12)]
    assert np.nanmin(plot.forecast_errors(noise, dynamics=pdt_optax.drift(), horizon=4)[:, :1]) > 1


def test_forecast_error_draws_the_median_over_the_run() -> None:
    ax = plot.forecast_error(epoch_weights(), dynamics=pdt_optax.drift(), horizon=3)
    plot.forecast_error(epoch_weights(), dynamics=pdt_optax.dmd(rank=2), horizon=3, label="DMD", ax=ax)
    expected = plot.forecast_errors(epoch_weights(), dynamics=pdt_optax.drift(), horizon=3)
    first, _, second = ax.lines
    np.testing.assert_allclose(first.get_ydata(), np.nanmedian(expected, axis=0))
    assert (first.get_linestyle(), first.get_color()) != (second.get_linestyle(), second.get_color())
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [str(pdt_optax.drift()), "DMD"]
    with pytest.raises(ValueError, match=r"longer than `window \+ horizon`.* Got 9 weights"):
        plot.forecast_error(epoch_weights()[:9], dynamics=pdt_optax.drift(), window=5, horizon=4)


# --- the loss surface ------------------------------------------------------------------------------------


def bowl(w: Any) -> jax.Array:
    return 1 + w["x"] ** 2 + 4 * w["y"] ** 2


def spiral(turns: int = 12) -> list[Any]:
    return [
        {"x": jnp.float32(r * np.cos(r)), "y": jnp.float32(2 * r * np.sin(r)), "steps": jnp.int32(r)}
        for r in np.linspace(3, 0, turns)
    ]


def test_loss_surface_is_the_loss_in_the_plane_and_the_path_lies_on_it() -> None:
    directions = ({"x": np.float32(1), "y": np.float32(0), "steps": 0}, {"x": 0.0, "y": 1.0, "steps": 0})
    directions = jax.tree.map(np.float32, directions)
    ax = plot.loss_surface(bowl, spiral(), directions=directions, points=9, margin=0)
    path = ax.lines[0].get_xydata()
    expected = np.array([(w["x"], w["y"]) for w in spiral()]) - [
        float(spiral()[-1]["x"]),
        float(spiral()[-1]["y"]),
    ]
    np.testing.assert_allclose(path, expected, atol=1e-6)
    (shades,) = ax.collections
    low, high = shades.get_clim()
    corners = [
        1 + x**2 + 4 * y**2
        for x in (path[:, 0].min(), path[:, 0].max())
        for y in (path[:, 1].min(), path[:, 1].max())
    ]
    np.testing.assert_allclose(high, max(corners), rtol=1e-5)
    assert 1 <= low < 2


def test_principal_plane_of_a_flat_run_holds_all_of_it() -> None:
    ax = plot.loss_surface(bowl, {"one": spiral(), "two": spiral()[::2]}, points=5)
    path = np.asarray(ax.lines[0].get_xydata())
    true = np.array([(w["x"], w["y"]) for w in spiral()])

    def distances(x: np.ndarray) -> np.ndarray:
        return np.linalg.norm(x[:, None] - x, axis=-1)

    np.testing.assert_allclose(distances(path), distances(true), atol=1e-5)
    shares = [int(label.split("(")[1].split("%")[0]) for label in (ax.get_xlabel(), ax.get_ylabel())]
    assert sum(shares) == 100
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "two"]
    with pytest.raises(ValueError, match="at least three weights that do not lie on a line"):
        plot.loss_surface(bowl, spiral()[:2])


def test_filter_directions_are_as_long_as_the_filters() -> None:
    params = epoch_weights()[5]
    u, v = plot.filter_directions(params, seed=3)
    for d in (u, v):
        kernel, w = d["dense_0"]["kernel"], np.asarray(params["dense_0"]["kernel"])
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), np.linalg.norm(w, axis=0), rtol=1e-5)
        assert not d["dense_0"]["bias"].any()
    assert abs(np.vdot(u["dense_0"]["kernel"], v["dense_0"]["kernel"])) > 0
    images, labels = jnp.ones((4, 64)), jnp.array([1, 2, 3, 4])
    ax = plot.loss_surface(
        lambda p: loss_fn(p, images, labels), epoch_weights()[:6], directions=(u, v), points=3
    )
    assert "direction 1" in ax.get_xlabel()


def test_everything_is_drawn_on_the_given_axes_and_told_apart_in_grey(reports) -> None:
    _, ax = pyplot.subplots()
    assert plot.accepted_share(reports, ax) is ax
    assert plot.eigenvalues(reports, ax=ax) is ax
    r, g, b = np.array([colors.to_rgb(c) for c, _, _ in plot._LINES]).T
    lightness = 0.2126 * r + 0.7152 * g + 0.0722 * b
    assert len({style for _, style, _ in plot._LINES}) == len({marker for _, _, marker in plot._LINES}) == 4
    assert len({round(float(x), 1) for x in lightness}) >= 3
