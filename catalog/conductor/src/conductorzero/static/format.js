// How figures are written: short, with their unit; a dash for what is not known.

export const STATES = ["active", "idle", "sleeping", "draining", "unreachable", "unknown"];
const DASH = "–";
const whole = new Intl.NumberFormat("en");

export const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

export const count = (value) => (known(value) ? whole.format(Math.round(value)) : DASH);

export function digits(value) {
  const size = Math.abs(value);
  if (size >= 100) return whole.format(Math.round(value));
  return size >= 10 ? value.toFixed(1) : value.toFixed(size >= 1 || size === 0 ? 1 : 2);
}

export function milliseconds(value) {
  if (!known(value)) return DASH;
  return value >= 1000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`;
}

export function megabytes(value) {
  if (!known(value)) return DASH;
  return value >= 1024 ? `${digits(value / 1024)} GB` : `${digits(value)} MB`;
}

export const percent = (value) => (known(value) ? `${digits(value)} %` : DASH);

export function share(value) {
  if (!known(value)) return DASH;
  const percents = value * 100;
  if (percents === 100 || percents === 0) return `${percents} %`;
  return `${String(Math.floor(percents * 100) / 100)} %`;
}

export function duration(seconds) {
  if (!known(seconds)) return DASH;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function shortDuration(seconds) {
  if (!known(seconds)) return DASH;
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  return s < 86400 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
}

export const since = (iso, now) => duration((Date.parse(now) - Date.parse(iso)) / 1000);

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export const time = (iso) => (iso ? clock.format(new Date(iso)) : DASH);
/** The time of an event, with its day when that is not today. */
export const moment = (iso, now) => (new Date(iso).toDateString() === new Date(now).toDateString() ? time(iso) : dateTime(iso));
export const dateTime = (iso) => (iso ? day.format(new Date(iso)) : DASH);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
