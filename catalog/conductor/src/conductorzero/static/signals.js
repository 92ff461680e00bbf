// Signals to handlers: what is asked before one is sent, and what came of it.

import { element, say } from "./format.js";
import { Refused, request, token } from "./live.js";

const ACTIONS = {
  sleep: ["Sleep", "Resources are let go until the next job."],
  wake: ["Wake", "Resources are opened now."],
  drain: ["Drain", "What runs is finished; no new job is taken until Resume."],
  resume: ["Resume", "Jobs are taken again."],
};

/** Four buttons that signal the handlers that `selected()` names; `done()` is called after each. */
export function signalButtons(place, selected, done = () => {}) {
  const buttons = Object.entries(ACTIONS).map(([action, [name, meaning]]) => {
    const button = element("button", { type: "button", title: meaning, "data-action": action }, name);
    button.addEventListener("click", () => send(action, selected()).then(done));
    return button;
  });
  place.append(...buttons);
}

/** Ask for the token; resolves to true when one was given. One that was kept was refused. */
export function askToken(text) {
  const reason = token.get() ? "That token was refused." : "";
  return ask({ title: "The conductor's token", text, reason, confirm: "Go on", needsToken: true });
}

async function send(action, handlerIds) {
  const [name, meaning] = ACTIONS[action];
  const who = handlerIds.length === 1 ? handlerIds[0] : `${handlerIds.length} handlers`;
  let reason = "";
  for (;;) {
    const needsToken = !token.get();
    const go = await ask({ title: `${name} ${who}?`, text: meaning, reason, confirm: name, needsToken });
    if (!go) return;
    say(`${name}: waiting for ${who}…`);
    try {
      const response = await request("/api/signal", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ action, handler_ids: handlerIds }),
      });
      say(resultText(name, await response.json()));
      return;
    } catch (error) {
      if (!(error instanceof Refused) || error.status !== 401) {
        say(`${name} failed: ${error.message}`);
        return;
      }
      say("");
      token.forget();
      reason = "That token was refused.";
    }
  }
}

function resultText(name, result) {
  const { total, succeeded } = result.summary;
  const failed = Object.entries(result.handlers).filter(([, one]) => !one.ok);
  const some = failed.slice(0, 3).map(([id, one]) => `${id}: ${one.error}`).join("; ");
  const rest = failed.length > 3 ? ` and ${failed.length - 3} more` : "";
  return `${name}: ${succeeded} of ${total} done${failed.length ? `. ${some}${rest}` : ""}`;
}

function ask({ title, text, reason = "", confirm, needsToken }) {
  const field = element("input", { type: "password", id: "token", autocomplete: "off", required: needsToken, minlength: 16 });
  const yes = element("button", { type: "submit", class: "main-act", value: "yes" }, confirm);
  const no = element("button", { type: "button" }, "Cancel");
  const form = element("form", { method: "dialog" }, element("h2", { id: "ask-title" }, title), element("p", {}, text));
  if (reason) form.append(element("p", { class: "refused", role: "alert" }, reason));
  if (needsToken) {
    form.append(element("label", { for: "token" }, "Token"), field,
      element("p", { class: "soft small" }, "It stands in the file that the conductor's log names (dashboard_token in its state folder), and is kept for this tab only."));
  }
  form.append(element("div", { class: "acts" }, no, yes));
  const dialog = element("dialog", { "aria-labelledby": "ask-title" }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    no.addEventListener("click", () => dialog.close(""));
    dialog.addEventListener("close", () => {
      const go = dialog.returnValue === "yes";
      if (go && needsToken) token.set(field.value);
      dialog.remove();
      resolve(go);
    });
    dialog.showModal();
  });
}
