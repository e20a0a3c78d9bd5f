/** Calls of the service, and answers that keep themselves up to date. */

import { useEffect, useRef, useState } from "./react.js";

/** Beside this folder, wherever the host serves it: also below a path. */
const API = new URL("../api/", import.meta.url);
const WAIT_SECONDS = 20;
/** Between two answers, so that a batch that changes all the time does not ask all the time. */
const LEAST_PAUSE = 1000;
const LONGEST_PAUSE = 15000;

/** The event that tells the host of the pages that a call was made by nobody it knows. */
export const LOGGED_OUT = "batch-llm-logged-out";

/** What the service, or Airflow before it, refused. `status` 0 is no answer at all. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Which service and whose things: goes with every call. */
const scope = new Map();

export function setScope(values) {
  for (const [name, value] of Object.entries(values)) {
    if (value) scope.set(name, value);
    else scope.delete(name);
  }
}

/** The address of a call, for a link as well. */
export function urlOf(path, params = {}) {
  const url = new URL(`v1/${path}`, API);
  for (const [name, value] of [...scope, ...Object.entries(params)])
    if (value != null && value !== "") url.searchParams.set(name, value);
  return url;
}

/** Makes a call and gives its answer. Throws {@link Refusal}. */
export async function call(path, { params, body, method, signal } = {}) {
  const sends = body !== undefined;
  const headers = { Accept: "application/json", "X-Batch-LLM-Page": "1" };
  if (sends) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(urlOf(path, params), {
      method: method ?? (sends ? "POST" : "GET"),
      headers,
      body: sends ? JSON.stringify(body) : undefined,
      credentials: "same-origin",
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "no_answer", "The server does not answer.");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer !== null) return answer;
  if (response.status === 401) dispatchEvent(new Event(LOGGED_OUT));
  throw refusalOf(response.status, answer);
}

function refusalOf(status, answer) {
  const { code, message } = answer?.error ?? {};
  const detail = typeof answer?.detail === "string" ? answer.detail : null;
  return new Refusal(status, code ?? String(status), message ?? detail ?? `The server answered ${status}.`);
}

/**
 * Asks again and again, as long as the page is looked at: `ask({version, wait, signal})` is to wait at the service until
 * its answer differs from the version. Gives the last answer, the error of the last try if that failed, and whether the
 * answer is one to an earlier question.
 */
export function useLive(ask, question) {
  const [state, setState] = useState({ answer: null, error: null, question: null });
  const latest = useRef(ask);
  latest.current = ask;
  useEffect(() => {
    const stop = new AbortController();
    setState((now) => ({ ...now, error: null }));
    follow(
      (options) => latest.current(options),
      stop.signal,
      (found) => {
        if (!stop.signal.aborted)
          setState((now) => ({ ...now, ...found, question: found.answer ? question : now.question }));
      },
    );
    return () => stop.abort();
  }, [question]);
  const stale = state.question !== question;
  // What was asked before is shown until the new answer is there, but not where that cannot be had.
  return { ...state, answer: stale && state.error ? null : state.answer, stale };
}

async function follow(ask, signal, tell) {
  let version = null;
  let pause = LEAST_PAUSE;
  while (!signal.aborted) {
    await shown(signal);
    try {
      const answer = await ask({ version, wait: version === null ? 0 : WAIT_SECONDS, signal });
      const news = answer.version !== version || version === null;
      version = answer.version ?? null;
      pause = LEAST_PAUSE;
      tell(news ? { answer, error: null } : { error: null });
    } catch (error) {
      if (signal.aborted) return;
      tell({ error });
      // What a person has to mend is not asked for every second.
      pause = Math.min(LONGEST_PAUSE, pause * 2) * (0.75 + Math.random() / 2);
      version = null;
    }
    await slept(pause, signal);
  }
}

/** Resolves once the page is looked at: nobody needs news in a tab that is hidden. */
function shown(signal) {
  return new Promise((resolve) => {
    if (!document.hidden) return resolve();
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
  });
}

function slept(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
  });
}

/** Asks once for each question; `again` asks anew. */
export function useAnswer(ask, question) {
  const [state, setState] = useState({ answer: null, error: null, question: null });
  const [turn, setTurn] = useState(0);
  const latest = useRef(ask);
  latest.current = ask;
  useEffect(() => {
    const stop = new AbortController();
    latest.current({ signal: stop.signal }).then(
      (answer) => !stop.signal.aborted && setState({ answer, error: null, question }),
      (error) =>
        !stop.signal.aborted &&
        setState((now) => ({ answer: now.question === question ? now.answer : null, error, question })),
    );
    return () => stop.abort();
  }, [question, turn]);
  return { ...state, stale: state.question !== question, again: () => setTurn(turn + 1) };
}

/** The service's time, at each of its answers and every few seconds in between. */
export function useNow(at) {
  const [now, setNow] = useState(at);
  useEffect(() => {
    if (at == null) return undefined;
    const begun = performance.now();
    setNow(at);
    const timer = setInterval(() => setNow(at + (performance.now() - begun) / 1000), 5000);
    return () => clearInterval(timer);
  }, [at]);
  return now ?? at ?? Date.now() / 1000;
}
