/** Who is there, on which model, how fast; and what waits. */

import { Fragment, h } from "./react.js";
import { ago, compact, counted, moment, rate, whole } from "./format.js";
import { call, useLive, useNow } from "./service.js";
import { Empty, Loading, StaleNotice, Trouble } from "./states.js";

const REFRESH = 5;
const STATES = { working: "Working", idle: "Idle", silent: "Silent", gone: "Gone" };
const EXPLAINED = {
  silent: "It has not called for longer than it may: its chunks are handed on.",
  gone: "It took its leave, or another started under its name.",
};

export function WorkersPage({ scope }) {
  const { answer, error } = useLive(async ({ version, signal }) => {
    if (version) await new Promise((resolve) => setTimeout(resolve, REFRESH * 1000));
    const found = await call("workers", { signal });
    return { ...found, version: String(found.at) };
  }, scope);
  const now = useNow(answer?.at);
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "workers" });
  return h(
    Fragment,
    null,
    h(StaleNotice, { error }),
    h("section", { className: "blm-card" }, h("h2", null, "Queue"), h(Queue, { queue: answer.queue, now })),
    h(
      "section",
      { className: "blm-card" },
      h("h2", null, "Workers"),
      h(WorkerTable, { workers: answer.workers, now }),
    ),
  );
}

function Queue({ queue, now }) {
  if (!queue.length) return h(Empty, { title: "Nothing waits" }, "Every row that was submitted is done.");
  return h(Table, {
    caption: "The queue by model",
    heads: [
      "Model",
      "Workers",
      "Batches",
      "Chunks waiting",
      "Chunks at workers",
      "Rows left",
      "Tokens left",
      "Oldest batch",
    ],
    rows: queue.map((line) => ({
      key: `${line.model} ${line.endpoint}`,
      cells: [
        h(Fragment, null, line.model, h("div", { className: "blm-small blm-muted" }, line.endpoint)),
        line.workers ? whole(line.workers) : h("span", { className: "blm-bad" }, "none serves it"),
        whole(line.batches),
        whole(line.chunks_pending),
        whole(line.chunks_leased),
        counted(line.rows_left, "row"),
        `about ${compact(line.tokens_left)} tokens`,
        line.oldest_at == null ? "–" : ago(line.oldest_at, now),
      ],
    })),
  });
}

function WorkerTable({ workers, now }) {
  if (!workers.length)
    return h(
      Empty,
      { title: "No worker is there" },
      "Start one where a GPU is, with `batch-llm work`. Batches wait until then; nothing is lost.",
    );
  return h(Table, {
    caption: "Workers",
    heads: ["Worker", "State", "Models", "Chunks", "Rows in flight", "Speed", "Last seen", "Since"],
    rows: workers.map((worker) => ({
      key: worker.id,
      cells: [
        h(
          Fragment,
          null,
          worker.name,
          h(
            "div",
            { className: "blm-small blm-muted" },
            `version ${worker.version}${worker.shared ? ", for all teams" : ""}`,
          ),
        ),
        h(
          "span",
          { className: `blm-status blm-worker-${worker.state}`, title: EXPLAINED[worker.state] },
          STATES[worker.state] ?? worker.state,
        ),
        worker.models.join(", "),
        whole(worker.chunks),
        counted(worker.rows_in_flight, "row"),
        h(
          Fragment,
          null,
          rate(worker.rows_per_second, "rows/s"),
          h("div", { className: "blm-small blm-muted" }, rate(worker.tokens_per_second, "tokens/s")),
        ),
        h("span", { title: moment(worker.last_seen_at) }, ago(worker.last_seen_at, now)),
        moment(worker.registered_at),
      ],
    })),
  });
}

function Table({ caption, heads, rows }) {
  return h(
    "div",
    {
      className: "blm-scroll",
      tabIndex: 0,
      role: "region",
      "aria-label": `${caption}, a table that scrolls`,
    },
    h(
      "table",
      { className: "blm-table" },
      h("caption", { className: "blm-hidden" }, caption),
      h("thead", null, h("tr", null, ...heads.map((head) => h("th", { key: head, scope: "col" }, head)))),
      h(
        "tbody",
        null,
        ...rows.map(({ key, cells }) =>
          h("tr", { key }, ...cells.map((cell, place) => h("td", { key: place }, cell))),
        ),
      ),
    ),
  );
}
