/** The pages without Airflow: brings React's API along, asks for a token, and then shows the app. */

import * as React from "./preact/preact.js";
import * as ReactDOM from "./preact/preact-dom.js";

// What Airflow gives its plugins, for the modules that are loaded below.
globalThis.React = React;
globalThis.ReactDOM = ReactDOM;

const { createElement: h, useEffect, useId, useRef, useState } = React;
const HOST = new URL("../", import.meta.url);
/** As service.js says it, which cannot be loaded before the globals above are set. */
const LOGGED_OUT = "batch-llm-logged-out";

/** Gives the response of a call of this host, or null where nobody answered. */
async function asked(path, { method = "GET", body } = {}) {
  const headers = { Accept: "application/json", "X-Batch-LLM-Page": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = { method, headers, credentials: "same-origin", body: body && JSON.stringify(body) };
  return fetch(new URL(path, HOST), sent).catch(() => null);
}

async function whyNot(response) {
  if (response === null) return "The service does not answer. Is it running? Try again.";
  const answer = await response.json().catch(() => null);
  return answer?.error?.message ?? `The service answered ${response.status}. Try again.`;
}

/** The app and who is logged in, or an error in a sentence; null where nobody is logged in. */
async function opened() {
  const [response, module] = await Promise.all([
    asked("api/v1/whoami"),
    import("./app.js").catch((error) => ({ error })),
  ]);
  if (response?.status === 401) return null;
  if (!response?.ok) return { error: await whyNot(response) };
  if (module.error) return { error: `The page cannot be loaded: ${module.error.message}` };
  return { App: module.App, user: await response.json() };
}

function Standalone({ session }) {
  const [state, setState] = useState({ session });
  const open = async () => {
    const found = await opened();
    setState(found === null ? { session: "none", ended: true } : { session: "open", ...found });
  };
  const logOut = async () => {
    const response = await asked("logout", { method: "POST" });
    setState(response?.ok ? { session: "none" } : { session: "open", error: await whyNot(response) });
  };
  useEffect(() => {
    if (session === "open") open();
    const ended = () => setState({ session: "none", ended: true });
    addEventListener(LOGGED_OUT, ended);
    return () => removeEventListener(LOGGED_OUT, ended);
  }, []);
  if (state.session === "none") return h(Login, { ended: state.ended, onLogin: open });
  if (state.error) return h(Trouble, { error: state.error, onAgain: open });
  if (state.App)
    return h(state.App, { host: "standalone", header: h(Session, { user: state.user, onLogOut: logOut }) });
  return h(Frame, null, h("p", { className: "blm-muted", role: "status" }, "Loading …"));
}

function Frame({ children }) {
  return h(
    "main",
    { className: "blm blm-standalone" },
    h("div", { className: "blm-login" }, h("h1", null, "LLM batches"), children),
  );
}

function Session({ user, onLogOut }) {
  return h(
    "div",
    { className: "blm-session" },
    h("span", { className: "blm-muted" }, `Token ${user.name}, team ${user.team}`),
    h("button", { className: "blm-button", type: "button", onClick: onLogOut }, "Log out"),
  );
}

function Trouble({ error, onAgain }) {
  return h(
    Frame,
    null,
    h("p", { className: "blm-error", role: "alert" }, error),
    h("button", { className: "blm-button", type: "button", onClick: onAgain }, "Try again"),
  );
}

function Login({ ended, onLogin }) {
  const [error, setError] = useState(ended ? "The session has ended. Log in again." : null);
  const [busy, setBusy] = useState(false);
  const field = useRef(null);
  const id = useId();
  useEffect(() => field.current.focus(), []);
  const logIn = async (event) => {
    event.preventDefault();
    setBusy(true);
    const response = await asked("login", { method: "POST", body: { token: field.current.value } });
    if (response?.ok) return onLogin();
    setError(await whyNot(response));
    setBusy(false);
    field.current.select();
  };
  return h(
    Frame,
    null,
    h(
      "form",
      { className: "blm-card", method: "post", onSubmit: logIn },
      // Password managers file a password under a name.
      h("input", {
        type: "text",
        name: "username",
        autoComplete: "username",
        value: "batch-llm",
        readOnly: true,
        hidden: true,
      }),
      h(
        "div",
        { className: "blm-field" },
        h("label", { className: "blm-label", htmlFor: `${id}-token` }, "Token"),
        h("input", {
          ref: field,
          id: `${id}-token`,
          className: "blm-input",
          type: "password",
          name: "password",
          autoComplete: "current-password",
          spellCheck: false,
          required: true,
          "aria-invalid": error ? "true" : undefined,
          "aria-describedby": error ? `${id}-error` : `${id}-hint`,
        }),
        h(
          "p",
          { id: `${id}-hint`, className: "blm-small blm-muted" },
          "Needs the scope read. Who runs the service makes one with ",
          h("code", null, "batch-llm token create"),
          "; the first one is in the file token of its home.",
        ),
      ),
      error && h("p", { id: `${id}-error`, className: "blm-error", role: "alert" }, error),
      h(
        "button",
        { className: "blm-button blm-solid", type: "submit", disabled: busy },
        busy ? "Logging in …" : "Log in",
      ),
    ),
  );
}

const root = document.getElementById("root");
ReactDOM.createRoot(root).render(h(Standalone, { session: root.dataset.session }));
