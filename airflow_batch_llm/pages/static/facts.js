/** Cards, and in them names with what is known of each. */

import { h } from "./react.js";

export function Facts({ facts }) {
  return h(
    "dl",
    { className: "blm-facts" },
    ...facts.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))),
  );
}

export function Card({ title, wide = false, children }) {
  return h("section", { className: `blm-card${wide ? " blm-double" : ""}` }, h("h3", null, title), children);
}
