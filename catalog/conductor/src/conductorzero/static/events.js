// What changed, grouped: the same news of one or several handlers is one line.

import { element, handlerLink, mark, moment, things, zoned } from "./format.js";

const NAMED = 3;
const LOOKS = { trouble: "fail", failure: "fail", over: "ok", restarted: "run", joined: "off", left: "off" };

/** Whether an event is the coming and going of work, and no news of the fleet. */
export const routine = ({ kind, text }) => kind === "state" && !/unreachable|draining|unknown/.test(text);

function wordsOf({ kind, text, state }) {
  if (kind === "failure") return ["fail", "failed", text];
  if (kind === "trouble" || kind === "over") {
    const [word, ...why] = text.split(": ");
    return [LOOKS[kind], word, why.join(": ")];
  }
  if (kind !== "state") return [LOOKS[kind] ?? "off", kind, text === kind ? "" : text];
  if (state === "unreachable") return ["gone", "no answer", ""];
  if (/^(unreachable|unknown) /.test(text)) return ["ok", text.startsWith("unknown") ? "answers" : "answers again", ""];
  return [state === "draining" ? "rest" : "ok", state, text];
}

/** Events, oldest first, as list items, newest first; `names`: with the handlers that they are of. */
export function eventItems(events, now, { names = true } = {}) {
  const groups = new Map();
  for (const event of events.filter((one) => !routine(one)).toReversed()) {
    const key = wordsOf(event).join(" ").replace(/\d+/g, "#");
    const group = groups.get(key) ?? groups.set(key, { last: event, ids: new Set(), count: 0 }).get(key);
    group.ids.add(event.handler_id);
    group.first = event;
    group.count += 1;
  }
  return [...groups.values()].map(({ last, first, ids, count }) => {
    const [tone, word, text] = wordsOf(last);
    const shown = [...ids].slice(0, NAMED).flatMap((id, at) => (at ? [", ", handlerLink(id)] : [" ", handlerLink(id)]));
    const more = ids.size > NAMED ? ` and ${ids.size - NAMED} more` : "";
    const often = count > ids.size ? `, ${things(count, "time")} since ${moment(first.at, now)}` : "";
    return element("li", {}, element("time", { datetime: last.at }, zoned(last.at, now)),
      element("span", {}, mark(tone, word), ...(names ? [...shown, more] : []), text && (ids.size === 1 || last.kind !== "joined") ? ` ${text}` : "", often));
  });
}
