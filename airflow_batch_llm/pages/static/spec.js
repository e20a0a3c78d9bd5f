/** What was asked for: the prompt's template, the schema, the sampling, where from and where to. */

import { h } from "./react.js";
import { duration, moment, whole } from "./format.js";
import { Facts } from "./facts.js";

export function Spec({ batch }) {
  const { dataset } = batch;
  return h(
    "div",
    { className: "blm-overview" },
    h(
      "section",
      { className: "blm-card blm-double" },
      h("h3", null, "Batch"),
      h(Facts, { facts: batchFacts(batch) }),
    ),
    dataset &&
      h(
        "section",
        { className: "blm-card blm-double" },
        h("h3", null, "Table"),
        h(Facts, { facts: tableFacts(dataset) }),
      ),
    dataset &&
      h(
        "section",
        { className: "blm-card blm-span" },
        h("h3", null, "Prompt template"),
        ...templates(dataset).map(([role, text], place) =>
          h(
            "div",
            { key: place, className: "blm-message" },
            h("span", { className: "blm-label" }, role),
            h("pre", { tabIndex: 0, "aria-label": `${role} template` }, ...marked(text)),
          ),
        ),
      ),
    dataset?.choices &&
      h(
        "section",
        { className: "blm-card" },
        h("h3", null, "Choices"),
        h(
          "ul",
          { className: "blm-chips" },
          ...dataset.choices.map((choice) => h("li", { key: choice }, choice)),
        ),
      ),
    dataset?.output_schema && h(Json, { title: "Output schema", value: dataset.output_schema }),
    dataset && h(Json, { title: "Sampling", value: { temperature: 0, ...dataset.parameters } }),
    dataset &&
      Object.keys(dataset.constants ?? {}).length > 0 &&
      h(Json, { title: "Constants", value: dataset.constants }),
    batch.metadata && h(Json, { title: "Metadata", value: batch.metadata }),
  );
}

const PLACEHOLDER = /(\{[\p{L}_][\p{L}\p{N}_]*\})/u;

/** The template with its placeholders marked: those that are not written twice as wide. */
function marked(text) {
  return text
    .split(/(\{\{|\}\})/)
    .flatMap((piece, outer) =>
      piece
        .split(PLACEHOLDER)
        .map((part, inner) =>
          PLACEHOLDER.test(part) ? h("mark", { key: `${outer} ${inner}` }, part) : part,
        ),
    );
}

function Json({ title, value }) {
  return h(
    "section",
    { className: "blm-card" },
    h("h3", null, title),
    h("pre", { tabIndex: 0, "aria-label": title }, JSON.stringify(value, null, 2)),
  );
}

const templates = (dataset) =>
  dataset.input
    ? [["input", dataset.input]]
    : dataset.messages.map((message) => [message.role, message.content]);

function batchFacts(batch) {
  return [
    ["Model", batch.model ?? "by request"],
    ["Endpoint", batch.endpoint],
    ["Key", batch.key ?? "none"],
    ["Generation", whole(batch.generation)],
    ["Team", batch.team],
    ["Priority", whole(batch.priority)],
    ["Shares its turn with", batch.fair_group ?? "–"],
    ["Must be done by", moment(batch.expires_at)],
    ["Equal rows", batch.reuse === "never" ? "all are asked anew" : "may get a known answer"],
    ["First rows judged", batch.canary_rows ? whole(batch.canary_rows) : "no"],
    [
      "Paused if unwatched for",
      batch.pause_unwatched_after ? duration(batch.pause_unwatched_after) : "never",
    ],
    ...(batch.input_file_id ? [["Request file", batch.input_file_id]] : []),
  ];
}

function tableFacts(dataset) {
  return [
    ["Source", [dataset.source].flat().join(", ")],
    ["Target", dataset.target ?? "none, a dry run"],
    ["Format", dataset.format ?? "as the target's name says"],
    ["Columns kept", dataset.passthrough ? dataset.passthrough.join(", ") || "none" : "all"],
    ["Failed rows copied to", dataset.quarantine ?? "nowhere"],
  ];
}
