// What is wrong: what, since when, why in the machine's own words, and the fix with its command.

import { element, handlerLink, put, putMark, replace, runPath, since, things, zoned } from "./format.js";

/** What keeps uploads where they are; all others are no matter of what waits. */
const HOLDING = new Set(["paused", "fault", "old_backlog"]);

/** Texts with `code` in it, as nodes. */
const withCode = (text) => text.split("`").map((part, at) => (at % 2 ? element("code", {}, part) : part));

function newItem() {
  const word = element("span", { class: "state" });
  const age = element("span", { class: "since" });
  const title = element("h3");
  const why = element("p", { class: "why" });
  const fix = element("span");
  const command = element("code");
  const copy = element("button", { type: "button" }, "Copy");
  const act = element("div", { class: "acts" });
  const node = element("li", {}, element("div", {}, word, age), element("div", {}, title, why,
    element("div", { class: "do" }, element("b", {}, "Fix"), " ", fix, " ", element("span", { class: "cmd" }, command, copy))), act);
  return {
    node,
    draw(one, at, names) {
      node.className = `trouble ${one.tone}`;
      putMark(word, one.tone, one.words);
      replace(age, ...(one.since ? [`for ${since(one.since, at)}`, element("br"), `since ${zoned(one.since, at)}`] : []));
      replace(title, ...(names ? [...who(one), one.title] : [one.title[0].toUpperCase() + one.title.slice(1)]));
      const waits = HOLDING.has(one.cause) && one.uploads ? ` ${things(one.uploads, "upload")} with ${things(one.rows, "row")} ${one.uploads === 1 ? "waits" : "wait"} there; nothing is lost.` : "";
      const next = one.next_try_at && Date.parse(one.next_try_at) > Date.parse(at) ? ` It tries again in ${since(at, one.next_try_at)}, at ${zoned(one.next_try_at, at)}.` : "";
      replace(why, element("code", {}, one.why), `${one.why.endsWith(".") ? "" : "."}${waits}${next}`);
      replace(fix, ...withCode(one.fix));
      put(command, one.command);
      copy.setAttribute("aria-label", `Copy: ${one.command}`);
      const run = one.run_id && one.handlers === 1;
      replace(act, ...(run ? [element("a", { class: "button", href: runPath(one.handler_ids[0], one.run_id) }, "Open the run")] : []),
        ...(one.handlers > 1 ? [element("a", { class: "button", href: `/?cause=${one.cause}#handlers` }, `Show all ${one.handlers}`)] : []));
    },
  };
}

function who({ cause, handlers, handler_ids: ids }) {
  const links = ids.flatMap((id, at) => (at ? [", ", handlerLink(id)] : [handlerLink(id)]));
  if (handlers === 1) return [...links, ": "];
  const more = handlers > ids.length ? [` and ${handlers - ids.length} more`] : [];
  return [`${handlers} ${cause === "instance_away" ? "instances" : "handlers"} (`, ...links, ...more, "): "];
}

/** A list of troubles that is patched in place; `names`: with the handlers that they are of. */
export function troubleList(place, { names = true } = {}) {
  const items = new Map();
  return (troubles, at) => {
    const kept = new Set();
    const nodes = troubles.map((one) => {
      const key = `${one.cause} ${one.handler_ids[0]}`;
      kept.add(key);
      if (!items.has(key)) items.set(key, newItem());
      items.get(key).draw(one, at, names);
      return items.get(key).node;
    });
    for (const key of items.keys()) if (!kept.has(key)) items.delete(key);
    if (nodes.length !== place.children.length || nodes.some((node, index) => place.children[index] !== node)) place.replaceChildren(...nodes);
  };
}
