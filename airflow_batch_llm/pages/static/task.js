/** The tab of a task instance or a Dag run in Airflow: its batches, or the one that there is. */

import { h } from "./react.js";
import { useAddress } from "./address.js";
import { BatchPage } from "./batch.js";
import { BatchListPage } from "./list.js";
import { PageLink } from "./places.js";
import { call, useLive } from "./service.js";
import { Loading, Trouble } from "./states.js";

export function TaskPage({ place, host, may }) {
  const [params] = useAddress();
  const fixed = { dag_ids: [place.dag_id], run_id: place.run_id };
  if (place.task_id) Object.assign(fixed, { task_id: place.task_id });
  if (place.map_index != null) Object.assign(fixed, { map_index: place.map_index });
  const chosen = params.get("batch");
  const only = useOnly(fixed, chosen !== null || !place.task_id);
  const batchId = chosen ?? only.batchId;
  if (only.error && !batchId) return h(Trouble, { error: only.error });
  if (only.asking && !batchId) return h(Loading, { what: "the batch" });
  return h(
    "div",
    { className: "blm-page" },
    chosen && h("p", null, h(PageLink, { changes: { batch: null, tab: null } }, "‹ All batches here")),
    batchId ? h(BatchPage, { key: batchId, batchId, host, may }) : h(BatchListPage, { host, fixed }),
  );
}

/** The newest batch of a task instance, where all it has are generations of one. */
function useOnly(fixed, skip) {
  const question = JSON.stringify([fixed, skip]);
  const { answer, error } = useLive(async ({ version, wait, signal }) => {
    if (skip) return { version: "skipped", data: [] };
    return call("batches/overview", { body: { ...fixed, limit: 20, version, wait }, signal });
  }, question);
  const lines = answer?.data ?? [];
  const first = lines[0];
  return { batchId: !skip && first ? first.id : null, asking: !answer, error };
}
