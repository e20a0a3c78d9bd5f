/** The bundle that Airflow loads: its plugin contract wants a component as a global. */

import { App } from "./app.js";
import { h } from "./react.js";

const STYLE = new URL("pages.css", import.meta.url).href;
if (!document.querySelector(`link[href="${STYLE}"]`)) {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = STYLE;
  document.head.append(link);
}

/** Airflow gives the ids of the place whose tab this is; on the page of the navigation there are none. */
globalThis.AirflowPlugin = function LLMBatches({ dagId, runId, taskId, mapIndex }) {
  const index = mapIndex == null || mapIndex === "" ? null : Number(mapIndex);
  const place =
    dagId && runId
      ? { dag_id: dagId, run_id: runId, task_id: taskId ?? null, map_index: taskId ? index : null }
      : null;
  return h(App, { host: "airflow", place });
};
