/** What is shown where there is nothing to show: not yet, not at all, or not for this person. */

import { h, useEffect, useState } from "./react.js";

const TITLES = {
  no_answer: "The server does not answer",
  service_unreachable: "The batch service does not answer",
  no_connection: "There is no connection to a batch service",
  service_too_old: "The batch service is older than these pages",
  batch_not_found: "There is no such batch",
  forbidden: "You may not see this",
  401: "You are not logged in",
  403: "You may not see this",
  404: "This is not there",
};
const PASSING = new Set(["no_answer", "service_unreachable"]);

const listeners = new Set();

/** Has a sentence read out by who hears the page, whatever is drawn anew meanwhile. */
export function announce(sentence) {
  for (const listener of listeners) listener(sentence);
}

export function Announcements() {
  const [sentence, setSentence] = useState("");
  useEffect(() => {
    listeners.add(setSentence);
    return () => listeners.delete(setSentence);
  }, []);
  return h("p", { className: "blm-hidden", role: "status" }, sentence);
}

export function Loading({ what }) {
  return h(
    "div",
    { className: "blm-empty", role: "status" },
    h("span", { className: "blm-spinner" }),
    `Loading ${what} …`,
  );
}

export function Empty({ title, children }) {
  return h(
    "div",
    { className: "blm-empty" },
    h("p", { className: "blm-empty-title" }, title),
    children && h("p", null, children),
  );
}

/** A refusal in the place of what was asked for. */
export function Trouble({ error }) {
  return h(
    "div",
    { className: "blm-empty", role: "alert" },
    h("h2", null, titleOf(error)),
    h("p", null, error.message),
    PASSING.has(error.code) && h("p", { className: "blm-muted" }, "It is asked again by itself."),
  );
}

/** The same above what is still shown from before. */
export function StaleNotice({ error }) {
  if (!error) return null;
  return h(
    "p",
    { className: "blm-notice", role: "alert" },
    h("strong", null, `${titleOf(error)}. `),
    "What is below is as it was last known. ",
    error.message,
  );
}

function titleOf(error) {
  return TITLES[error.code] ?? TITLES[error.status] ?? "That did not work";
}
