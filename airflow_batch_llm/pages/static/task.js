/** The tab of a task instance or a Dag run in Airflow: its batches, or the newest where it has had several lives. */

import { h, useEffect } from "./react.js";
import { useAddress } from "./address.js";
import { BatchPage } from "./batch.js";
import { counted } from "./format.js";
import { BatchListPage } from "./list.js";
import { PageLink, ServiceChoice } from "./places.js";
import { call, useAnswer, useLive } from "./service.js";
import { Loading, Trouble } from "./states.js";

export function TaskPage({ place, host, connections }) {
  const [params] = useAddress();
  const fixed = filterOf(place);
  const found = useConnection(connections, fixed);
  const chosen = params.get("batch");
  if (!found) return h(Loading, { what: "the batches" });
  let page;
  if (chosen) page = h(BatchPage, { key: chosen, batchId: chosen, placed: Boolean(place.task_id) });
  else if (!place.task_id || params.has("all")) page = h(BatchListPage, { host, fixed });
  else page = h(NewestBatch, { fixed, host });
  return h(
    "div",
    { className: "blm-page" },
    h(ServiceChoice, { connections }),
    chosen &&
      h(
        "p",
        null,
        h(
          PageLink,
          { changes: { batch: null, tab: null, all: place.task_id ? 1 : null } },
          "‹ All batches here",
        ),
      ),
    page,
  );
}

function filterOf({ dag_id, run_id, task_id, map_index }) {
  const named = { dag_ids: [dag_id], run_id };
  if (task_id) named.task_id = task_id;
  if (map_index != null) named.map_index = map_index;
  return named;
}

/** Of several services the first that has batches of this place is asked, unless the address names one. */
function useConnection(connections, fixed) {
  const [params, go] = useAddress();
  const open = connections.length > 1 && !params.has("conn_id");
  const { answer } = useAnswer(
    ({ signal }) => (open ? firstWith(connections, fixed, signal) : Promise.resolve("as the address says")),
    JSON.stringify([open, fixed]),
  );
  useEffect(() => {
    if (open && answer && connections.includes(answer)) go({ conn_id: answer }, { replace: true });
  }, [open, answer]);
  return open ? null : answer;
}

async function firstWith(connections, fixed, signal) {
  for (const conn_id of connections) {
    const found = await call("batches/overview", {
      params: { conn_id },
      body: { ...fixed, limit: 1 },
      signal,
    }).catch(() => null);
    if (found?.total) return conn_id;
  }
  return connections[0];
}

function NewestBatch({ fixed, host }) {
  const [params] = useAddress();
  const { answer, error } = useLive(
    ({ version, wait, signal }) =>
      call("batches/overview", { body: { ...fixed, limit: 1, version, wait }, signal }),
    JSON.stringify([fixed, params.get("conn_id")]),
  );
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "the batch" });
  const newest = answer.data[0];
  if (!newest) return h(BatchListPage, { host, fixed });
  const others = answer.total - 1;
  return h(
    "div",
    { className: "blm-batch" },
    others > 0 &&
      h(
        "p",
        null,
        "The newest batch of this task. ",
        h(PageLink, { changes: { all: 1 } }, `${counted(others, "earlier batch", "earlier batches")}`),
      ),
    h(BatchPage, { key: newest.id, batchId: newest.id, placed: true }),
  );
}
