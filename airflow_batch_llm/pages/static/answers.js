/** How often which answer was given, as bars that filter the rows. */

import { h } from "./react.js";
import { counted, percent, whole } from "./format.js";
import { call, useAnswer } from "./service.js";
import { Loading, Trouble } from "./states.js";

const MOST = 12;

/** `fresh` changes when there is something new to count. */
export function AnswerBars({ batch, fresh, chosen = null, onChoose = null }) {
  const { answer, error } = useAnswer(
    ({ signal }) => call(`batches/${batch.id}/answers`, { signal }),
    `${batch.id} ${fresh}`,
  );
  if (!answer) return error ? h(Trouble, { error }) : h(Loading, { what: "the answers" });
  if (!answer.counts.length)
    return h(
      "p",
      { className: "blm-muted" },
      answer.rows_done && !answer.field ? "The answers are no labels: see the rows." : "No answer yet.",
    );
  const looked = answer.rows_looked_at;
  const most = Math.max(...answer.counts.map((each) => each.rows));
  const shown = answer.counts.slice(0, MOST);
  return h(
    "div",
    { className: "blm-answers" },
    h(
      "ul",
      { "aria-label": `Answers in ${answer.field}` },
      ...shown.map(({ answer: label, rows }) =>
        h(
          "li",
          { key: label },
          onChoose
            ? h(
                "button",
                {
                  className: "blm-answer",
                  "aria-pressed": chosen === label,
                  onClick: () => onChoose(chosen === label ? null : label),
                  title: "Show the rows with this answer",
                },
                label,
              )
            : h("span", { className: "blm-answer", title: label }, label),
          h(
            "span",
            { className: "blm-answer-bar", "aria-hidden": true },
            h("span", { style: { width: `${(100 * rows) / most}%` } }),
          ),
          h("span", { className: "blm-number blm-small" }, `${whole(rows)} · ${percent(rows / looked)}`),
        ),
      ),
    ),
    h(
      "p",
      { className: "blm-small blm-muted" },
      answer.counts.length > MOST && `${counted(answer.counts.length - MOST, "other answer")}. `,
      countedOf(answer),
    ),
  );
}

/** Of which rows the counts are, in a sentence. */
function countedOf({ rows_looked_at: looked, rows_failed: failed, rows_done: done, distinct }) {
  const besides = failed ? `; ${counted(failed, "row")} besides failed` : "";
  if (distinct)
    return `Of ${counted(looked, "row")} that were asked, equal ones once${besides}. ${whole(done)} are done.`;
  if (looked + failed < done)
    return `Of ${counted(looked, "row")}, a sample spread over ${whole(done)}${besides}.`;
  return `Of all ${counted(looked, "row")} with an answer so far${besides}.`;
}
