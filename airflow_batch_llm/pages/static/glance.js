/** Of one batch: is it moving, when is it done, what does it cost, what went wrong? */

import { Fragment, h } from "./react.js";
import { troubled } from "./attempts.js";
import { Card } from "./facts.js";
import { ago, counted, duration, money, moment, percent, rate } from "./format.js";
import { PageLink } from "./places.js";
import { endOf, hasEnded, ProgressBar, STATUS_NAMES } from "./status.js";

export function Glance({ report, now }) {
  const { batch, cost } = report;
  return h(
    "div",
    { className: "blm-glance" },
    h(
      Card,
      { title: "Progress" },
      h(ProgressBar, { batch }),
      h("p", { className: "blm-small blm-muted blm-why" }, movement(batch)),
    ),
    h(
      Card,
      { title: hasEnded(batch) ? "Time taken" : "To go" },
      h("p", { className: "blm-big" }, timeOf(batch)),
      h(
        "p",
        { className: "blm-small blm-muted" },
        `submitted ${ago(batch.created_at, now)}${batch.expires_at && !hasEnded(batch) ? `, must be done by ${moment(batch.expires_at)}` : ""}`,
      ),
    ),
    h(Card, { title: "Cost" }, h(CostAtAGlance, { cost })),
    h(Card, { title: "What went wrong" }, h(Wrong, { report })),
  );
}

function timeOf(batch) {
  if (hasEnded(batch)) return duration(endOf(batch) - batch.created_at);
  if (batch.status === "finalizing") return "the target is being written";
  return batch.progress.eta_seconds == null
    ? "not known yet"
    : `about ${duration(batch.progress.eta_seconds)}`;
}

function movement(batch) {
  const { progress } = batch;
  if (hasEnded(batch)) return `${STATUS_NAMES[batch.status]} ${moment(endOf(batch))}`;
  if (progress.waiting_for) return progress.waiting_for;
  if (progress.tokens_per_second)
    return `${rate(progress.tokens_per_second, "tokens/s")}, ${rate(progress.rows_per_second, "rows/s")}`;
  return batch.status === "validating"
    ? "It is being planned."
    : "Nothing has been committed in the last minute.";
}

function CostAtAGlance({ cost }) {
  if (!cost) return h("p", { className: "blm-big" }, "–");
  if (cost.own == null)
    return h(
      Fragment,
      null,
      h("p", { className: "blm-big" }, `${duration(cost.gpu_seconds)} of GPU`),
      h(
        "p",
        { className: "blm-small blm-muted" },
        cost.api == null
          ? "The service is told no prices (--gpu-hour-price, --api-input-price, --api-output-price)."
          : `The same tokens at an API: ${money(cost.api, cost.currency)}`,
      ),
    );
  return h(
    Fragment,
    null,
    h(
      "p",
      { className: "blm-big" },
      money(cost.own, cost.currency),
      cost.saving != null &&
        h(
          "span",
          { className: cost.saving >= 0 ? "blm-good" : "blm-bad" },
          ` ${cost.saving >= 0 ? `${percent(cost.saving)} saved` : `${percent(-cost.saving)} dearer`}`,
        ),
    ),
    h(
      "p",
      { className: "blm-small blm-muted" },
      cost.api == null
        ? `${duration(cost.gpu_seconds)} of GPU`
        : `${duration(cost.gpu_seconds)} of GPU; the same tokens at an API: ${money(cost.api, cost.currency)}`,
    ),
  );
}

function Wrong({ report }) {
  const { batch, attempts } = report;
  const failed = batch.progress.rows_failed;
  const undone = hasEnded(batch) ? Math.max(0, batch.progress.rows_total - batch.progress.rows_done) : 0;
  const troubles = troubled(attempts);
  const errors = batch.errors?.data ?? [];
  if (errors.length)
    return h(
      "div",
      null,
      ...errors
        .slice(0, 3)
        .map((error, place) => h("p", { key: place, className: "blm-bad blm-why" }, error.message)),
    );
  if (!failed && !undone && !troubles) return h("p", { className: "blm-big blm-good" }, "Nothing");
  return h(
    Fragment,
    null,
    failed > 0 &&
      h(
        "p",
        { className: "blm-big" },
        h(
          PageLink,
          { changes: { tab: "rows", rows: "failed" }, className: "blm-bad" },
          `${counted(failed, "row")} failed`,
        ),
      ),
    ...failureCodes(batch).map(([code, rows]) =>
      h("p", { key: code, className: "blm-small" }, `${code}: ${counted(rows, "row")}`),
    ),
    undone > 0 && h("p", null, `${counted(undone, "row")} not done`),
    troubles > 0 &&
      h(
        "p",
        { className: "blm-small" },
        h(
          PageLink,
          { changes: { tab: "attempts" } },
          `${counted(troubles, "attempt")} did not end well; their rows were asked again`,
        ),
      ),
  );
}

/** The commonest reasons, which are known once the target stands. */
function failureCodes(batch) {
  const failures = Object.entries(batch.manifest?.failures ?? {});
  return failures.sort(([, some], [, others]) => others - some).slice(0, 3);
}
