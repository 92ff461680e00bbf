// Rows that never jump: while the pointer or the focus is among them, they keep their order.

/**
 * The order of the rows of a place: `sorted(keys, view)` returns the keys as they are to be shown. While
 * somebody is in the place and looks at the same view (filter, page, sort), rows stay where they are and
 * new ones wait; a button says how many changed places, and `redraw` is called to show them sorted.
 */
export function keptOrder(place, redraw) {
  const notice = document.createElement("button");
  Object.assign(notice, { type: "button", className: "moved", hidden: true });
  place.append(notice);
  let shown = [];
  let seen = null;
  let isAsked = false;
  let wasIn = false;

  /** Whether somebody is here; behind a dialogue, whether somebody was, and comes back. */
  function isIn() {
    if (!document.querySelector("dialog[open]")) wasIn = place.matches(":hover, :has(:focus-visible)");
    return wasIn;
  }

  function sort() {
    isAsked = true;
    redraw();
  }

  function left() {
    setTimeout(() => { if (!notice.hidden && !isIn()) sort(); }); // by then the focus is where it goes
  }

  notice.addEventListener("click", () => {
    sort();
    place.querySelector("a").focus();
  });
  for (const event of ["pointerenter", "focusin"]) place.addEventListener(event, isIn);
  for (const event of ["pointerleave", "focusout"]) place.addEventListener(event, left);

  return function sorted(keys, view) {
    const now = new Map(keys.map((key, at) => [key, at]));
    const kept = shown.filter((key) => now.has(key));
    const isKept = !isAsked && view === seen && kept.length > 0 && isIn();
    const moved = isKept ? keys.length - longestSorted(kept.map((key) => now.get(key))) : 0;
    isAsked = false;
    seen = view;
    shown = isKept ? kept : keys;
    notice.hidden = !moved;
    notice.textContent = `${moved} changed ${moved === 1 ? "place" : "places"}: sort again`;
    return shown;
  };
}

/** How many numbers can stay, at most, when a list is sorted by moving the others. */
function longestSorted(numbers) {
  const ends = []; // the smallest last number of a sorted part, by the length of the part
  for (const number of numbers) {
    let [low, high] = [0, ends.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ends[middle] < number) low = middle + 1;
      else high = middle;
    }
    ends[low] = number;
  }
  return ends.length;
}
