/** One batch: is it moving, when is it done, what does it cost, what went wrong, do the answers look right? */

import { Fragment, h } from "./react.js";
import { Acts, BATCH_HEADING } from "./acts.js";
import { useAddress } from "./address.js";
import { AnswerBars } from "./answers.js";
import { Attempts, troubled } from "./attempts.js";
import { ProgressCharts } from "./chart.js";
import { ago, compact, counted, duration, money, moment, percent, rate, whole } from "./format.js";
import { Facts } from "./facts.js";
import { OriginText, PageLink } from "./places.js";
import { Rows } from "./rows.js";
import { call, useLive, useNow } from "./service.js";
import { Spec } from "./spec.js";
import { announce, Empty, Loading, StaleNotice, Trouble } from "./states.js";
import { hasEnded, ProgressBar, StatusBadge, STATUS_NAMES } from "./status.js";

const TABS = { overview: "Overview", rows: "Rows", attempts: "Attempts", spec: "Spec" };
/** Seconds after which what is counted over rows is counted anew, as long as somebody looks. */
const FRESH = 20;
const PHASES = { planning: "Planning", waiting: "Waiting for its first rows", running: "Running", assembling: "Assembling" };
const ACT_WORDS = { submit: "submitted it", cancel: "cancelled it", retry: "retried it", pause: "paused it", resume: "resumed it" };

/** `placed` says that the host's own page says already where the batch comes from. */
export function BatchPage({ batchId, may, placed = false }) {
  const [params] = useAddress();
  const { answer: report, error } = useLive(
    ({ version, wait, signal }) => call(`batches/${encodeURIComponent(batchId)}/report`, { params: { version, wait: wait || null }, signal }),
    `${batchId} ${params.get("team")} ${params.get("conn_id")}`,
  );
  const now = useNow(report?.at);
  if (!report || report.batch?.id !== batchId) return error ? h(Trouble, { error }) : h(Loading, { what: `batch ${batchId}` });
  return h(Batch, { report, error, now, placed, may: may && report.may_act !== false });
}

function Batch({ report, error, now, placed, may }) {
  const [params, go] = useAddress();
  const { batch } = report;
  const tab = params.get("tab") in TABS ? params.get("tab") : "overview";
  const onDone = (act, answer, words) => {
    announce(words);
    if (act === "retry") go({ batch: answer.id, tab: null });
  };
  return h(
    "article",
    { className: "blm-batch" },
    h(StaleNotice, { error }),
    h(
      "header",
      { className: "blm-batch-head" },
      h("div", null,
        h("h2", { tabIndex: -1, id: BATCH_HEADING }, h(StatusBadge, { batch }), " ", h("span", { className: "blm-id" }, batch.id)),
        !placed && h("div", { className: "blm-batch-place" }, h(OriginText, { origin: batch.origin }))),
      h(Acts, { batch, may, onDone }),
    ),
    h(Glance, { report, now }),
    h(TabList, { tab, go }),
    h("div", { role: "tabpanel", id: "blm-panel", "aria-labelledby": `blm-tab-${tab}` }, h(Panel, { tab, report, now })),
  );
}

function Panel({ tab, report, now }) {
  const { batch } = report;
  const fresh = hasEnded(batch) ? batch.status : Math.floor(report.at / FRESH);
  if (tab === "rows") return h(Rows, { batch, fresh });
  if (tab === "attempts") return h(Attempts, { report });
  if (tab === "spec") return h(Spec, { batch });
  return h(Overview, { report, now, fresh });
}

function TabList({ tab, go }) {
  const names = Object.keys(TABS);
  const onKeyDown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = names[(names.indexOf(tab) + step + names.length) % names.length];
    go({ tab: next }, { replace: true });
    document.getElementById(`blm-tab-${next}`)?.focus();
  };
  return h(
    "div",
    { className: "blm-tabs", role: "tablist", "aria-label": "Of this batch", onKeyDown },
    ...names.map((name) =>
      h(
        "button",
        {
          key: name,
          id: `blm-tab-${name}`,
          role: "tab",
          "aria-selected": name === tab,
          "aria-controls": name === tab ? "blm-panel" : undefined,
          tabIndex: name === tab ? 0 : -1,
          onClick: () => go({ tab: name === "overview" ? null : name }),
        },
        TABS[name],
      ),
    ),
  );
}

/** The five questions, each with its answer. */
function Glance({ report, now }) {
  const { batch, cost } = report;
  const progress = batch.progress;
  return h(
    "div",
    { className: "blm-glance" },
    h(Card, { title: "Progress" }, h(ProgressBar, { batch }), h("p", { className: "blm-small blm-muted blm-why" }, movement(batch))),
    h(Card, { title: hasEnded(batch) ? "Time taken" : "To go" }, h("p", { className: "blm-big" }, timeOf(batch)), h("p", { className: "blm-small blm-muted" }, `submitted ${ago(batch.created_at, now)}${batch.expires_at && !hasEnded(batch) ? `, must be done by ${moment(batch.expires_at)}` : ""}`)),
    h(Card, { title: "Cost" }, h(CostAtAGlance, { cost })),
    h(Card, { title: "What went wrong" }, h(Wrong, { report })),
  );
}

function Card({ title, wide = false, children }) {
  return h("section", { className: `blm-card${wide ? " blm-double" : ""}` }, h("h3", null, title), children);
}

const endOf = (batch) => batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;

function timeOf(batch) {
  if (hasEnded(batch)) return duration(endOf(batch) - batch.created_at);
  if (batch.status === "finalizing") return "the target is being written";
  return batch.progress.eta_seconds == null ? "not known yet" : `about ${duration(batch.progress.eta_seconds)}`;
}

function movement(batch) {
  const { progress } = batch;
  if (hasEnded(batch)) return `${STATUS_NAMES[batch.status]} ${moment(endOf(batch))}`;
  if (progress.waiting_for) return progress.waiting_for;
  if (progress.tokens_per_second) return `${rate(progress.tokens_per_second, "tokens/s")}, ${rate(progress.rows_per_second, "rows/s")}`;
  return batch.status === "validating" ? "It is being planned." : "Nothing has been committed in the last minute.";
}

function CostAtAGlance({ cost }) {
  if (!cost) return h("p", { className: "blm-big" }, "–");
  if (cost.own == null)
    return h(Fragment, null, h("p", { className: "blm-big" }, `${duration(cost.gpu_seconds)} of GPU`), h("p", { className: "blm-small blm-muted" }, cost.api == null ? "The service is told no prices (--gpu-hour-price, --api-input-price, --api-output-price)." : `The same tokens at an API: ${money(cost.api, cost.currency)}`));
  return h(
    Fragment,
    null,
    h("p", { className: "blm-big" }, money(cost.own, cost.currency), cost.saving != null && h("span", { className: cost.saving >= 0 ? "blm-good" : "blm-bad" }, ` ${cost.saving >= 0 ? `${percent(cost.saving)} saved` : `${percent(-cost.saving)} dearer`}`)),
    h("p", { className: "blm-small blm-muted" }, cost.api == null ? `${duration(cost.gpu_seconds)} of GPU` : `${duration(cost.gpu_seconds)} of GPU; the same tokens at an API: ${money(cost.api, cost.currency)}`),
  );
}

function Wrong({ report }) {
  const { batch, attempts } = report;
  const failed = batch.progress.rows_failed;
  const undone = hasEnded(batch) ? Math.max(0, batch.progress.rows_total - batch.progress.rows_done) : 0;
  const troubles = troubled(attempts);
  const errors = batch.errors?.data ?? [];
  if (errors.length) return h("div", null, ...errors.slice(0, 3).map((error, place) => h("p", { key: place, className: "blm-bad blm-why" }, error.message)));
  if (!failed && !undone && !troubles) return h("p", { className: "blm-big blm-good" }, "Nothing");
  return h(
    Fragment,
    null,
    failed > 0 && h("p", { className: "blm-big" }, h(PageLink, { changes: { tab: "rows", rows: "failed" }, className: "blm-bad" }, `${counted(failed, "row")} failed`)),
    ...failureCodes(batch).map(([code, rows]) => h("p", { key: code, className: "blm-small" }, `${code}: ${counted(rows, "row")}`)),
    undone > 0 && h("p", null, `${counted(undone, "row")} not done`),
    troubles > 0 && h("p", { className: "blm-small" }, h(PageLink, { changes: { tab: "attempts" } }, `${counted(troubles, "attempt")} did not end well; their rows were asked again`)),
  );
}

/** The commonest reasons, which are known once the target stands. */
function failureCodes(batch) {
  const failures = Object.entries(batch.manifest?.failures ?? {});
  return failures.sort(([, some], [, others]) => others - some).slice(0, 3);
}

function Overview({ report, now, fresh }) {
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
        ? h(ProgressCharts, { timeline, total: batch.progress.rows_total, known: knownRows(plan), done: batch.progress.rows_done, from: phases.find((phase) => phase.name === "running")?.started_at ?? timeline.buckets[0].at, until, ended: hasEnded(batch) })
        : h(Empty, { title: hasEnded(batch) ? "No progress is kept" : "No rows done yet" }, batch.progress.waiting_for),
    ),
    h(Card, { title: "Answers" }, h(AnswerBars, { batch, fresh }), h("p", null, h(PageLink, { changes: { tab: "rows" } }, "Look at rows"))),
    h(Card, { title: "Phases" }, h(Phases, { phases, now: until })),
    plan && h(Card, { title: "Plan" }, h(Facts, { facts: planFacts(plan) })),
    cost && h(Card, { title: "Tokens and money" }, h(Facts, { facts: costFacts(cost) })),
    h(Card, { title: "Workers on it", wide: true }, h(WorkersOnIt, { workers, now })),
    h(Card, { title: "Who did what" }, h(ActList, { acts, now })),
    generations.length > 1 && h(Card, { title: "Generations" }, h(GenerationList, { generations, batch, now })),
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
      h("li", { key: phase.name, className: phase.ended_at == null ? "blm-now" : "" }, h("span", null, PHASES[phase.name]), h("span", { className: "blm-number" }, duration((phase.ended_at ?? now) - phase.started_at)), h("span", { className: "blm-small blm-muted" }, `from ${moment(phase.started_at)}`)),
    ),
  );
}

function planFacts(plan) {
  return [
    ["Rows", counted(plan.rows_total, "row")],
    ["Duplicates", plan.rows_duplicate ? `${counted(plan.rows_duplicate, "row")}, asked once` : "none"],
    ["Reused", plan.rows_reused ? `${counted(plan.rows_reused, "row")} from earlier batches` : "none"],
    ["Asked", counted(plan.rows_asked, "row")],
    ["Chunks", `${whole(plan.chunks_done)} of ${counted(plan.chunks_total, "chunk")} done, ${whole(plan.chunks_leased)} at workers`],
    ["Prefix share", plan.prefix_share == null ? "not known yet" : `${percent(plan.prefix_share)} of the prompt tokens were in the engine's cache`],
  ];
}

function costFacts(cost) {
  const million = (price) => (price == null ? "no price set" : `${money(price, cost.currency)} per million`);
  return [
    ["Tokens in", `${counted(cost.prompt_tokens, "token")}${cost.cached_tokens ? `, ${compact(cost.cached_tokens)} of them from the cache` : ""}`],
    ["Tokens out", counted(cost.completion_tokens, "token")],
    ["GPU time", `${duration(cost.gpu_seconds)} (${whole(cost.gpu_seconds)} GPU-seconds)`],
    ["Here", cost.own == null ? "no price set for a GPU hour" : `${money(cost.own, cost.currency)}, at ${money(cost.gpu_hour_price, cost.currency)} per GPU hour`],
    ["At an API", cost.api == null ? "no prices set" : `${money(cost.api, cost.currency)}, in at ${million(cost.api_input_price)}, out at ${million(cost.api_output_price)}`],
    ["Saved", cost.saving == null ? "–" : percent(cost.saving)],
  ];
}

function WorkersOnIt({ workers, now }) {
  if (!workers.length) return h("p", { className: "blm-muted" }, "No worker has rows of it now.");
  return h(
    "div",
    { className: "blm-scroll", tabIndex: 0, role: "region", "aria-label": "Workers on this batch, a table that scrolls" },
    h(WorkerTable, { workers, now }),
  );
}

function WorkerTable({ workers, now }) {
  return h(
    "table",
    { className: "blm-table" },
    h("caption", { className: "blm-hidden" }, "Workers on this batch"),
    h("thead", null, h("tr", null, ...["Worker", "Chunks now", "Rows done", "Speed", "Last seen"].map((head) => h("th", { key: head, scope: "col" }, head)))),
    h("tbody", null, ...workers.map((worker) => h("tr", { key: worker.worker_id }, h("td", null, worker.name), h("td", { className: "blm-number" }, whole(worker.chunks)), h("td", { className: "blm-number" }, whole(worker.rows_done)), h("td", { className: "blm-number" }, rate(worker.rows_per_second, "rows/s")), h("td", { className: "blm-number" }, ago(worker.last_seen_at, now))))),
  );
}

function ActList({ acts, now }) {
  if (!acts.length) return h("p", { className: "blm-muted" }, "Nothing is noted.");
  return h("ul", { className: "blm-act-list" }, ...acts.map((act, place) => h("li", { key: place }, h("strong", null, act.by), ` ${ACT_WORDS[act.act] ?? act.act} `, h("time", { className: "blm-muted", dateTime: new Date(act.at * 1000).toISOString(), title: moment(act.at) }, ago(act.at, now)))));
}

function GenerationList({ generations, batch, now }) {
  return h("ul", { className: "blm-act-list" }, ...generations.map((each) => h("li", { key: each.id }, `${each.generation}: `, each.id === batch.id ? "this one" : h(PageLink, { changes: { batch: each.id } }, each.id), ` ${STATUS_NAMES[each.status]}, ${ago(each.created_at, now)}`)));
}
