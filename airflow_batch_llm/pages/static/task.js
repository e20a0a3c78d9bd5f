/** The tab of a task instance or a Dag run in Airflow: its batches, or the newest where it has had several lives. */

import { h } from "./react.js";
import { useAddress } from "./address.js";
import { BatchPage } from "./batch.js";
import { counted } from "./format.js";
import { BatchListPage } from "./list.js";
import { PageLink } from "./places.js";
import { call, useLive } from "./service.js";
import { Loading, Trouble } from "./states.js";

export function TaskPage({ place, host, may }) {
  const [params] = useAddress();
  const fixed = filterOf(place);
  const chosen = params.get("batch");
  const listed = !place.task_id || params.has("all");
  if (chosen)
    return h("div", { className: "blm-page" }, h(Back), h(BatchPage, { key: chosen, batchId: chosen, host, may, placed: Boolean(place.task_id) }));
  if (listed) return h("div", { className: "blm-page" }, h(BatchListPage, { host, fixed }));
  return h(NewestBatch, { fixed, host, may });
}

function filterOf({ dag_id, run_id, task_id, map_index }) {
  const named = { dag_ids: [dag_id], run_id };
  if (task_id) named.task_id = task_id;
  if (map_index != null) named.map_index = map_index;
  return named;
}

function Back() {
  return h("p", null, h(PageLink, { changes: { batch: null, tab: null } }, "‹ All batches here"));
}

function NewestBatch({ fixed, host, may }) {
  const { answer, error } = useLive(
    ({ version, wait, signal }) => call("batches/overview", { body: { ...fixed, limit: 1, version, wait }, signal }),
    JSON.stringify(fixed),
  );
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "the batch" });
  const newest = answer.data[0];
  if (!newest) return h("div", { className: "blm-page" }, h(BatchListPage, { host, fixed }));
  const others = answer.total - 1;
  return h(
    "div",
    { className: "blm-page" },
    others > 0 && h("p", null, "The newest batch of this task. ", h(PageLink, { changes: { all: 1 } }, `${counted(others, "earlier batch", "earlier batches")}`)),
    h(BatchPage, { key: newest.id, batchId: newest.id, host, may, placed: true }),
  );
}
