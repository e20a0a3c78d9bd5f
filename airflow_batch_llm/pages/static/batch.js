/** One batch: what is known of it at a glance, and tabs with the rest. */

import { h } from "./react.js";
import { Acts, BATCH_HEADING } from "./acts.js";
import { useAddress } from "./address.js";
import { Attempts } from "./attempts.js";
import { Glance } from "./glance.js";
import { Overview } from "./overview.js";
import { OriginText } from "./places.js";
import { Rows } from "./rows.js";
import { call, useLive, useNow } from "./service.js";
import { Spec } from "./spec.js";
import { announce, Loading, StaleNotice, Trouble } from "./states.js";
import { hasEnded, StatusBadge } from "./status.js";

const TABS = { overview: "Overview", rows: "Rows", attempts: "Attempts", spec: "Spec" };
/** Seconds after which what is counted over rows is counted anew, as long as somebody looks. */
const FRESH = 20;

/** `placed` says that the host's own page says already where the batch comes from. */
export function BatchPage({ batchId, placed = false }) {
  const [params] = useAddress();
  const { answer: report, error } = useLive(
    ({ version, wait, signal }) =>
      call(`batches/${encodeURIComponent(batchId)}/report`, {
        params: { version, wait: wait || null },
        signal,
      }),
    `${batchId} ${params.get("team")} ${params.get("conn_id")}`,
  );
  const now = useNow(report?.at);
  if (!report || report.batch?.id !== batchId)
    return error ? h(Trouble, { error }) : h(Loading, { what: `batch ${batchId}` });
  return h(Batch, { report, error, now, placed });
}

function Batch({ report, error, now, placed }) {
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
      h(
        "div",
        null,
        h(
          "h2",
          { tabIndex: -1, id: BATCH_HEADING },
          h(StatusBadge, { batch }),
          " ",
          h("span", { className: "blm-id" }, batch.id),
        ),
        !placed && h("div", { className: "blm-batch-place" }, h(OriginText, { origin: batch.origin })),
      ),
      h(Acts, { batch, may: report.may_act, onDone }),
    ),
    h(Glance, { report, now }),
    h(TabList, { tab, go }),
    h(
      "div",
      { role: "tabpanel", id: "blm-panel", "aria-labelledby": `blm-tab-${tab}` },
      h(Panel, { tab, report, now }),
    ),
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
