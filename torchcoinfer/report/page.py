"""One self-contained HTML page: no script, no network, prints well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from torchcoinfer.report import content, pictures
from torchcoinfer.report.text import format_bytes
from torchcoinfer.theory.plan import Plan

_STYLE = """
:root { --ink: #1f2937; --soft: #64748b; --line: #e2e8f0; --device: #0f766e; --server: #6366f1;
  --link: #d97706; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .6rem; }
p { margin: .35rem 0; }
.lead { color: var(--soft); margin-bottom: 1.6rem; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.4rem;
  margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .8rem; }
.tile { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.bar { height: 6px; border-radius: 3px; background: var(--line); margin-top: .5rem; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--device); }
.flow { display: flex; align-items: stretch; gap: .6rem; flex-wrap: wrap; }
.flow div { flex: 1 1 11rem; border-radius: 10px; padding: .7rem 1rem; color: #fff; }
.flow .device { background: var(--device); } .flow .server { background: var(--server); }
.flow .link { flex: 2 1 18rem; background: none; color: var(--ink); border: 2px dashed var(--link);
  overflow-wrap: anywhere; font-size: .88rem; }
.flow b { display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { padding: .28rem .7rem .28rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.wrap { white-space: normal; }
.device-row td:first-child { box-shadow: inset 3px 0 var(--device); padding-left: .6rem; }
.server-row td:first-child { box-shadow: inset 3px 0 var(--server); padding-left: .6rem; }
.both-row td:first-child { box-shadow: inset 3px 0 var(--link); padding-left: .6rem; }
img { width: 100%; height: auto; }
figcaption, .note { color: var(--soft); font-size: .85rem; }
figure { margin: 0 0 .8rem; }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""
_CURVES_CAPTION = "What each layer costs the output. The solver picks one point a line, all of them together."
_FLOOR_CAPTION = (
    "Distortion of the weights themselves, in units of 1/lambda. No code of iid Laplacian weights "
    "lies below the solid line; a layer that does may simply not be Laplacian."
)


def render(plan: Plan, details: Mapping[str, Any]) -> str:
    """The page as one string of HTML; everything from outside is escaped.

    Raises:
        MissingExtra: matplotlib is not installed (extra ``report``).
    """
    title = escape(str(details.get("title") or "A compressed and split model"))
    notes = "".join(f"<p>{escape(str(note))}</p>" for note in details.get("notes") or ())
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{escape(_provenance(plan))}</p>',
        _tiles(plan),
        _flow(plan),
        _section("Quality", _table(details.get("quality") or ())),
        _latency(plan, details),
        _section("Output: relative output error", _table(content.output_rows(plan))),
        _section("Weights: in units of the weights", _paragraphs(content.weight_sentences(plan))),
        _curves(details),
        _layers(plan, details),
        _section("Alternatives considered", _table(content.alternative_rows(plan))),
        _section("Front", _table(content.front_rows(plan))),
        _section("Bandwidth", _paragraphs([line for line in [content.bandwidth_sentence(plan)] if line])),
        _section("Notes", notes),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(part for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )


def _provenance(plan: Plan) -> str:
    told = [
        f"{key} {plan.provenance[key]}" for key in ("device", "server", "link") if plan.provenance.get(key)
    ]
    return "; ".join([*told, content.optimality_sentence(plan)])


def _tiles(plan: Plan) -> str:
    tiles = []
    for row in content.resource_rows(plan):
        told = f"{row['used']} of {row['budget']}" if row["budget"] else "no budget given"
        filled = 0.0 if row["share"] is None else 100.0 * min(1.0, row["share"])
        bar = f'<div class="bar"><i style="width:{filled:.1f}%"></i></div>' if row["budget"] else ""
        label = ", ".join(str(part) for part in (row["resource"], row["basis"]) if part)
        tiles.append(
            f'<div class="tile"><span>{escape(label)}</span><b>{escape(row["predicted"])}</b>'
            f"<span>{escape(told)}</span>{bar}</div>"
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _flow(plan: Plan) -> str:
    blocks = []
    for side in ("device", "server"):
        layers = [layer for layer in plan.layers.values() if layer.side in (side, "both")]
        size = format_bytes(sum(layer.packed_bytes for layer in layers))
        told = f"{len(layers)} layers, {size} of packed weights" if layers else "no layer with weights"
        blocks.append(f'<div class="{side}"><b>{side}</b>{told}</div>')
    crossing = "<br>".join(escape(line) for line in content.cut_sentences(plan))
    link = f'<div class="link"><b>link</b>{crossing}</div>'
    return _section("The cut", f'<div class="flow">{blocks[0]}{link}{blocks[1]}</div>')


def _latency(plan: Plan, details: Mapping[str, Any]) -> str:
    parts = [part for part in content.latency_parts(plan, details) if part[1] > 0]
    if not parts:
        return ""
    figure = pictures.latency_split(parts, content.number_of(plan.budget.get("latency")))
    return _section("Where the time goes", _picture(figure, "Predicted latency of one run, part by part."))


def _curves(details: Mapping[str, Any]) -> str:
    curves = details.get("curves") or {}
    if not curves:
        return ""
    shown = _picture(pictures.output_distortion(curves), _CURVES_CAPTION)
    if any(option.get("scaled_l1") for options in curves.values() for option in options):
        shown += _picture(pictures.weight_distortion(curves), _FLOOR_CAPTION)
    return _section("Rate and distortion", shown)


def _layers(plan: Plan, details: Mapping[str, Any]) -> str:
    numel = details.get("weight_numel") or {}
    if not plan.layers:
        return ""
    rows = content.layer_rows(plan, numel)
    picture = _picture(pictures.bits_per_layer(plan, numel), "Bits per layer, colored by side.")
    return _section("Layers", picture + _table(rows, [f"{row['side']}-row" for row in rows]))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def _picture(figure: Any, caption: str) -> str:
    text = escape(caption)
    source = pictures.data_uri(figure)
    return f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _table(rows: Sequence[Mapping[str, Any]], row_classes: Sequence[str] | None = None) -> str:
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td{_wrap(row.get(name))}>{_cell(row.get(name))}</td>" for name in names)
        mark = f' class="{row_classes[index]}"' if row_classes else ""
        lines.append(f"<tr{mark}>{cells}</tr>")
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    return "–" if value is None else escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _wrap(value: Any) -> str:
    return ' class="wrap"' if len(str(value)) > 40 else ""
