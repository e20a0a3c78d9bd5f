/** The attempts at a batch's chunks, and those that did not end well. */

import { h } from "./react.js";
import { counted, moment, whole } from "./format.js";
import { Facts } from "./facts.js";
import { Empty } from "./states.js";

/** What becomes of an attempt without harm. */
const WELL = new Set(["committed", "drained", "stopped", "running"]);

/** How many attempts did not end well. */
export function troubled(attempts) {
  const outcomes = Object.entries(attempts?.outcomes ?? {});
  return outcomes.reduce((sum, [outcome, times]) => sum + (WELL.has(outcome) ? 0 : times), 0);
}

export function Attempts({ report: { attempts, batch } }) {
  if (!attempts || !attempts.total)
    return h(
      Empty,
      { title: "No attempts" },
      "No worker has claimed a chunk of it, or the records of them are gone.",
    );
  const outcomes = Object.entries(attempts.outcomes).map(([outcome, times]) => [
    outcome,
    counted(times, "attempt"),
  ]);
  return h(
    "div",
    { className: "blm-overview" },
    h(
      "section",
      { className: "blm-card" },
      h("h3", null, "How attempts ended"),
      h(Facts, { facts: [["All", counted(attempts.total, "attempt")], ...outcomes] }),
    ),
    h(
      "section",
      { className: "blm-card blm-span" },
      h("h3", null, "Those that did not end well"),
      attempts.troubles.length
        ? h(Troubles, { troubles: attempts.troubles })
        : h(
            "p",
            { className: "blm-muted" },
            `None. Failed rows are not attempts that failed: see the rows${batch.progress.rows_failed ? "" : ", if there are any"}.`,
          ),
    ),
  );
}

function Troubles({ troubles }) {
  const heads = ["Chunk", "Attempt", "Worker", "What happened", "Rows kept", "Rows asked again", "When"];
  return h(
    "div",
    { className: "blm-scroll", tabIndex: 0, role: "region", "aria-label": "Attempts that did not end well" },
    h(
      "table",
      { className: "blm-table" },
      h("caption", { className: "blm-hidden" }, "Attempts that did not end well"),
      h("thead", null, h("tr", null, ...heads.map((head) => h("th", { key: head, scope: "col" }, head)))),
      h(
        "tbody",
        null,
        ...troubles.map((each) =>
          h(
            "tr",
            { key: `${each.chunk} ${each.attempt}` },
            h("td", { className: "blm-number" }, whole(each.chunk)),
            h("td", { className: "blm-number" }, whole(each.attempt)),
            h("td", null, each.worker),
            h(
              "td",
              null,
              h("strong", null, each.outcome),
              each.detail && h("div", { className: "blm-small" }, each.detail),
            ),
            h("td", { className: "blm-number" }, whole(each.rows)),
            h("td", { className: "blm-number" }, whole(each.rows_lost)),
            h("td", null, moment(each.ended_at ?? each.claimed_at)),
          ),
        ),
      ),
    ),
  );
}
