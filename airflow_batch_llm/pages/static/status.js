/** The state of a batch as a word and a colour, and how far it is as a bar. */

import { h } from "./react.js";
import { compact, counted, percent, whole } from "./format.js";

/** The words, by what the service says. */
export const STATUS_NAMES = {
  validating: "Planning",
  in_progress: "Running",
  paused: "Paused",
  finalizing: "Assembling",
  completed: "Completed",
  failed: "Failed",
  expired: "Expired",
  cancelling: "Cancelling",
  cancelled: "Cancelled",
};
const ENDED = new Set(["completed", "failed", "expired", "cancelled"]);
const PAUSES = {
  requested: "Somebody paused it.",
  unwatched: "Nobody waits for it any more.",
  canary: "Its first rows are done and wait for a verdict.",
};

/** Seconds since 1970; undefined of one that has not ended. */
export const endOf = (batch) =>
  batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at;

export const hasEnded = (batch) => ENDED.has(batch.status);

export function statusOf(batch) {
  return batch.paused && batch.status === "in_progress" ? "paused" : batch.status;
}

export function StatusBadge({ batch }) {
  const status = statusOf(batch);
  return h(
    "span",
    {
      className: `blm-status blm-status-${status}`,
      title: (batch.paused && PAUSES[batch.paused]) || undefined,
    },
    STATUS_NAMES[status] ?? status,
  );
}

/** Done, failed and reused rows of all, as one bar with its numbers in words. */
export function ProgressBar({ batch, small = false }) {
  const { progress } = batch;
  const { rows_total: total, rows_done: done, rows_failed: failed, rows_reused: reused } = progress;
  const share = total ? done / total : 0;
  const good = Math.max(0, done - failed - reused);
  const text = total
    ? `${whole(done)} of ${counted(total, "row")}`
    : hasEnded(batch)
      ? "no rows"
      : "not planned yet";
  const width = (rows) => ({ style: { width: `${total ? (100 * rows) / total : 0}%` } });
  return h(
    "div",
    { className: "blm-progress" },
    h(
      "div",
      {
        className: "blm-bar",
        role: "progressbar",
        "aria-valuemin": 0,
        "aria-valuemax": 100,
        "aria-valuenow": Math.floor(share * 100),
        "aria-valuetext": text,
        "aria-label": "Rows done",
      },
      h("span", { className: "blm-bar-reused", ...width(reused) }),
      h("span", { className: "blm-bar-done", ...width(good) }),
      h("span", { className: "blm-bar-failed", ...width(failed) }),
    ),
    h(
      "div",
      { className: "blm-progress-text" },
      h(
        "span",
        { title: text },
        total
          ? `${small ? compact(done) : whole(done)} / ${small ? compact(total) : counted(total, "row")}`
          : text,
      ),
      total > 0 && h("span", { className: "blm-muted" }, percent(share)),
      failed > 0 && h("span", { className: "blm-bad" }, `${compact(failed)} failed`),
      reused > 0 && h("span", { className: "blm-muted" }, `${compact(reused)} reused`),
    ),
  );
}
