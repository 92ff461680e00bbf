// Charts, drawn as SVG. Gaps are gaps: nothing is drawn where nothing was measured.

import { element, put } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function line(values, width, height, low, high, slots = values.length) {
  const step = width / Math.max(slots - 1, 1);
  const range = high - low || 1;
  const from = slots - values.length;
  let path = "";
  let open = false;
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      open = false;
      return;
    }
    const x = (from + index) * step;
    const y = height - ((Math.min(value, high) - low) / range) * height;
    const alone = !open && (values[index + 1] ?? null) === null;
    path += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}${alone ? "h2" : ""}`;
    open = true;
  });
  return path;
}

function ticks(high) {
  const rough = high / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= rough);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, n) => n * step);
}

/**
 * A chart with axes and a readout under the pointer or the arrow keys.
 * `series`: [{ key, name, tone, bars }], drawn as a line, or as bars; `top`: the least upper end, or
 * the fixed one with `fixed`.
 */
export function chart({ title, series, format, when, top, fixed = false }) {
  const height = 150, left = 62, bottom = 22, right = 10;
  let width = 560;
  const plot = shape("g", { transform: `translate(${left} 8)` });
  const axis = shape("g", { class: "axis" });
  const cursor = shape("line", { class: "cursor", y1: 0, y2: height, visibility: "hidden" });
  const svg = shape("svg", { role: "img", tabindex: "0", "aria-label": `${title}: arrow keys read it point by point` }, axis, plot);
  const readout = element("p", { class: "soft small" });
  const legend = element("span", { class: "key", "aria-hidden": "true" });
  if (series.length > 1) {
    for (const one of series) legend.append(element("i", { class: one.tone }, one.name));
  }
  const heading = element("h3", {}, title);
  const table = element("details", { class: "bare" }, element("summary", {}, "As a table"));
  const figure = element("figure", { class: "card pad chart" }, element("figcaption", {}, heading, legend, readout), svg, table);
  let points = [];
  let at = null;

  const hasBars = series.some((one) => one.bars);

  /** Where a point stands; one with a bar in the middle of it. */
  const placeOf = (index) => (hasBars ? ((index + 0.5) / points.length) * width : (index / Math.max(points.length - 1, 1)) * width);

  function bar(value, index, high, tone) {
    const size = (value / high) * height;
    return shape("rect", { class: `bar ${tone}`, x: placeOf(index) - (width / points.length) * 0.35, width: (width / points.length) * 0.7, y: height - size, height: size });
  }

  function shapeOf(one, high) {
    const values = points.map((point) => point[one.key]);
    if (one.bars) return shape("g", { class: "series" }, ...values.flatMap((value, index) => (value ? [bar(value, index, high, one.tone)] : [])));
    return shape("path", { class: `series ${one.tone}`, d: line(values, width, height, 0, high) });
  }

  function show(index) {
    at = points.length ? Math.min(Math.max(index, 0), points.length - 1) : null;
    if (at === null) return;
    const point = points[at];
    const x = placeOf(at);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const shown = series.map((one) => `${series.length > 1 ? `${one.name} ` : ""}${format(point[one.key])}`);
    readout.textContent = `${when(point.at)} · ${shown.join(", ")}`;
  }

  function latest() {
    cursor.setAttribute("visibility", "hidden");
    at = null;
    const last = points.findLast((point) => point[series[0].key] !== null);
    readout.textContent = last ? series.map((one) => format(last[one.key])).join(" / ") : "nothing measured yet";
  }

  function index(event) {
    const box = svg.getBoundingClientRect();
    return Math.round(((event.clientX - box.left - left) / width) * (points.length - (hasBars ? 0 : 1)) - (hasBars ? 0.5 : 0));
  }

  function fit() {
    width = Math.max(120, svg.clientWidth - left - right);
    svg.setAttribute("viewBox", `0 0 ${width + left + right} ${height + bottom + 10}`);
  }

  new ResizeObserver(() => {
    const before = width;
    fit();
    if (width !== before && points.length) drawn.draw(points);
  }).observe(svg);

  svg.addEventListener("pointermove", (event) => show(index(event)));
  svg.addEventListener("pointerleave", latest);
  svg.addEventListener("focus", () => readout.setAttribute("aria-live", "polite"));
  svg.addEventListener("blur", () => {
    readout.removeAttribute("aria-live");
    latest();
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key];
    if (!move) return;
    event.preventDefault();
    show((at ?? points.length) + move);
  });

  const drawn = {
    node: figure,
    rename: (text) => put(heading, text),
    draw(next) {
      points = next;
      fit();
      const seen = series.flatMap((one) => points.map((point) => point[one.key])).filter((v) => v !== null);
      const high = fixed ? top : Math.max(top, ...seen) * 1.1;
      axis.replaceChildren();
      for (const tick of ticks(high)) {
        const y = 8 + height - (tick / high) * height;
        axis.append(
          shape("line", { x1: left, x2: left + width, y1: y, y2: y }),
          shape("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, format(tick)),
        );
      }
      for (const part of width < 460 ? [0, 1] : [0, 0.5, 1]) {
        const point = points[Math.round(part * (points.length - 1))];
        if (!point) continue;
        const anchor = part === 0 ? "start" : part === 1 ? "end" : "middle";
        axis.append(shape("text", { x: left + part * width, y: height + bottom + 4, "text-anchor": anchor }, when(point.at)));
      }
      plot.replaceChildren(
        ...series.map((one) => shapeOf(one, high)),
        cursor,
      );
      const heads = element("tr", {}, element("th", { scope: "col" }, "Time"), ...series.map((one) => element("th", { scope: "col" }, one.name)));
      const rows = points.filter((point) => point[series[0].key] !== null).toReversed().map((point) =>
        element("tr", {}, element("td", { "data-title": "Time" }, when(point.at)), ...series.map((one) => element("td", { "data-title": one.name }, format(point[one.key])))));
      if (!table.open) table.replaceChildren(table.firstChild, element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, as a table` }, element("table", {}, element("thead", {}, heads), element("tbody", {}, ...rows))));
      if (at === null) latest();
      else show(at);
    },
  };
  return drawn;
}
