/** The list of batches: filtered, searched, paged, and alive. */

import { h } from "./react.js";
import { useAddress } from "./address.js";
import { Choice, SearchField } from "./fields.js";
import { ago, compact, counted, duration, moment, rate, whole } from "./format.js";
import { OriginText, PageLink } from "./places.js";
import { call, useLive, useNow } from "./service.js";
import { Empty, Loading, StaleNotice, Trouble } from "./states.js";
import { hasEnded, ProgressBar, STATUS_NAMES, StatusBadge } from "./status.js";

const PAGE = 50;

/** `fixed` are filters that the place decides: the Dag run or task whose tab this is. */
export function BatchListPage({ fixed = null, host }) {
  const [params, go] = useAddress();
  const query = queryOf(params, fixed);
  const live = useLive(
    ({ version, wait, signal }) => call("batches/overview", { body: { ...query, version, wait }, signal }),
    JSON.stringify([query, params.get("team"), params.get("conn_id")]),
  );
  const { answer, error, stale } = live;
  const now = useNow(answer?.at);
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "batches" });
  return h(
    "section",
    { className: "blm-list", "aria-busy": stale },
    h(StaleNotice, { error }),
    h(Filters, { params, go, answer, fixed }),
    answer.data.length
      ? h(BatchTable, { lines: answer.data, now, fixed, stale, go })
      : h(NoBatches, { filtered: isFiltered(params), offset: query.offset, go, host, fixed }),
    h(Pager, { answer, query, go }),
  );
}

function queryOf(params, fixed) {
  const all = (name) => (params.getAll(name).length ? params.getAll(name) : null);
  return {
    status: all("status"),
    models: all("model"),
    dag_ids: all("dag"),
    search: params.get("search") || null,
    order: params.get("order") === "priority" ? "priority" : "newest",
    offset: Math.max(0, Number.parseInt(params.get("offset") ?? "0", 10) || 0),
    limit: PAGE,
    ...fixed,
  };
}

const FILTERS = { status: null, model: null, dag: null, search: null, offset: null };
const isFiltered = (params) => Object.keys(FILTERS).some((name) => params.get(name));

function NoBatches({ filtered, offset, go, host, fixed }) {
  if (filtered)
    return h(
      Empty,
      { title: offset ? "This page is empty" : "No batch fits" },
      h("button", { className: "blm-button", onClick: () => go(FILTERS) }, "Show all batches"),
    );
  if (fixed)
    return h(
      Empty,
      { title: "No batches here" },
      "This shows the LLM batches that a BatchLLMOperator or @task.batch_llm submits. None was submitted here, or its record is gone.",
    );
  return h(
    Empty,
    { title: "No batches yet" },
    host === "airflow"
      ? "A batch is there as soon as a task with a BatchLLMOperator runs."
      : "A batch is there as soon as somebody submits one: with an Airflow task, `batch-llm submit` or the API.",
  );
}

function Filters({ params, go, answer, fixed }) {
  const choose = (name) => (event) => go({ [name]: event.target.value || null, offset: null });
  const statuses = Object.keys(STATUS_NAMES).filter(
    (name) => answer.statuses[name] || params.get("status") === name,
  );
  return h(
    "div",
    { className: "blm-filters", role: "search", "aria-label": "Batches" },
    h(SearchField, {
      value: params.get("search") ?? "",
      label: "Search batches",
      onSearch: (search) => go({ search: search || null, offset: null }, { replace: true }),
    }),
    h(
      Choice,
      { label: "Status", value: params.get("status") ?? "", onChange: choose("status") },
      h("option", { value: "" }, `All (${whole(sum(answer.statuses))})`),
      ...statuses.map((name) =>
        h(
          "option",
          { key: name, value: name },
          `${STATUS_NAMES[name]} (${whole(answer.statuses[name] ?? 0)})`,
        ),
      ),
    ),
    !fixed?.dag_ids &&
      h(Named, { label: "Dag", names: answer.dag_ids, value: params.get("dag"), onChange: choose("dag") }),
    h(Named, { label: "Model", names: answer.models, value: params.get("model"), onChange: choose("model") }),
    answer.teams.length > 1 &&
      h(Named, {
        label: "Team",
        names: answer.teams,
        value: params.get("team"),
        any: "My team",
        onChange: choose("team"),
      }),
    h(
      Choice,
      {
        label: "Order",
        value: params.get("order") ?? "newest",
        onChange: (event) => go({ order: event.target.value, offset: null }),
      },
      h("option", { value: "newest" }, "Newest first"),
      h("option", { value: "priority" }, "As the pool takes them"),
    ),
  );
}

const sum = (counts) => Object.values(counts).reduce((all, each) => all + each, 0);

function Named({ label, names, value, onChange, any = "All" }) {
  const known = value && !names.includes(value) ? [value, ...names] : names;
  return h(
    Choice,
    { label, value: value ?? "", onChange },
    h("option", { value: "" }, any),
    ...known.map((name) => h("option", { key: name, value: name }, name)),
  );
}

function BatchTable({ lines, now, fixed, stale, go }) {
  const heads = [
    "Status",
    fixed ? "Task" : "Dag, task and run",
    "Model",
    "Rows",
    "Speed",
    "To go",
    "Age",
    "Priority",
  ];
  return h(
    "div",
    { className: "blm-scroll", tabIndex: 0, role: "region", "aria-label": "Batches, a table that scrolls" },
    h(
      "table",
      { className: `blm-table${stale ? " blm-stale" : ""}` },
      h("caption", { className: "blm-hidden" }, "Batches"),
      h("thead", null, h("tr", null, ...heads.map((head) => h("th", { key: head, scope: "col" }, head)))),
      h("tbody", null, ...lines.map((line) => h(BatchRow, { key: line.id, line, now, go, fixed }))),
    ),
  );
}

function BatchRow({ line, now, go, fixed }) {
  const ended = hasEnded(line);
  const open = (event) => {
    // The link in the row is what keyboards use; a row that somebody selects text in stays.
    if (!event.target.closest("a") && getSelection().isCollapsed) go({ batch: line.id, tab: null });
  };
  const progress = line.progress;
  return h(
    "tr",
    { "data-batch": line.id, className: "blm-opens", onClick: open },
    h(
      "td",
      null,
      h(StatusBadge, { batch: line }),
      line.dry_run && h("div", { className: "blm-small blm-muted" }, "dry run"),
    ),
    h(
      "td",
      null,
      h(OriginText, { origin: line.origin, within: fixed }),
      h(
        "div",
        { className: "blm-small" },
        h(
          PageLink,
          { changes: { batch: line.id, tab: null }, className: "blm-id", title: line.id },
          shortened(line.id),
        ),
      ),
    ),
    h(
      "td",
      null,
      h("span", { className: "blm-model", title: line.model ?? "" }, line.model ?? "–"),
      line.generation > 1 && h("div", { className: "blm-small blm-muted" }, `generation ${line.generation}`),
    ),
    h(
      "td",
      { className: "blm-wide" },
      h(ProgressBar, { batch: line, small: true }),
      progress.waiting_for &&
        !ended &&
        h("div", { className: "blm-small blm-muted blm-why" }, progress.waiting_for),
    ),
    h("td", { className: "blm-number" }, ended ? "–" : rate(progress.tokens_per_second, "tokens/s")),
    h(
      "td",
      { className: "blm-number" },
      ended
        ? h("span", { className: "blm-muted" }, `took ${duration(line.ended_at - line.created_at)}`)
        : duration(progress.eta_seconds),
    ),
    h("td", { className: "blm-number", title: moment(line.created_at) }, ago(line.created_at, now)),
    h("td", { className: "blm-number" }, whole(line.priority)),
  );
}

/** An id's beginning tells batches apart; the whole one is in its title and on its page. */
function shortened(id) {
  return id.length > 20 ? `${id.slice(0, 14)}…` : id;
}

function Pager({ answer, query, go }) {
  const { offset } = query;
  const last = Math.min(offset + answer.data.length, answer.total);
  const move = (to) => () => go({ offset: to || null });
  return h(
    "nav",
    { className: "blm-pager", "aria-label": "Pages of batches" },
    h(
      "span",
      { className: "blm-muted", role: "status" },
      answer.data.length
        ? `${whole(offset + 1)} to ${whole(last)} of ${counted(answer.total, "batch", "batches")}`
        : `0 of ${compact(answer.total)}`,
    ),
    h(
      "button",
      { className: "blm-button", disabled: offset === 0, onClick: move(Math.max(0, offset - PAGE)) },
      "Previous",
    ),
    h(
      "button",
      { className: "blm-button", disabled: last >= answer.total, onClick: move(offset + PAGE) },
      "Next",
    ),
  );
}
