/** Form fields with their labels. */

import { h, useEffect, useState } from "./react.js";

/** Milliseconds without a letter after which a search is made. */
const TYPING = 300;

export function Choice({ label, children, ...rest }) {
  return h(
    "label",
    { className: "blm-field" },
    h("span", { className: "blm-label" }, label),
    h("select", { className: "blm-input", ...rest }, children),
  );
}

/** Searches when the typing pauses, so that no call is made for every letter. */
export function SearchField({ value, label, onSearch }) {
  const [text, setText] = useState(value);
  // Not over what is being typed: a space at its end is part of it.
  useEffect(() => setText((now) => (now.trim() === value ? now : value)), [value]);
  useEffect(() => {
    if (text.trim() === value) return undefined;
    const timer = setTimeout(() => onSearch(text.trim()), TYPING);
    return () => clearTimeout(timer);
  }, [text]);
  return h(
    "label",
    { className: "blm-field blm-search" },
    h("span", { className: "blm-label" }, label),
    h("input", {
      className: "blm-input",
      type: "search",
      value: text,
      maxLength: 200,
      onChange: (event) => setText(event.target.value),
    }),
  );
}
