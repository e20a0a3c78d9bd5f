/** Rows to look at: what the source has, what the model was asked, what it answered, side by side. */

import { Fragment, h, useEffect, useState } from "./react.js";
import { useAddress } from "./address.js";
import { AnswerBars } from "./answers.js";
import { Choice, SearchField } from "./fields.js";
import { counted, whole } from "./format.js";
import { call, urlOf, useAnswer } from "./service.js";
import { Empty, Loading, StaleNotice, Trouble } from "./states.js";

const PAGE = 10;
const STATUSES = {
  "": "All rows",
  failed: "Failed or invalid",
  error: "Failed",
  invalid_output: "Invalid output",
  success: "Successful",
  expired: "Expired",
  cancelled: "Cancelled",
};
const STATUS_WORDS = {
  success: "success",
  error: "failed",
  invalid_output: "invalid output",
  expired: "expired",
  cancelled: "cancelled",
};

export function Rows({ batch, fresh }) {
  const [params, go] = useAddress();
  const filter = {
    status: params.get("rows") ?? "",
    label: params.get("label") ?? "",
    search: params.get("find") ?? "",
  };
  const key = JSON.stringify([batch.id, filter]);
  const set = (changes) => go(changes, { replace: true });
  return h(
    "div",
    { className: "blm-rows" },
    h(
      "section",
      { className: "blm-card", "aria-labelledby": "blm-answers" },
      h("h3", { id: "blm-answers" }, "Answers"),
      h(AnswerBars, { batch, fresh, chosen: filter.label || null, onChoose: (label) => set({ label }) }),
    ),
    h(
      "div",
      { className: "blm-filters", role: "search", "aria-label": "Rows" },
      h(SearchField, { value: filter.search, label: "Search in outputs", onSearch: (find) => set({ find }) }),
      h(
        Choice,
        { label: "Rows", value: filter.status, onChange: (event) => set({ rows: event.target.value }) },
        ...Object.entries(STATUSES).map(([value, text]) => h("option", { key: value, value }, text)),
      ),
      filter.label &&
        h(
          "button",
          { className: "blm-button", onClick: () => set({ label: null }) },
          `Answer: ${filter.label} ✕`,
        ),
      h(Downloads, { batch }),
    ),
    h(RowPages, { key, batch, filter }),
  );
}

function Downloads({ batch }) {
  const files = batch.manifest?.files ?? [];
  const ofRequests = [
    [batch.output_file_id, "Download the output"],
    [batch.error_file_id, "Download the errors"],
  ];
  return h(
    "div",
    { className: "blm-downloads" },
    ...files.slice(0, 5).map((file, number) =>
      h(
        "a",
        {
          key: file.uri,
          className: "blm-button",
          href: urlOf(`batches/${batch.id}/download`, { file: number }),
          download: "",
        },
        files.length > 1 ? `Download ${file.uri.split("/").at(-1)}` : "Download the target",
      ),
    ),
    ...ofRequests.map(
      ([id, text], number) =>
        id &&
        h(
          "a",
          {
            key: id,
            className: "blm-button",
            href: urlOf(`batches/${batch.id}/download`, { file: number }),
            download: "",
          },
          text,
        ),
    ),
    files.length > 5 &&
      h(
        "span",
        { className: "blm-small blm-muted" },
        `and ${counted(files.length - 5, "file")} more at the target`,
      ),
  );
}

function RowPages({ batch, filter }) {
  const [cursors, setCursors] = useState([null]);
  const after = cursors.at(-1);
  const asked = {
    after,
    limit: PAGE,
    status: filter.status || null,
    label: filter.label || null,
    search: filter.search || null,
  };
  const { answer, error, stale, again } = useAnswer(
    ({ signal }) => call(`batches/${batch.id}/rows`, { params: asked, signal }),
    JSON.stringify(asked),
  );
  useEffect(() => {
    // A filter gives up after a bounded number of rows: with nothing found yet, it goes on by itself.
    if (answer && !stale && !answer.data.length && answer.has_more)
      setCursors([...cursors.slice(0, -1), answer.last_id]);
  }, [answer]);
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "rows" });
  return h(
    "div",
    { "aria-busy": stale },
    h(StaleNotice, { error }),
    answer.data.length
      ? h(
          "ol",
          { className: "blm-row-list" },
          ...answer.data.map((row) => h(ShownRow, { key: row.row, row })),
        )
      : h(NoRows, { batch, filter, answer }),
    h(
      "nav",
      { className: "blm-pager", "aria-label": "Pages of rows" },
      h("span", { className: "blm-muted blm-small", role: "status" }, orderWords(answer)),
      h("button", { className: "blm-button", onClick: again }, "Look again"),
      h(
        "button",
        {
          className: "blm-button",
          disabled: cursors.length === 1,
          onClick: () => setCursors(cursors.slice(0, -1)),
        },
        "Back",
      ),
      h(
        "button",
        {
          className: "blm-button",
          disabled: !answer.has_more,
          onClick: () => setCursors([...cursors, answer.last_id]),
        },
        "Next",
      ),
    ),
  );
}

function orderWords(answer) {
  const order =
    answer.order === "source" ? "in the order of the source" : "in the order in which they were done";
  return `${counted(answer.data.length, "row")} of ${whole(answer.looked_at)} looked at, ${order}`;
}

function NoRows({ batch, filter, answer }) {
  if (answer.has_more) return h(Loading, { what: "more rows: none of those so far fits" });
  if (filter.status || filter.label || filter.search) return h(Empty, { title: "No row fits" });
  return h(
    Empty,
    { title: "No rows yet" },
    batch.progress.rows_total
      ? "They are here as soon as the first ones are done."
      : "The batch is not planned yet.",
  );
}

function ShownRow({ row }) {
  const numbers = [
    row.prompt_tokens != null && `${counted(row.prompt_tokens, "prompt token")}`,
    row.completion_tokens != null && `${counted(row.completion_tokens, "answer token")}`,
    row.finish_reason && `finished by ${row.finish_reason}`,
    row.shortened && "shortened here",
  ].filter(Boolean);
  return h(
    "li",
    { className: "blm-row", "data-row": row.row },
    h(
      "header",
      null,
      h("strong", null, `Row ${whole(row.row)}`),
      h(
        "span",
        { className: `blm-status blm-status-${row.status === "success" ? "completed" : "failed"}` },
        STATUS_WORDS[row.status] ?? row.status,
      ),
      h("span", { className: "blm-small blm-muted" }, numbers.join(" · ")),
    ),
    h(
      "div",
      { className: "blm-row-parts" },
      h(
        Part,
        { title: "Input", row },
        row.input
          ? h(Fields, { values: row.input })
          : h("p", { className: "blm-muted" }, row.missing ?? "Not kept."),
      ),
      h(
        Part,
        { title: "Prompt", row },
        row.prompt
          ? row.prompt.map((message, place) => h(Message, { key: place, message }))
          : h("p", { className: "blm-muted" }, row.missing ?? "Not kept."),
      ),
      h(
        Part,
        { title: "Output", row },
        row.error && h("p", { className: "blm-bad" }, row.error),
        h(Output, { value: row.output }),
      ),
    ),
  );
}

function Part({ title, row, children }) {
  const label = `${title} of row ${whole(row.row)}`;
  return h(
    "div",
    { className: "blm-row-part", role: "group", tabIndex: 0, "aria-label": label },
    h("h4", null, title),
    children,
  );
}

function Message({ message }) {
  return h(
    "div",
    { className: "blm-message" },
    h("span", { className: "blm-label" }, message.role),
    h("pre", null, message.content),
  );
}

function Fields({ values }) {
  return h(
    "dl",
    { className: "blm-fields" },
    ...Object.entries(values).map(([name, value]) =>
      h(Fragment, { key: name }, h("dt", null, name), h("dd", null, textOf(value))),
    ),
  );
}

function Output({ value }) {
  if (value == null) return null;
  if (typeof value === "object" && !Array.isArray(value)) return h(Fields, { values: value });
  if (Array.isArray(value))
    return h(
      "ol",
      { className: "blm-samples" },
      ...value.map((each, place) => h("li", { key: place }, h("pre", null, textOf(each)))),
    );
  return h("pre", null, textOf(value));
}

function textOf(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}
