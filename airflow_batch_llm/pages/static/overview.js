/** The story of one batch: its progress over time, phases, plan, tokens and money, workers, and who did what. */

import { h } from "./react.js";
import { AnswerBars } from "./answers.js";
import { ProgressCharts } from "./chart.js";
import { Card, Facts } from "./facts.js";
import { ago, compact, counted, duration, money, moment, percent, rate, whole } from "./format.js";
import { PageLink } from "./places.js";
import { Empty } from "./states.js";
import { endOf, hasEnded, STATUS_NAMES } from "./status.js";

const PHASES = {
  planning: "Planning",
  waiting: "Waiting for its first rows",
  running: "Running",
  assembling: "Assembling",
};
const ACT_WORDS = {
  submit: "submitted it",
  cancel: "cancelled it",
  retry: "retried it",
  pause: "paused it",
  resume: "resumed it",
};

export function Overview({ report, now, fresh }) {
  const { batch, timeline, phases, plan, workers, cost, acts, generations } = report;
  const until = endOf(batch) ?? now;
  return h(
    "div",
    { className: "blm-overview" },
    h(
      "section",
      { className: "blm-card blm-span" },
      h("h3", null, "Progress over time"),
      timeline?.buckets.length
        ? h(ProgressCharts, {
            timeline,
            total: batch.progress.rows_total,
            known: knownRows(plan),
            done: batch.progress.rows_done,
            from: phases.find((phase) => phase.name === "running")?.started_at ?? timeline.buckets[0].at,
            until,
            ended: hasEnded(batch),
          })
        : h(
            Empty,
            { title: hasEnded(batch) ? "No progress is kept" : "No rows done yet" },
            batch.progress.waiting_for,
          ),
    ),
    h(
      Card,
      { title: "Answers" },
      h(AnswerBars, { batch, fresh }),
      h("p", null, h(PageLink, { changes: { tab: "rows" } }, "Look at rows")),
    ),
    h(Card, { title: "Phases" }, h(Phases, { phases, now: until })),
    plan && h(Card, { title: "Plan" }, h(Facts, { facts: planFacts(plan) })),
    cost && h(Card, { title: "Tokens and money" }, h(Facts, { facts: costFacts(cost) })),
    h(Card, { title: "Workers on it", wide: true }, h(WorkersOnIt, { workers, now })),
    h(Card, { title: "Who did what" }, h(ActList, { acts, now })),
    generations.length > 1 &&
      h(Card, { title: "Generations" }, h(GenerationList, { generations, batch, now })),
  );
}

/** Rows that were done before the first commit: reused ones, what an earlier generation did, what cannot be asked. */
function knownRows(plan) {
  return plan ? Math.max(0, plan.rows_total - plan.rows_duplicate - plan.rows_asked) : 0;
}

function Phases({ phases, now }) {
  if (!phases.length) return h("p", { className: "blm-muted" }, "None yet.");
  return h(
    "ol",
    { className: "blm-phases" },
    ...phases.map((phase) =>
      h(
        "li",
        { key: phase.name, className: phase.ended_at == null ? "blm-now" : "" },
        h("span", null, PHASES[phase.name]),
        h("span", { className: "blm-number" }, duration((phase.ended_at ?? now) - phase.started_at)),
        h("span", { className: "blm-small blm-muted" }, `from ${moment(phase.started_at)}`),
      ),
    ),
  );
}

function planFacts(plan) {
  return [
    ["Rows", counted(plan.rows_total, "row")],
    ["Duplicates", plan.rows_duplicate ? `${counted(plan.rows_duplicate, "row")}, asked once` : "none"],
    ["Reused", plan.rows_reused ? `${counted(plan.rows_reused, "row")} from earlier batches` : "none"],
    ["Asked", counted(plan.rows_asked, "row")],
    [
      "Chunks",
      `${whole(plan.chunks_done)} of ${counted(plan.chunks_total, "chunk")} done, ${whole(plan.chunks_leased)} at workers`,
    ],
    [
      "Prefix share",
      plan.prefix_share == null
        ? "not known yet"
        : `${percent(plan.prefix_share)} of the prompt tokens were in the engine's cache`,
    ],
  ];
}

function costFacts(cost) {
  const million = (price) => (price == null ? "no price set" : `${money(price, cost.currency)} per million`);
  return [
    [
      "Tokens in",
      `${counted(cost.prompt_tokens, "token")}${cost.cached_tokens ? `, ${compact(cost.cached_tokens)} of them from the cache` : ""}`,
    ],
    ["Tokens out", counted(cost.completion_tokens, "token")],
    ["GPU time", `${duration(cost.gpu_seconds)} (${whole(cost.gpu_seconds)} GPU-seconds)`],
    [
      "Here",
      cost.own == null
        ? "no price set for a GPU hour"
        : `${money(cost.own, cost.currency)}, at ${money(cost.gpu_hour_price, cost.currency)} per GPU hour`,
    ],
    [
      "At an API",
      cost.api == null
        ? "no prices set"
        : `${money(cost.api, cost.currency)}, in at ${million(cost.api_input_price)}, out at ${million(cost.api_output_price)}`,
    ],
    ["Saved", cost.saving == null ? "–" : percent(cost.saving)],
  ];
}

function WorkersOnIt({ workers, now }) {
  if (!workers.length) return h("p", { className: "blm-muted" }, "No worker has rows of it now.");
  return h(
    "div",
    {
      className: "blm-scroll",
      tabIndex: 0,
      role: "region",
      "aria-label": "Workers on this batch, a table that scrolls",
    },
    h(WorkerTable, { workers, now }),
  );
}

function WorkerTable({ workers, now }) {
  return h(
    "table",
    { className: "blm-table" },
    h("caption", { className: "blm-hidden" }, "Workers on this batch"),
    h(
      "thead",
      null,
      h(
        "tr",
        null,
        ...["Worker", "Chunks now", "Rows done", "Speed", "Last seen"].map((head) =>
          h("th", { key: head, scope: "col" }, head),
        ),
      ),
    ),
    h(
      "tbody",
      null,
      ...workers.map((worker) =>
        h(
          "tr",
          { key: worker.worker_id },
          h("td", null, worker.name),
          h("td", { className: "blm-number" }, whole(worker.chunks)),
          h("td", { className: "blm-number" }, whole(worker.rows_done)),
          h("td", { className: "blm-number" }, rate(worker.rows_per_second, "rows/s")),
          h("td", { className: "blm-number" }, ago(worker.last_seen_at, now)),
        ),
      ),
    ),
  );
}

function ActList({ acts, now }) {
  if (!acts.length) return h("p", { className: "blm-muted" }, "Nothing is noted.");
  return h(
    "ul",
    { className: "blm-act-list" },
    ...acts.map((act, place) =>
      h(
        "li",
        { key: place },
        h("strong", null, act.by),
        ` ${ACT_WORDS[act.act] ?? act.act} `,
        h(
          "time",
          { className: "blm-muted", dateTime: new Date(act.at * 1000).toISOString(), title: moment(act.at) },
          ago(act.at, now),
        ),
      ),
    ),
  );
}

function GenerationList({ generations, batch, now }) {
  return h(
    "ul",
    { className: "blm-act-list" },
    ...generations.map((each) =>
      h(
        "li",
        { key: each.id },
        `${each.generation}: `,
        each.id === batch.id ? "this one" : h(PageLink, { changes: { batch: each.id } }, each.id),
        ` ${STATUS_NAMES[each.status]}, ${ago(each.created_at, now)}`,
      ),
    ),
  );
}
