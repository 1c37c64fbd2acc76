"""A report as one HTML page, complete in itself: pictures are part of it."""

import base64
import html
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pdt_optax.inspect import _tuned
from pdt_optax.inspect._measure import MODELS, settled
from pdt_optax.inspect._tables import modes_of, names, tables

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
except ImportError as e:
    raise ImportError(
        "The pictures of a report need matplotlib: pip install 'pdt-optax[inspect]', in a checkout '.[inspect]'."
    ) from e
from pdt_optax import plot
from pdt_optax.plot._common import BLUE, GREY, LINES, VERMILION, colorbar

if TYPE_CHECKING:
    from pdt_optax.inspect._report import Report

Draw = Callable[["Report", Any], None]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
.verdict { border-left: 6px solid #0072B2; padding: .5rem 1rem; background: #eef5fa; }
.note { border-left: 6px solid #D55E00; padding: .2rem 1rem; background: #fdf1e8; }
img { max-width: 100%; } figure { margin: 1.5rem 0; } figcaption, .reading { color: #555; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, th:last-child.text, td:last-child.text { text-align: left; }
.wide { overflow-x: auto; }
"""


def page(report: "Report") -> str:
    """The whole page."""
    told = html.escape
    parts = [
        f"<h1>Would PDT help this run?</h1><p>{told(report.source)}: {report.span}.</p>",
        *(f'<p class="note">{told(note)}</p>' for note in report.notes),
        f'<div class="verdict"><p><b>{told(report.verdict)}</b></p><p>{told(report.advice)}</p></div>',
    ]
    for draw, shape in _pictures(report):
        figure = Figure(figsize=shape, layout="constrained")
        draw(report, figure.subplots())
        parts.append(_figure(figure, draw.__doc__ or ""))
    for table in tables(report):
        head, *rows = ("".join(f"<td>{told(cell)}</td>" for cell in row) for row in table.rows)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        parts.append(
            f'<h2>{told(table.title)}</h2><p class="reading">{told(table.reading)}</p><div class="wide"><table>'
            f"<thead><tr>{head.replace('td>', 'th>')}</tr></thead><tbody>{body}</tbody></table></div>"
        )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>Would PDT help this run?</title><style>{_STYLE}</style>'
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def _figure(figure: Figure, caption: str) -> str:
    """A picture with its caption; as an image, so that the names within it stay its own."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    data = base64.b64encode(drawn.getvalue()).decode()
    text = html.escape(" ".join(caption.split()))
    source = f"data:image/svg+xml;base64,{data}"
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _pictures(report: "Report") -> list[tuple[Draw, tuple[float, float]]]:
    found: list[tuple[Draw, tuple[float, float]]] = []
    if report.expected is not None:
        found.append((worth, (8, 4.2)))
    found += [
        (persistence, (8, 3.6)),
        (layers, (8, 1.6 + 0.28 * min(len(report.paths), 20))),
        (cosine, (8, 3.6)),
    ]
    if any(np.isfinite(of).any() for of in report.forecast_errors.values()):
        found.append((forecasts, (8, 3.6)))
    if report.modes is not None:
        found.append((modes, (8, 3.6)))
    return found


def worth(report: "Report", ax: Any) -> None:
    """Each dot is a tuned task: how well plain training keeps its direction, and how many times its epochs plain
    training would need to end where the default ends. The blue band holds 95 of 100 tasks like them."""
    pairs, here = _tuned.pairs(), settled(report.reports.alignment)
    known = [pair.alignment for pair in pairs]
    line = np.linspace(min(known), max(known), 50)
    low, middle, high = np.array([[x.low, x.value, x.high] for x in map(_tuned.expected, line)]).T
    ax.fill_between(line, low, high, color=BLUE, alpha=0.15, lw=0)
    ax.plot(line, middle, color=BLUE, lw=1)
    ax.plot(known, [pair.effective for pair in pairs], "o", color="black", ms=5, label="tuned tasks")
    e = report.expected
    assert e is not None
    told = "is beyond what tuned tasks can tell"
    if np.isfinite(e.value):
        told = f"is worth about {e.value:.2f} times its epochs"
        reach = [[e.value - e.low], [e.high - e.value]]
        ax.errorbar(
            [here], [e.value], reach, fmt="D", ms=9, color=VERMILION, capsize=5, lw=2, label="this run"
        )
    else:
        ax.axvline(here, color=VERMILION, lw=2, label="this run")
    ax.axhline(1, color=GREY, lw=1)
    ax.set(
        title=f"This run {told}", xlabel="mean cosine of the path", ylabel="times the epochs", yscale="log"
    )
    ticks = [t for t in (0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4) if min(low) <= t <= max(high)]
    ax.set_yticks(ticks, [f"{t:g}" for t in ticks])
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="upper left")


def _step_axis(report: "Report", ax: Any, offset: int = 1) -> None:
    """Names positions along the horizontal axis, which count motions from `offset`, by their steps."""
    steps = report.steps

    def name(x: float, _: Any) -> str:
        i = round(x) + 1 - offset
        return str(steps[i]) if abs(x - round(x)) < 1e-6 and 0 <= i < len(steps) else ""

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    ax.xaxis.set_major_formatter(FuncFormatter(name))
    ax.set_xlabel("step")


def persistence(report: "Report", ax: Any) -> None:
    """How much of its past mean motion the optimizer goes on doing by itself. Above 0 there is something to predict."""
    plot.persistence(report.reports, ax)
    ax.set_title("Above 0 the path goes on")
    _step_axis(report, ax)


def layers(report: "Report", ax: Any) -> None:
    """The same for each layer: blue goes on, red turns back, white does neither."""
    rows = np.asarray(report.reports.persistence_per_leaf, float)[1:].T
    image = ax.imshow(rows, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    shown = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), 20)).round().astype(int))
    leaves = names(report.paths)
    ax.set_yticks(shown, [leaves[i] for i in shown])
    colorbar(ax, image, "persistence")
    ax.set_title("Blue layers go on, red layers turn back")
    _step_axis(report, ax, offset=-1)


def cosine(report: "Report", ax: Any) -> None:
    """Whether the optimizer keeps its direction: 1 is straight on, 0 at random. It is this that the default's gain
    follows, which says how much of the mean motion is added. While that is delivered, the cosine is lower."""
    motions, found = np.arange(1, len(report.steps)), np.asarray(report.reports.alignment)
    found = np.where(found != 0, found, np.nan)  # not known of the first motion
    ax.plot(motions, found, "o-", ms=4, color=BLUE, label="cosine with the past mean motion")
    ax.axhline(0.15, color=VERMILION, ls="--", lw=1, label="above: the gain grows")
    ax.axhline(0, color="black", lw=0.8)
    ax.set(
        title=f"Above the dashed line the gain grows: here to {np.max(report.gain):.1f}",
        ylabel="cosine",
        ylim=(min(-0.3, np.nanmin(found) - 0.05), 1.02),
    )
    ax.legend(loc="lower left")
    _step_axis(report, ax)


def forecasts(report: "Report", ax: Any) -> None:
    """How far a forecast of the next step was from what came, over how far the weights moved. At 1 it is as good as
    a forecast that nothing moves; errors above 4 are drawn at 4. A nearer forecast does not make the better rule: it may just predict less."""
    for model, (color, style, marker) in zip(MODELS, LINES, strict=False):
        if model in report.forecast_errors:
            of = np.minimum(report.forecast_errors[model], 4)
            ax.plot(np.arange(1, len(of) + 1), of, style, marker=marker, ms=4, color=color, label=model)
    ax.axhline(1, color=GREY, lw=1, label="nothing moves")
    top = np.nanmax([np.nanmax(np.minimum(of, 4), initial=1) for of in report.forecast_errors.values()])
    ax.set(
        title="Below 1 the next step can be foreseen", ylabel="error / distance moved", ylim=(0, 1.05 * top)
    )
    ax.legend()
    _step_axis(report, ax)


def modes(report: "Report", ax: Any) -> None:
    """The modes of the last steps, by how much of the motion each is; the colours say in which layers it lies."""
    assert report.modes is not None
    found = [mode for mode in modes_of(report.modes) if mode.moves >= 0.005]
    leaves = list(dict.fromkeys(leaf for mode in found for leaf in [*mode.leaves][:3]))[:8]
    colors = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
    labels = []
    for row, mode in enumerate(found):
        left = 0.0
        for leaf, color in zip([*leaves, "other"], [*colors[: len(leaves)], "0.8"], strict=True):
            share = mode.leaves.get(leaf, 0.0) if leaf != "other" else max(0.0, 1 - left / mode.moves)
            ax.barh(
                row,
                share * mode.moves,
                left=left,
                color=color,
                edgecolor="white",
                lw=0.5,
                label=leaf if row == 0 else None,
            )
            left += share * mode.moves
        turns = f"\nturns in {mode.period:.1f} steps" if np.isfinite(mode.period) else ""
        labels.append(f"x {mode.growth:.2f} a step{turns}")
    ax.set_yticks(range(len(found)), labels)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    ax.set(title="Which layers move, and how", xlabel="share of the motion")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
