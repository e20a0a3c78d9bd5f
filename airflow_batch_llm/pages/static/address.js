/** Which page is shown stands in the address, so that it can be sent to somebody and the back button works. */

import { useCallback, useEffect, useState } from "./react.js";

/** The parameters of the address, and a function that changes some of them (null removes one). */
export const useAddress = globalThis.ReactRouterDOM ? useHostsRouter : useOwnHistory;

function useHostsRouter() {
  const [params, setParams] = globalThis.ReactRouterDOM.useSearchParams();
  const go = useCallback(
    (changes, { replace = false } = {}) => setParams((now) => changed(now, changes), { replace }),
    [setParams],
  );
  return [params, go];
}

function useOwnHistory() {
  const [search, setSearch] = useState(location.search);
  useEffect(() => {
    const moved = () => setSearch(location.search);
    addEventListener("popstate", moved);
    return () => removeEventListener("popstate", moved);
  }, []);
  const go = useCallback((changes, { replace = false } = {}) => {
    const next = searchOf(changed(new URLSearchParams(location.search), changes));
    history[replace ? "replaceState" : "pushState"](null, "", location.pathname + next);
    dispatchEvent(new PopStateEvent("popstate")); // for everything that follows the address, not this component alone
  }, []);
  return [new URLSearchParams(search), go];
}

/** A link's target for the same changes: it can be opened in another tab, too. */
export function hrefWith(params, changes) {
  return location.pathname + searchOf(changed(params, changes));
}

function changed(params, changes) {
  const next = new URLSearchParams(params);
  for (const [name, value] of Object.entries(changes)) {
    next.delete(name);
    for (const each of [value].flat()) if (each != null && each !== "") next.append(name, each);
  }
  return next;
}

function searchOf(params) {
  const text = params.toString();
  return text && `?${text}`;
}
