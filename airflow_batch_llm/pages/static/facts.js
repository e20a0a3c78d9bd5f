/** Names and what is known of each. */

import { h } from "./react.js";

export function Facts({ facts }) {
  return h("dl", { className: "blm-facts" }, ...facts.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}
