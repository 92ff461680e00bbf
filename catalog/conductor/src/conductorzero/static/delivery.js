// Charts of what was delivered and what waits, of one handler or of all, by the hour or by the day.

import { chart } from "./chart.js";
import { count, element, zone } from "./format.js";
import { read } from "./live.js";

const HOUR_S = 3600;
const DAY_S = 86_400;
const SPANS = { "24h": ["24 hours", DAY_S, "an hour"], "14d": ["14 days", 14 * DAY_S, "a day"] };
const EVERY_MS = 30_000;

const hours = new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit" });
const days = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short" });

/** The points of hours as points of the reader's own days. */
function byDay(points) {
  const found = new Map();
  for (const point of points) {
    const day = new Date(point.at * 1000).setHours(0, 0, 0, 0) / 1000;
    const one = found.get(day) ?? { delivered: null, uploads_waiting_max: null };
    found.set(day, {
      at: day,
      delivered: point.delivered === null ? one.delivered : one.delivered + point.delivered,
      uploads_waiting_max: point.delivered === null ? one.uploads_waiting_max : Math.max(one.uploads_waiting_max, point.uploads_waiting_max),
    });
  }
  return [...found.values()];
}

/** Two charts in `place`, and buttons for their span in `buttons`; `path`: where the figures are. */
export function deliveryCharts({ path, place, buttons, onPoints = () => {} }) {
  const query = new URLSearchParams(location.search);
  let span = query.get("span") in SPANS ? query.get("span") : "24h";
  let askedAt = 0;
  const when = (at) => `${(span === "14d" ? days : hours).format(new Date(at * 1000))}${span === "14d" ? "" : ` ${zone(at * 1000)}`}`;
  const rows = chart({ title: "Rows delivered", format: count, when, top: 10, series: [{ key: "delivered", name: "rows", tone: "ok", bars: true }] });
  const waiting = chart({ title: "Uploads waiting", format: count, when, top: 4, series: [{ key: "uploads_waiting_max", name: "uploads at most", tone: "wait" }] });
  place.append(rows.node, waiting.node);

  async function refresh({ now = false } = {}) {
    if (!now && Date.now() - askedAt < EVERY_MS) return;
    askedAt = Date.now();
    const [, window_s, each] = SPANS[span];
    rows.rename(`Rows delivered ${each}`);
    const { points } = await read(`${path}?window_s=${window_s}&step_s=${HOUR_S}`);
    if (span === "24h") onPoints(points);
    const shown = span === "14d" ? byDay(points) : points;
    rows.draw(shown);
    waiting.draw(shown);
  }

  for (const [name, [title]] of Object.entries(SPANS)) {
    const button = element("button", { type: "button", class: "chip", "aria-pressed": String(name === span) }, title);
    button.addEventListener("click", () => {
      span = name;
      for (const other of buttons.children) other.setAttribute("aria-pressed", String(other === button));
      const next = new URLSearchParams(location.search);
      if (name === "24h") next.delete("span");
      else next.set("span", name);
      history.replaceState(null, "", (next.size ? `?${next}` : location.pathname) + location.hash);
      refresh({ now: true });
    });
    buttons.append(button);
  }
  return refresh;
}

/** The rows that were delivered since the reader's midnight. */
export function deliveredToday(points) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  return points.filter(({ at }) => at >= midnight).reduce((sum, { delivered }) => sum + (delivered ?? 0), 0);
}
