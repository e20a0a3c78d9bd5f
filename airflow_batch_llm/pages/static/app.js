/** The pages as one component: the list, a batch, the workers. */

import { Component, h, useEffect } from "./react.js";
import { useAddress } from "./address.js";
import { BatchPage } from "./batch.js";
import { BatchListPage } from "./list.js";
import { CLEAR, PageLink, ServiceChoice, setOwnDeployments } from "./places.js";
import { setScope, useAnswer, call } from "./service.js";
import { Announcements, Loading, Trouble } from "./states.js";
import { TaskPage } from "./task.js";
import { WorkersPage } from "./workers.js";

/**
 * @param host "airflow" or "standalone".
 * @param place Of a tab in Airflow: `{dag_id, run_id, task_id, map_index}`; null for the page itself.
 * @param header What the host shows beside the names of the pages.
 */
export function App({ host, place = null, header = null }) {
  const [params] = useAddress();
  setScope({ team: params.get("team"), conn_id: params.get("conn_id") });
  const who = useAnswer(
    ({ signal }) => call("whoami", { signal }),
    `${params.get("team")} ${params.get("conn_id")}`,
  );
  return h(
    "div",
    { className: `blm blm-${host}` },
    h(Announcements),
    h(Fence, { at: params.toString() }, h(Shell, { host, place, header, who, params })),
  );
}

function Shell({ host, place, header, who, params }) {
  if (!who.answer) return who.error ? h(Trouble, { error: who.error }) : h(Loading, { what: "the pages" });
  setOwnDeployments(who.answer.deployments ?? []);
  if (place) return h(TaskPage, { place, connections: who.answer.connections ?? [], host });
  const batchId = params.get("batch");
  const page = batchId ? "batch" : params.get("page") === "workers" ? "workers" : "list";
  return h(
    "main",
    { className: "blm-page" },
    h(Heading, { page, header, connections: who.answer.connections, batchId }),
    page === "batch" && h(BatchPage, { key: batchId, batchId }),
    page === "workers" && h(WorkersPage, { scope: `${params.get("team")} ${params.get("conn_id")}` }),
    page === "list" && h(BatchListPage, { host }),
  );
}

function Heading({ page, header, connections, batchId }) {
  useEffect(() => {
    const before = document.title;
    document.title = batchId
      ? `${batchId} – LLM batches`
      : page === "workers"
        ? "Workers – LLM batches"
        : "LLM batches";
    return () => {
      document.title = before;
    };
  }, [page, batchId]);
  const current = (name) => (page === name ? "page" : undefined);
  return h(
    "header",
    { className: "blm-heading" },
    h("h1", null, "LLM batches"),
    h(
      "nav",
      { "aria-label": "Pages" },
      h(PageLink, { changes: { ...CLEAR, page: null }, "aria-current": current("list") }, "Batches"),
      h(PageLink, { changes: { ...CLEAR, page: "workers" }, "aria-current": current("workers") }, "Workers"),
    ),
    h(ServiceChoice, { connections }),
    header,
  );
}

/** Keeps an error of one page from taking the host's page with it, until another page is asked for. */
class Fence extends Component {
  constructor(props) {
    super(props);
    this.state = { error: null, at: props.at };
  }

  static getDerivedStateFromError(error) {
    return { error };
  }

  static getDerivedStateFromProps({ at }, state) {
    return at === state.at ? null : { error: null, at };
  }

  render() {
    if (!this.state.error) return this.props.children;
    return h(Trouble, {
      error: {
        message: `These pages have a defect: ${this.state.error.message}. Nothing happened to any batch.`,
      },
    });
  }
}
