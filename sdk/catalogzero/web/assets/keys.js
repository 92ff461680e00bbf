// The keyboard: `/` filter, `j` `k` rows, Enter opens, `n` next trouble, `r` run now, `?` lists them.
// Rows are the children of a `data-rows`; `r` presses a row's button that has it as `aria-keyshortcuts`.

const ROWS = "[data-rows] > [role='row']";
const RUN = "[aria-keyshortcuts='r']";
const KEYS = [
  [["/"], "Filter"], [["j", "k"], "Next row, row before"], [["Enter"], "Open the row"], [["n"], "Next trouble"], [["r"], "Run the row's schedule now; asks first"],
  [["Esc"], "Close, or empty the filter"], [["?"], "This list"],
];

function make(name, attributes, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

const all = (selector) => [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility());
const row = () => document.activeElement.closest(ROWS);

function focus(one) {
  if (!one) return;
  if (!one.hasAttribute("tabindex")) one.tabIndex = -1;
  one.scrollIntoView({ block: "nearest" });
  one.focus({ preventScroll: true }); // after it: a table that draws only rows in sight draws on focus
}

/** The row after or before the focused one; without such, the first in sight. */
function step(by) {
  const rows = all(ROWS);
  const here = rows.indexOf(row());
  focus(here < 0 ? rows.find((one) => one.getBoundingClientRect().top >= 0) ?? rows[0] : rows[here + by]);
}

/** The next of the troubles, which are listed or are rows; after the last comes the first. */
function nextTrouble() {
  const listed = all(".trouble");
  const troubles = listed.length ? listed : all(`${ROWS}.tinted`);
  const here = document.activeElement.closest(".trouble, .tinted");
  focus(troubles[troubles.indexOf(here) + 1] ?? troubles[0]);
}

/** A dialogue that is gone when it is closed; what opened it has the focus again. */
function dialogue(title, body, ...buttons) {
  const acts = make("p", { className: "acts gap" }, ...buttons.map(([words, value, look]) => make("button", { value, className: look ?? "" }, words)));
  const made = make("dialog", { className: "dialog", ariaLabel: title }, make("form", { method: "dialog" }, make("h2", {}, title), ...body, acts));
  document.body.append(made);
  made.showModal();
  return new Promise((closed) => {
    made.addEventListener("close", () => {
      made.remove();
      closed(made.returnValue);
    });
  });
}

function listKeys() {
  const here = KEYS.filter(([[key]]) => key !== "r" || document.querySelector(RUN));
  const list = here.flatMap(([keys, words]) => [make("dt", {}, ...keys.flatMap((key) => [make("kbd", {}, key), " "])), make("dd", {}, words)]);
  return dialogue("Keyboard", [make("dl", { className: "pairs gap" }, ...list)], ["Close", ""]);
}

async function runNow() {
  const button = row()?.querySelector(RUN);
  if (button && (await dialogue(`${button.ariaLabel}?`, [], ["Run it", "yes", "main-act"], ["Cancel", ""])) === "yes") button.click();
}

const ACTS = {
  "/": () => document.querySelector("input[type='search']").focus(), j: () => step(1), k: () => step(-1), n: nextTrouble, r: runNow, "?": listKeys,
};

addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (target.matches("input:not([type='checkbox']), select, textarea, [contenteditable]")) {
    if (key !== "Escape" || target.type !== "search" || !target.value) return;
    target.value = "";
    target.dispatchEvent(new Event("input", { bubbles: true }));
  } else if (key === "Enter" && target.matches(ROWS)) {
    target.querySelector("a").click();
  } else if (ACTS[key]) {
    ACTS[key]();
  } else {
    return;
  }
  event.preventDefault();
});

const button = make("button", { type: "button", className: "quiet", ariaLabel: "Keyboard", ariaHasPopup: "dialog" }, "?");
button.addEventListener("click", listKeys);
document.getElementById("theme").before(button);
