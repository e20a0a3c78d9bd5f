/** What a person can do with a batch. Each act says what it will do and asks once. */

import { Fragment, h, useEffect, useId, useRef, useState } from "./react.js";
import { counted, whole } from "./format.js";
import { call } from "./service.js";
import { hasEnded } from "./status.js";

const ACTS = {
  pause: {
    title: "Pause this batch?",
    says: () =>
      "No worker gets more of it. The rows that are at an engine now are finished. It goes on when somebody resumes it.",
    done: "Paused.",
  },
  resume: {
    title: "Let this batch go on?",
    says: () => "Workers get its rows again, in its turn.",
    done: "It goes on.",
  },
  cancel: {
    title: "Cancel this batch?",
    says: ({ progress: { rows_done: done, rows_total: total } }) =>
      `${whole(done)} of ${counted(total, "row")} are done; these are kept and delivered, the others are not asked any more. This cannot be undone, but a retry goes on from there.`,
    done: "It is being cancelled.",
    dangerous: true,
  },
  retry: {
    title: "Retry the rows that failed or were not done?",
    says: ({ progress: { rows_total: total, rows_failed: failed, rows_done: done } }) =>
      `${counted(failed + Math.max(0, total - done), "row")} are asked again in a new generation; what was done is kept. The Airflow task is not started again by this.`,
    done: "A new generation was opened.",
  },
};
export const BATCH_HEADING = "blm-batch-heading";
const NAMES = { pause: "Pause", resume: "Resume", cancel: "Cancel batch", retry: "Retry failed rows" };

/** The acts that make sense for a batch as it is. */
function possible(batch) {
  if (hasEnded(batch)) {
    const { rows_total: total, rows_done: done, rows_failed: failed } = batch.progress;
    const all = total > 0 && done === total && failed === 0;
    return batch.status !== "failed" && !batch.dry_run && !all ? ["retry"] : [];
  }
  if (batch.status === "cancelling") return [];
  const held = batch.paused
    ? ["resume"]
    : batch.status === "in_progress" || batch.status === "validating"
      ? ["pause"]
      : [];
  return batch.status === "finalizing" ? [] : [...held, "cancel"];
}

export function Acts({ batch, may, onDone }) {
  const [asked, ask] = useState(null);
  const acts = possible(batch);
  const reason = useId();
  if (!acts.length) return null;
  return h(
    "div",
    { className: "blm-acts" },
    ...acts.map((act) =>
      h(
        "button",
        {
          key: act,
          className: `blm-button${ACTS[act].dangerous ? " blm-danger" : ""}`,
          disabled: !may,
          "aria-describedby": may ? undefined : reason,
          onClick: () => ask(act),
        },
        NAMES[act],
      ),
    ),
    !may &&
      h(
        "span",
        { id: reason, className: "blm-small blm-muted" },
        "You may look at this batch, but not change it.",
      ),
    asked && h(Confirm, { key: asked, act: asked, batch, onClose: () => ask(null), onDone }),
  );
}

function Confirm({ act, batch, onClose, onDone }) {
  const dialog = useRef(null);
  const acted = useRef(false);
  const [state, setState] = useState({ busy: false, error: null });
  const title = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current.showModal();
    // The button goes with what it did; whoever uses the keyboard stays at the batch.
    return () => setTimeout(() => (acted.current ? document.getElementById(BATCH_HEADING) : before)?.focus());
  }, []);
  const { title: question, says, done, dangerous } = ACTS[act];
  const doIt = async () => {
    setState({ busy: true, error: null });
    try {
      const answer = await call(`batches/${batch.id}/${act}`, { body: {} });
      acted.current = true;
      onClose();
      onDone(act, answer, done);
    } catch (error) {
      setState({ busy: false, error });
    }
  };
  return h(
    "dialog",
    {
      ref: dialog,
      className: "blm-dialog",
      "aria-labelledby": title,
      onClose,
      onCancel: (event) => state.busy && event.preventDefault(),
    },
    h("h2", { id: title }, question),
    h("p", null, says(batch)),
    h("p", { className: "blm-small blm-muted" }, batch.id),
    state.error && h("p", { className: "blm-error", role: "alert" }, state.error.message),
    h(
      Fragment,
      null,
      h(
        "div",
        { className: "blm-dialog-buttons" },
        h("button", { className: "blm-button", disabled: state.busy, onClick: onClose }, "Leave it as it is"),
        h(
          "button",
          {
            className: `blm-button ${dangerous ? "blm-danger-solid" : "blm-solid"}`,
            disabled: state.busy,
            onClick: doIt,
          },
          state.busy ? "Asking …" : NAMES[act],
        ),
      ),
    ),
  );
}
