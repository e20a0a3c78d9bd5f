/** Links: to a batch on these pages, to its Dag, run and task in Airflow. */

import { h } from "./react.js";
import { hrefWith, useAddress } from "./address.js";
import { Choice } from "./fields.js";

const Router = globalThis.ReactRouterDOM;

/** A link that changes the address without loading a page; with a modifier key it opens a tab as any link does. */
export function PageLink({ changes, children, ...rest }) {
  const [params, go] = useAddress();
  const onClick = (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button !== 0) return;
    event.preventDefault();
    go(changes);
  };
  return h("a", { href: hrefWith(params, changes), onClick, ...rest }, children);
}

/** The address without a batch and without what is looked at of it. */
export const CLEAR = { batch: null, tab: null, rows: null, label: null, find: null };

/** Which of several services is asked; nothing where there is one. */
export function ServiceChoice({ connections }) {
  const [params, go] = useAddress();
  if (!(connections?.length > 1)) return null;
  return h(
    Choice,
    {
      label: "Service",
      value: params.get("conn_id") ?? connections[0],
      onChange: (event) => go({ ...CLEAR, all: null, offset: null, conn_id: event.target.value }),
    },
    ...connections.map((name) => h("option", { key: name, value: name }, name)),
  );
}

let ownDeployments = [];

/** Under which names batches of this Airflow stand at the service. */
export function setOwnDeployments(names) {
  ownDeployments = names;
}

/** Where a batch comes from; links where the page stands in that Airflow. `within` a Dag run its task is enough. */
export function OriginText({ origin, within = null }) {
  if (!origin) return h("span", { className: "blm-muted" }, "not from Airflow");
  const { dag_id: dag, run_id: run, task_id: task, map_index: index } = origin;
  const at = `/dags/${encodeURIComponent(dag)}`;
  const ofRun = `${at}/runs/${encodeURIComponent(run)}`;
  const ofTask = `${ofRun}/tasks/${encodeURIComponent(task)}${index >= 0 ? `/mapped/${index}` : ""}`;
  const part = (to, text, title) =>
    Router && ownDeployments.includes(origin.deployment)
      ? h(Router.Link, { to, title }, text)
      : h("span", { title }, text);
  if (within) return part(ofTask, index >= 0 ? `${task} [${index}]` : task, `Task ${task}`);
  return h(
    "span",
    { className: "blm-origin" },
    part(at, dag, `Dag ${dag}`),
    h("span", { className: "blm-muted", "aria-hidden": true }, " › "),
    part(ofTask, index >= 0 ? `${task} [${index}]` : task, `Task ${task}`),
    h("br"),
    h("span", { className: "blm-small" }, part(ofRun, run, `Run ${run}`)),
  );
}
